"""How a weight is stored and multiplied: one LinearMethod per kind of quantization."""
