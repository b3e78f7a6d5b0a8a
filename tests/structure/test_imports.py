"""Import rules that a static checker cannot see: what is loaded at run time, and by whom."""

import subprocess
import sys

import pytest

TORCH_FREE = [
    "tiercel.api.app",
    "tiercel.cache",
    "tiercel.cache.pool",
    "tiercel.engine.client",
    "tiercel.engine.streams",
    "tiercel.engine.supervisor",
    "tiercel.errors",
    "tiercel.sandbox.fork_server",
    "tiercel.sandbox.pool",
    "tiercel.scheduler.scheduler",
    "tiercel.server",
    "tiercel.settings",
    "tiercel.telemetry.logs",
    "tiercel.telemetry.metrics",
    "tiercel.telemetry.traces",
    "tiercel.text.chat",
    "tiercel.text.chat_render",
    "tiercel.text.detokenizer",
    "tiercel.text.stop",
    "tiercel.text.tokenizer",
    "tiercel.wire.messages",
    "tiercel_kernels.benchmark.bounds",
]
ENGINE = [
    "tiercel.engine.core",
    "tiercel.engine.inline",
    "tiercel.engine.assemble",
    "tiercel.worker.worker",
]
WEB_PACKAGES = [
    "fastapi",
    "jinja2",
    "opentelemetry",
    "prometheus_client",
    "psutil",
    "pydantic",
    "rich",
    "sse_starlette",
    "starlette",
    "typer",
    "uvicorn",
    "zmq",
]

_IMPORT_WITHOUT = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Absent())
importlib.import_module({module!r})
"""


def _import_without(module: str, absent: list[str]) -> "subprocess.CompletedProcess[str]":
    script = _IMPORT_WITHOUT.format(module=module, absent=absent)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("module", TORCH_FREE)
def test_imports_without_torch_installed(module: str) -> None:
    result = _import_without(module, ["torch", "transformers", "triton", "bitsandbytes"])
    assert result.returncode == 0, result.stderr


# What a GPU host has none of either, beside the web packages.
NOT_ON_GPU_HOSTS = [
    "bitsandbytes",
    "httptools",
    "hypothesis",
    "jsonschema",
    "llguidance",
    "pydantic_settings",
    "uvloop",
]


@pytest.mark.parametrize("module", ["tiercel.bench.gpu.__main__", "tiercel.bench.gpu.baseline"])
def test_the_bench_for_gpus_needs_what_gpu_hosts_have(module: str) -> None:
    result = _import_without(module, WEB_PACKAGES + NOT_ON_GPU_HOSTS)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ENGINE)
def test_the_engine_imports_without_the_web_packages(module: str) -> None:
    result = _import_without(module, WEB_PACKAGES)
    assert result.returncode == 0, result.stderr


def test_the_absence_is_real() -> None:
    result = _import_without("tiercel.worker.worker", ["torch"])
    assert result.returncode != 0
    assert "torch is not installed here" in result.stderr
