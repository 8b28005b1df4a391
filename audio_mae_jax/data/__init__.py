"""From audio files to batches: sources, decoding, the pipeline, bad files."""
