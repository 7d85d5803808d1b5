"""The pipeline side by side with the loaders that a user could pick instead: ``python -m benchmarks.peers``.

The modules dali, dataloader, ffcv, spdl, tfdata and stream run in environments of the peers' own, without fourstage.
"""
