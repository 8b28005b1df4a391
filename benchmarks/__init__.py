"""Comparisons that anyone can run; docs/performance.md, "Against PyTorch".

Not part of the installed package: run from the root of the repository, e.g.
`python -m benchmarks.train_step --task=pretrain`.
"""
