"""Tiercel, an HTTP inference server for the Falcon language models."""

__version__ = "0.1.0"
