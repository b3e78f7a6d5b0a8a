"""From what a user names to a FalconSpec: a folder, a config.json, a published name, or the hub."""

from pathlib import Path

from tiercel.errors import ConfigError
from tiercel.model.config import load_spec, read_spec
from tiercel.model.hub import resolve_config
from tiercel.model.spec import FalconSpec
from tiercel.plan.models import published


def named_spec(
    model: str, revision: str | None = None, cache_dir: str | None = None
) -> tuple[str, FalconSpec]:
    """A name for the tables and the architecture. Weights are never looked at.

    Raises ConfigError for a config.json that is not a Falcon's, or a name that leads nowhere.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return path.name if path.parent == Path() else str(path), read_spec(path)
    if path.is_dir():
        return model, load_spec(path)
    known = published(model)
    if known is not None and revision is None:
        return known
    try:
        return model, read_spec(resolve_config(model, revision, cache_dir=cache_dir))
    except ConfigError as error:
        raise ConfigError(
            f"{error}; without a network there are falcon-7b, -11b, -40b, -180b, -rw-1b and -rw-7b"
        ) from error
