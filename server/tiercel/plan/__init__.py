"""What fits where, and how fast it could be: arithmetic on a config.json. No weights, no torch."""
