"""How the next token is chosen: processors, filters, the draw and its logprobs."""
