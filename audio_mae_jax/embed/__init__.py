"""A trained encoder at work: embeddings of any audio.

  windows.py   how audio is cut into windows, and their frames joined
  programs.py  what is compiled
  engine.py    recordings through the programs, in constant memory
  model.py     what others call: `audio_mae_jax.load`
"""
