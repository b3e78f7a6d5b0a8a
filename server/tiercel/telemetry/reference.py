"""The page docs/metrics.md, written from the families themselves: `python -m` this module.

A test compares the page with what this prints.
"""

import sys

from tiercel.telemetry.aliases import VLLM_NAMES
from tiercel.telemetry.catalogue import Family
from tiercel.telemetry.metrics import Metrics

_HEAD = """\
# Metrics

Written by `python -m tiercel.telemetry.reference > docs/metrics.md`; do not edit.

`GET /metrics` answers in Prometheus' text format, or in OpenMetrics with trace exemplars if
`Accept` prefers it, as Prometheus does. `--prometheus-port` serves the same page on a port of its
own; `--protect-metrics` asks for an admin key on both. Numbers of the engine process come with its
messages: there is one page per server.

- Names that begin with `tgi_` are TGI's, letter by letter: no `_total`, no `_created`. In
  OpenMetrics, where a counter must end in `_total`, those counters have the type `unknown`.
- A request is counted once. TGI counted a chat request twice, and completions once more than
  they had prompts.
- `--metrics-buckets lean` gives the token and batch families at most 20 buckets. Their names stay;
  what is lost is precision of quantiles.
- `--metrics-alias vllm` adds the names of the last table.
- `process_*` and `python_*` are those that prometheus_client gives every Python process, of the
  API process here.
- Not exposed: `tgi_batch_max_total_tokens` and `tgi_batch_total_tokens`, which TGI described and
  never exported. Not there yet: counters of speculation.
- Several ranks that share a model are one server with one page: `tiercel_rank_*` say what each
  holds and how long ago it was heard. A step is one of all ranks together.
- A whole bound of `tgi_*` is `le="1"` in the text format, as TGI's exporter writes it. In
  OpenMetrics, and of all other families, it is `le="1.0"`.
"""

_ABOUT_TGIS = """\
`tgi_request_skipped_tokens` is always 0, because nothing is speculated yet: one observation of 0
for each step keeps TGI's dashboard whole. It also has `_bucket` series, which a summary has not:
that dashboard asks for them. What TGI measured as concatenating batches is, here, planning a step
in which new requests join running ones; batches themselves are never rebuilt.
"""

_ABOUT_OURS = """\
The phases of the start are `resolve`, `tokenizer`, `engine`, then `load` and `warmup` within
`engine`, and `total`. The kinds of memory are `weights`, `kv_cache`, `api_resident` and
`engine_resident`, those of a rank the first two. A watchdog that trips, or an engine that dies,
ends the process (exit code 4, or 6 for a lost rank): what there is to see is `tiercel_engine_up` at
0 for a few seconds, and the restart count of whoever starts it again.
"""


class _Limits:
    max_input_tokens = 2047
    max_total_tokens = 2048


def _all_families() -> list[Family]:
    metrics = Metrics()
    metrics.configure(_Limits())
    metrics.server.add_health(float, float, float)
    metrics.server.add_edge(float, float)
    metrics.server.add_spans(float, float)
    return metrics.families


def _bounds(family: Family) -> str:
    if not family.bounds:
        return ""
    return f"{len(family.bounds)}: {family.bounds[0]:.6g} to {family.bounds[-1]:.6g}"


def _row(family: Family) -> str:
    known: dict[str, list[str]] = {}
    names = family.instrument.label_names
    for values in family.values:
        for label, value in zip(names, values, strict=True):
            known.setdefault(label, []).append(value)
    labels = ", ".join(
        f"`{label}`" + (f" ({', '.join(known[label])})" if label in known else "")
        for label in names
    )
    return f"| `{family.name}` | {family.kind} | {labels} | {family.text} | {_bounds(family)} |"


def _table(families: list[Family]) -> str:
    head = "| Name | Type | Labels | Meaning | Buckets |\n|---|---|---|---|---|\n"
    return head + "".join(_row(family) + "\n" for family in families)


def page() -> str:
    """The whole page. Bounds that follow from the limits are those of a context of 2,048 tokens."""
    families = _all_families()
    theirs = [family for family in families if family.name.startswith("tgi_")]
    ours = [family for family in families if family not in theirs]
    aliases = "".join(f"| `{ours}` | `{theirs}` |\n" for ours, theirs in VLLM_NAMES.items())
    return (
        f"{_HEAD}\n## TGI's families\n\n{_table(theirs)}\n{_ABOUT_TGIS}"
        f"\n## Our families\n\n{_table(ours)}\n{_ABOUT_OURS}"
        "\n## vLLM's names\n\nWith `model_name` beside the labels.\n\n"
        f"| Ours | vLLM's |\n|---|---|\n{aliases}"
    )


if __name__ == "__main__":
    sys.stdout.write(page())
