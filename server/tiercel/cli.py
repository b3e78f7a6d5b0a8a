"""The `tiercel` command: serve, plan, download, convert, healthcheck, bench.

Every flag of `serve` is a field of Settings: its name, type, default and help stand there, once.
"""

import inspect
import logging
import sys
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from tiercel import __version__
from tiercel.errors import StartupError
from tiercel.secret_flags import hide
from tiercel.settings import Settings, load_settings
from tiercel.settings_sources import LogShape
from tiercel.telemetry.logs import configure_logging, speaks_json
from tiercel.tgi_flags import TgiFlags

logger = logging.getLogger("tiercel")

app = typer.Typer(
    name="tiercel",
    help="An HTTP inference server for the Falcon language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_SHORT = {"port": ["-p"], "env": ["-e"]}
# What platforms append to a container's command (SageMaker: `docker run IMAGE serve`).
_PLATFORM_ARGUMENT = "serve"


def _option(kind_of_settings: type[Settings], name: str) -> inspect.Parameter:
    """One Settings field as a typer option; not given is None, so that other sources can speak."""
    field = kind_of_settings.model_fields[name]
    kind = _plain_type(field.annotation)
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        flag = f"{flag}/--no-{name.replace('_', '-')}"
    default = "" if field.default in (None, ()) else f" [default: {field.default}]"
    option = typer.Option(
        flag,
        *_SHORT.get(name, []),
        help=f"{field.description}{default}",
        show_default=False,
        rich_help_panel="TGI's flags without a use" if name in TgiFlags.model_fields else None,
    )
    annotated = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotated
    )


def _plain_type(annotation: Any) -> Any:
    """The type typer should parse: constraints and choices are checked by Settings."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _plain_type(next(arg for arg in get_args(annotation) if arg is not type(None)))
    if origin is Annotated:
        return _plain_type(get_args(annotation)[0])
    if origin is Literal:
        return str
    if origin is tuple:
        return list[str]
    return annotation


def serve_command(kind: type[Settings]) -> Callable[..., None]:
    """A command that serves; its flags are the fields of `kind`."""

    def serve(model: str | None = None, **flags: Any) -> None:
        """Serve a Falcon over HTTP; without a model, the embedded eyas."""
        if model == _PLATFORM_ARGUMENT:
            model = None
        if model is not None and flags.get("model_id") not in (None, model):
            raise typer.BadParameter("give the model as argument or as --model-id, not both")
        flags["model_id"] = model if model is not None else flags.get("model_id")
        flags = {name: _value(value) for name, value in flags.items()}
        settings = load_settings(kind, **flags)
        if settings.json_output:
            configure_logging(settings.log_level, json=True)
        from tiercel.server import serve as run_server

        raise typer.Exit(run_server(settings))

    argument = typer.Argument(help="Same as --model-id.", show_default=False)
    model = inspect.Parameter(
        "model",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[str | None, argument],
    )
    names = sorted(kind.model_fields, key=lambda name: name in TgiFlags.model_fields)
    parameters = [model, *(_option(kind, name) for name in names)]
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {item.name: item.annotation for item in parameters}
    return serve


def _value(given: Any) -> Any:
    """Repeatable flags come as a list, an empty one when they are not given."""
    return (tuple(given) or None) if isinstance(given, list) else given


app.command("serve")(serve_command(Settings))


@app.command()
def plan(
    model: Annotated[
        str, typer.Argument(help="Folder, config.json, hub name, or falcon-7b, -11b, -40b, ...")
    ],
    gpu: Annotated[
        str | None, typer.Option(help="a10g, a100-40, a100-80, h100, h200, or GB such as 48.")
    ] = None,
    num_shard: Annotated[int, typer.Option(help="Cards that share the model.")] = 1,
    quantize: Annotated[
        str | None, typer.Option(help="bitsandbytes, bitsandbytes-nf4 or bitsandbytes-fp4.")
    ] = None,
    double_quant: Annotated[
        bool, typer.Option("--double-quant", help="4 bits: quantize the statistics, too.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the checkpoint's.")
    ] = None,
    max_batch_prefill_tokens: Annotated[
        int, typer.Option(help="Most prompt tokens of one step.")
    ] = 4096,
    max_batch_size: Annotated[int, typer.Option(help="Sequences that run at once.")] = 128,
    max_total_tokens: Annotated[
        int | None, typer.Option(help="Longest sequence; the model's context.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch on the hub.")] = None,
) -> None:
    """Say what fits on which GPU, and how fast it could be: from config.json alone.

    Without --gpu all cards are compared. Exits with 5 where the setting does not fit.
    """
    from tiercel.plan.command import PlanRequest, run_plan

    request = PlanRequest(
        model=model,
        gpu=gpu,
        num_shard=num_shard,
        quantize=quantize,
        double_quant=double_quant,
        dtype=dtype,
        max_batch_prefill_tokens=max_batch_prefill_tokens,
        max_batch_size=max_batch_size,
        max_total_tokens=max_total_tokens,
        revision=revision,
    )
    raise typer.Exit(run_plan(request))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder with pytorch_model*.bin files.")],
    target: Annotated[Path, typer.Argument(help="Folder to make, with safetensors files.")],
) -> None:
    """Turn a pickle checkpoint into safetensors, once and apart from serving.

    Reads with weights_only: a file that holds anything but tensors is refused, nothing in it runs.
    """
    from tiercel.model.convert import convert as run_convert

    run_convert(source, target)


@app.command()
def download(
    model: Annotated[str, typer.Argument(help="Hub name, owner/name.")],
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder for the files; without it, the cache that `serve` looks into."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch.")] = None,
    huggingface_hub_cache: Annotated[
        str | None, typer.Option(help="Folder of downloaded models.")
    ] = None,
) -> None:
    """Fetch a model now, so that serving it needs no network. Prints its folder.

    Afterwards `HF_HUB_OFFLINE=1 tiercel serve` with the same name, or with the folder, opens no
    socket but its own. Only safetensors and text files are fetched, never code or pickles.
    """
    from tiercel.model.hub import resolve_model

    cache = load_settings(huggingface_hub_cache=huggingface_hub_cache).huggingface_hub_cache
    typer.echo(resolve_model(model, revision, cache_dir=cache, into=folder))


@app.command()
def healthcheck(
    url: Annotated[
        str | None,
        typer.Argument(help="Address of the server; this machine, at the port of PORT or 3000."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 5.0,
) -> None:
    """Exit 0 if the server at URL is healthy, 1 if not. For container health checks."""
    try:
        url = url or f"http://127.0.0.1:{load_settings().port}"
        request = urllib.request.Request(f"{url.rstrip('/')}/health")  # noqa: S310 (user's address)
        # A proxy that the environment names is not for the server next door.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout):
            raise typer.Exit(0)
    except (urllib.error.URLError, OSError, ValueError, StartupError) as error:
        typer.echo(f"unhealthy: {error}", err=True)
        raise typer.Exit(1) from None


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    scenario: Annotated[
        str, typer.Argument(help="throughput, prefix, interference, disconnect or grammar.")
    ],
    url: Annotated[
        str | None, typer.Option(help="A running server; without it, one is started.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A folder, a hub name, eyas, or random-150m for a random checkpoint."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="How often to measure.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the report here.")] = None,
) -> None:
    """Measure a server on this machine. Further flags are passed on to `serve`."""
    from tiercel.bench.run import run_bench

    report = run_bench(
        scenario, url=url, model=model, rounds=rounds, json_path=json, flags=tuple(context.args)
    )
    raise typer.Exit(0 if report.passed else 1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def run(command: typer.Typer, name: str, *, as_json: bool = False) -> None:
    """Run a command line to its end: a StartupError is one line and its exit code.

    `as_json`: whatever is said is one JSON object per line, wrong flags included.
    """
    if as_json:
        configure_logging("info", json=True)
    try:
        sys.exit(command(standalone_mode=not as_json) or 0)
    except StartupError as error:
        line = " ".join(str(error).split())
        if speaks_json():
            logger.critical(line, extra={"fields": {"exit_code": error.exit_code}})
        else:
            print(f"{name}: error: {line}", file=sys.stderr)  # noqa: T201 (the command's answer)
        sys.exit(error.exit_code)
    except Exception as error:
        # A wrong flag, in the words of the parser, whose types depend on its version.
        sentence, code = (getattr(error, each, None) for each in ("format_message", "exit_code"))
        if not as_json or sentence is None or not isinstance(code, int):
            raise
        logger.critical(sentence(), extra={"fields": {"exit_code": code}})
        sys.exit(code)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether `serve` with these arguments says everything in JSON, as far as is known so early."""
    for argument in reversed(arguments):
        if argument in ("--json-output", "--no-json-output"):
            return argument == "--json-output"
    try:
        return LogShape().json_output
    except ValueError:  # JSON_OUTPUT is no truth value, which the settings will say
        return False


def main() -> None:
    """The entry point of `tiercel`."""
    serving = sys.argv[1:2] == ["serve"]
    if serving:
        hide(sys.argv[1:])
    run(app, "tiercel", as_json=serving and wants_json(sys.argv[2:]))


if __name__ == "__main__":
    main()
