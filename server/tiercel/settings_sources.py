"""Where settings come from besides flags and files."""

from typing import Any

from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from tiercel.settings_text import is_address


class OurVariables(EnvSettingsSource):
    """The environment, but for what others mean by a name.

    HOSTNAME: Docker and shells set it to the machine's name. ENV: usually a stage's name.
    """

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        if not is_address(str(found.get("hostname", "localhost"))):
            del found["hostname"]
        found.pop("env", None)  # ENV=production is somebody else's
        return found


class LogShape(BaseSettings):
    """How log lines are to look where the settings as a whole cannot be read."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    json_output: bool = False
