"""The playground: one page to try the served model in a browser."""
