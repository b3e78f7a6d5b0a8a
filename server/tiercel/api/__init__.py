"""The HTTP edge: routes, schema, validation, admission, streams. Sees the engine's client only."""
