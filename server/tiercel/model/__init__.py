"""Falcon as files and as modules: configuration, checkpoints, conversion, the network itself."""
