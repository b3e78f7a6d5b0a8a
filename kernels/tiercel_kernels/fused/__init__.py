"""The Triton kernels, one module per op, each with its COMPILE_CASES. Import needs triton."""
