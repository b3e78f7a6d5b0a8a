"""TGI's launcher flags that mean nothing here, or that cannot be honoured yet.

A flag without effect is accepted and reported; one that would change results is refused with a
sentence. The flags that do something are fields of Settings, which inherits from here.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings

from tiercel.plan.sizes import QUANTIZATIONS


def without_effect(default: Any, description: str, **limits: Any) -> Any:
    """A field that is accepted and does nothing; `Settings.ignored()` names it when it is given."""
    return Field(default, description=description, json_schema_extra={"effect": False}, **limits)


def _only(*allowed: object, because: str) -> AfterValidator:
    """Refuses every other value. The sentence follows the flag's name."""

    def check(value: object) -> object:
        if value not in allowed:
            raise ValueError(because)
        return value

    return AfterValidator(check)


def known_method(value: str | None) -> str | None:
    """Raises ValueError for a mode that there is not."""
    if value is not None and value not in QUANTIZATIONS:
        raise ValueError(f"this version has {', '.join(QUANTIZATIONS)} only")
    return value


class TgiFlags(BaseSettings):
    """Flags of text-generation-launcher that are understood and then ignored or refused."""

    # Refused: they would change what comes out, or the user counts on them.
    kv_cache_dtype: Annotated[
        str | None,
        _only(None, "auto", because="the KV cache has the model's own type; leave it out"),
    ] = Field(None, description="Not available yet: fp8 is refused.")
    speculate: Annotated[
        int, _only(0, because="speculation is not available yet; leave it out or give 0")
    ] = Field(0, description="Not available yet: only 0.")
    lora_adapters: Annotated[
        str | None, _only(None, because="adapters (LoRA) are not available yet; leave it out")
    ] = Field(None, description="Not available yet: any value is refused.")

    # Accepted and without effect
    shard_uds_path: str | None = without_effect(
        None, "No effect: sockets get a folder of their own."
    )
    disable_custom_kernels: bool = without_effect(False, "No effect: nothing depends on it.")
    weights_cache_override: str | None = without_effect(
        None, "No effect; a local folder is given as --model-id."
    )
    ngrok: bool = without_effect(False, "No effect: no tunnel is opened.")
    ngrok_authtoken: str | None = without_effect(None, "No effect: no tunnel is opened.")
    ngrok_edge: str | None = without_effect(None, "No effect: no tunnel is opened.")

    def ignored(self) -> list[str]:
        """The flags, as written, that were given another value than their default for nothing."""
        names = []
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("effect") is False:
                given = name in self.model_fields_set and getattr(self, name) != field.default
                names += ["--" + name.replace("_", "-")] if given else []
        return names
