"""Grammars: which tokens may come next, so that a text matches a JSON schema or an expression."""
