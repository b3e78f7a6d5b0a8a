"""The engine on a GPU against its bounds, and transformers beside it. Needs no web package."""
