"""Metrics and logs. Torch-free, and knows nothing of HTTP."""
