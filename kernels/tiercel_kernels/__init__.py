"""Tiercel's kernels: per op a specification in torch and a Triton kernel. Knows no server."""
