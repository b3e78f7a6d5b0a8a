"""How ranks share one model. One rank is the identity."""
