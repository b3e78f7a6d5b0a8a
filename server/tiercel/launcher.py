"""The `text-generation-launcher` command: TGI's name, flags and defaults for `tiercel serve`.

Flags are the fields of Settings, as for `tiercel serve`; only defaults that differ stand here.
"""

import sys

import typer
from pydantic import Field

from tiercel.cli import run, serve_command, wants_json
from tiercel.platform_variables import ANY_ADDRESS
from tiercel.secret_flags import hide
from tiercel.settings import Settings


class LauncherSettings(Settings):
    """Settings with TGI's defaults."""

    hostname: str = Field(ANY_ADDRESS, description="Address to listen on.")


app = typer.Typer(
    name="text-generation-launcher", add_completion=False, pretty_exceptions_enable=False
)
app.command()(serve_command(LauncherSettings))


def main() -> None:
    """The entry point."""
    hide(sys.argv[1:])
    run(app, "text-generation-launcher", as_json=wants_json(sys.argv[1:]))


if __name__ == "__main__":
    main()
