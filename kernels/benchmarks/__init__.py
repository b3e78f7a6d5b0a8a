"""One script per op: its time against the bound. `python -m benchmarks.run` runs them all.

Set-up, timing and results are in tiercel_kernels.benchmark.
"""
