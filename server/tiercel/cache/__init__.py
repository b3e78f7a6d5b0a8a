"""KV cache bookkeeping: which block holds what, who owns it. No tensors and no torch."""
