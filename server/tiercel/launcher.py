"""The `text-generation-launcher` command: TGI's name, flags and defaults for `tiercel serve`.

Flags are the fields of Settings, as for `tiercel serve`; only defaults that differ stand here.
"""

import typer
from pydantic import Field

from tiercel.cli import run, serve_command
from tiercel.platform_variables import ANY_ADDRESS
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
    run(app, "text-generation-launcher")


if __name__ == "__main__":
    main()
