"""eyas, the small trained Falcon inside the package. Owns its files' location, nothing else."""

from pathlib import Path


def path() -> Path:
    """Return the folder that holds the weights, the configuration and the tokenizer of eyas."""
    return Path(__file__).resolve().parent
