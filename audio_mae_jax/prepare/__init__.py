"""Data sets as downloaded -> a checked manifest, class list and report.

`datasets.py` is the table of data sets; its entries are readers, small
functions that know one layout on disk. Everything else is the same for all:
`check.py` opens every clip, `levels.py` measures the mean and standard
deviation of log-mel, `report.py` tells. `records.py` writes any source as
shards (`shards.py`, `index.py`), `beam.py` data sets on many machines
(`builders.py`). docs/data.md is the manual.
"""
