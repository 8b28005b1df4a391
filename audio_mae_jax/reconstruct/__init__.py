"""One page on which a masked autoencoder's reconstructions are seen and heard.

`hiding.py` says what is hidden, `model.py` asks the model, `filling.py` makes
spectrograms of the answers, `sound.py` sound; `study.py` does it all and
measures, `page.py` writes it down. docs/reconstruct.md is the manual.
"""
