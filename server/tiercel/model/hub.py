"""From the name of a model to a folder on this machine: as it is, from the cache, or downloaded.

Only huggingface_hub talks to the network, and only for a name that is no folder here.
"""

import errno
from pathlib import Path
from typing import cast

from tiercel.errors import ConfigError, WeightsError
from tiercel.foreign_files import shown

FILES = ["*.json", "*.txt", "*.jinja", "*.safetensors"]  # no code and no pickles


def resolve_model(
    model_id: str,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    into: Path | None = None,
) -> Path:
    """Return the folder of a model: `model_id` itself if it is one, else a snapshot of the hub.

    A folder opens no socket; neither does `offline` (or huggingface_hub's own HF_HUB_OFFLINE), when
    the snapshot must be in the cache. Downloads show a progress bar; code and pickles are left
    where they are. `endpoint` replaces the hub's address, the folder `into` the cache.

    Raises ConfigError for a name, revision, token, network or disk that does not do, and
    WeightsError for a model without safetensors.
    """
    local = _local_folder(model_id)
    if local is not None:
        return local
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    # The base of all errors of whichever HTTP library this version of huggingface_hub uses.
    http_error = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    offline = offline or constants.HF_HUB_OFFLINE
    try:
        folder = Path(
            snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=offline,
                endpoint=endpoint,
                local_dir=into,
                allow_patterns=FILES,
                ignore_patterns=["*/*"],  # sub-folders hold other formats of the same weights
            )
        )
    except (http_error, EntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        raise _explain(error, model_id, revision, offline) from error
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(
            f"model {shown(model_id)} has no safetensors files on the hub; if it has pickles "
            "(.bin), download them and run `tiercel convert <folder> <new folder>`"
        )
    return folder


def hide_bars() -> None:
    """No progress bars from now on: stderr is for lines of another form."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()


def resolve_config(
    model_id: str,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Return config.json of a model on the hub; nothing else of it is downloaded.

    Raises ConfigError as `resolve_model` does.
    """
    if _local_folder(model_id) is not None:
        raise ConfigError(f"model {shown(model_id)} is a folder here, not a name on the hub")
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    http_error = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    offline = constants.HF_HUB_OFFLINE
    try:
        return Path(
            hf_hub_download(
                model_id,
                "config.json",
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=offline,
                endpoint=endpoint,
            )
        )
    except (http_error, OSError, ValueError, RuntimeError) as error:
        raise _explain(error, model_id, revision, offline) from error


def _local_folder(model_id: str) -> Path | None:
    """Return the folder, or None for what may be a name on the hub. Raises ConfigError."""
    path = Path(model_id)
    try:
        path = path.expanduser()
        if model_id.strip() and path.is_dir():
            return path
        taken = path.exists()
    except (OSError, RuntimeError):  # a name too long for a path, or ~user without a home
        taken = False
    if taken or model_id.startswith(("/", ".", "~")) or not model_id.strip():
        raise ConfigError(f"model {shown(model_id)} is not a folder; give a folder or a hub name")
    return None


def _explain(error: Exception, model_id: str, revision: str | None, offline: bool) -> ConfigError:
    """Return what went wrong in one line, with what to do about it."""
    from huggingface_hub import errors

    model = f"model {shown(model_id)}"
    if isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the answer that made it look into the cache
    if isinstance(error, errors.HFValidationError):
        return ConfigError(f"{model} is neither a folder here nor a hub name such as 'owner/name'")
    if isinstance(error, errors.GatedRepoError):
        return ConfigError(f"{model} is gated: accept its terms on the hub and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigError(
            f"{model} is not on the hub, or private: check the name, or set HF_TOKEN to see it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigError(f"{model} has no revision {shown(revision)}; check --revision")
    if isinstance(error, errors.LocalEntryNotFoundError) and offline:
        at = f" at revision {shown(revision)}" if revision else ""
        return ConfigError(
            f"{model}{at} is not complete in the cache and HF_HUB_OFFLINE forbids downloads; "
            "download it first, or give a folder"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return ConfigError(f"{model}: the hub answered {status}; try later, or give a folder")
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
        return ConfigError(
            f"{model}: cannot write to the cache: {shown(str(error))}; make room, or set another "
            "folder with --huggingface-hub-cache"
        )
    why = type(error.__cause__ or error).__name__
    return ConfigError(
        f"{model}: cannot be downloaded ({why}); check the network, or give a folder"
    )
