"""The configurations of the contract's section 11 as real server processes, started when needed,
and a client that shows their answers as they are.
"""

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from support.conformance_events import Events, read_events
from support.conformance_model import make_model, with_begin_token, without_chat_template
from support.server import engine_of, make_server
from tiercel.bench.client import parse_metrics
from tiercel.bench.server import ServerExited, ServerProcess

API_KEY = "Secret1"
ORIGIN = "https://a.example"
KEEP_ALIVE_S = 0.5
LIMITS = ("--max-input-tokens", "64", "--max-total-tokens", "128")
LONG_LIMITS = ("--max-input-tokens", "1024", "--max-total-tokens", "2048")
# Configurations that do not get into each other's way share a server: starting one takes seconds.
# What the contract's configuration has not is there for a statement outside of it (17, 61, 88,
# 129, 130).
FLAGS: Mapping[str, tuple[str, ...]] = {
    "A": LIMITS,
    "B": (*LIMITS, "--api-key", API_KEY, "--cors-allow-origin", ORIGIN),
    "C": (
        *LIMITS, "--enable-prefill-logprobs", "--no-prefix-caching",
        "--watermark-gamma", "0.25", "--watermark-delta", "20",
    ),
    "DE": (*LIMITS, "--disable-grammar-support"),
    "FG": (*LONG_LIMITS, "--max-concurrent-requests", "1", "--keep-alive", str(KEEP_ALIVE_S)),
}  # fmt: skip
VARIABLES = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # ms until spans leave, where they are exported
JSON = {"content-type": "application/json"}
FAILED = "tgi_request_failure"

Result = TypeVar("Result")


class Api:
    """One server as a client sees it; `base` is the process behind it."""

    def __init__(self, server: ServerProcess, startup: list[int | None]) -> None:
        self.base = server
        self.startup = startup  # what /health said until it said 200; None: nobody answered
        self.http = httpx.Client(base_url=server.url, timeout=60)
        # How the first request was answered, as soon as the server was healthy.
        self.first = self.try_generate("Hello", max_new_tokens=2).status_code

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(path, headers=_names(headers))

    def ask_get(self, path: str) -> Any:
        """The JSON of a GET that must be 200."""
        return answered(self.get(path))

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        """POST JSON. Header names are written with underscores."""
        content = body if isinstance(body, bytes) else json.dumps(body)
        return self.http.post(path, content=content, headers={**JSON, **_names(headers)})

    def ask(self, path: str, body: object, **headers: str) -> Any:
        """The JSON of an answer that must be 200."""
        return answered(self.post(path, body, **headers))

    def try_generate(self, inputs: str, /, **parameters: Any) -> httpx.Response:
        return self.post("/generate", {"inputs": inputs, "parameters": parameters})

    def generate(self, inputs: str, /, **parameters: Any) -> dict[str, Any]:
        """`/generate` with `parameters`, so greedy unless they say otherwise."""
        return dict(answered(self.try_generate(inputs, **parameters)))

    def details(self, inputs: str, /, **parameters: Any) -> dict[str, Any]:
        """The details of `generate`."""
        return dict(self.generate(inputs, details=True, **parameters)["details"])

    def ids(self, inputs: str, /, **parameters: Any) -> list[int]:
        """The token ids of `generate`."""
        return [token["id"] for token in self.details(inputs, **parameters)["tokens"]]

    def tokenize(self, text: str) -> list[dict[str, Any]]:
        return list(self.ask("/tokenize", {"inputs": text}))

    def events(self, inputs: str, /, **parameters: Any) -> Events:
        """A whole native stream."""
        return self.stream("/generate_stream", {"inputs": inputs, "parameters": parameters})

    def stream(self, path: str, body: Mapping[str, Any]) -> Events:
        """All events of a stream that must answer 200."""
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "text/event-stream"
        return read_events(response.content)

    @contextmanager
    def open_stream(
        self, path: str, body: Mapping[str, Any]
    ) -> Iterator[tuple[httpx.Response, Iterator[bytes]]]:
        """A stream that has given its first event: the response and its further bytes.

        Leaving closes the connection, wherever the stream is.
        """
        with (
            httpx.Client(base_url=self.base.url, timeout=60) as http,
            http.stream("POST", path, content=json.dumps(body), headers=JSON) as response,
        ):
            pieces = response.iter_raw()
            next(pieces)
            yield response, pieces

    @contextmanager
    def busy(self, inputs: str = "<count>") -> Iterator[None]:
        """Inside, a request runs that would go on for seconds; leaving cancels it."""
        body = {"inputs": inputs, "parameters": {"max_new_tokens": 2000}}
        with self.open_stream("/generate_stream", body):
            yield
        self.wait_for("tgi_batch_current_size", lambda running: running == 0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the engine computes nothing: its process is stopped."""
        engine = engine_of(self.base)
        engine.suspend()
        try:
            yield
        finally:
            engine.resume()

    def metrics(self) -> dict[str, float]:
        """All samples by their names as written, labels included."""
        return parse_metrics(self.get("/metrics").text)

    def failures(self, kind: str) -> float:
        """How many requests failed so."""
        return self.metrics().get(f'{FAILED}{{err="{kind}"}}', 0.0)

    def wait_for(self, name: str, accept: Callable[[float], bool], timeout_s: float = 20) -> None:
        """Poll until a sample (0 while it is missing) is accepted. Fails the test otherwise."""
        until(lambda: accept(self.metrics().get(name, 0.0)), timeout_s)

    def close(self) -> None:
        self.http.close()


class Servers:
    """Servers by configuration, each started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._apis: dict[str, Api] = {}
        self._models: dict[str, Path] = {}
        self.more_flags: dict[str, tuple[str, ...]] = {}

    def __getitem__(self, name: str) -> Api:
        api = self._apis.get(name)
        if api is None:
            api = self._apis[name] = self._start(name)
        return api

    def model(self, name: str = "A") -> Path:
        """The folder of a configuration's model."""
        if "A" not in self._models:
            self._models["A"] = make_model(self._folder / "model")
        variants = {"DE": without_chat_template, "FG": with_begin_token}
        if name in variants and name not in self._models:
            make = variants[name]
            self._models[name] = make(self._models["A"], self._folder / f"model-{name}")
        return self._models.get(name, self._models["A"])

    def forget(self, name: str) -> None:
        """This server has been ended; who needs it next gets a new one."""
        api = self._apis.pop(name)
        api.close()
        api.base.clean_up()

    def stop(self) -> None:
        """End all of them."""
        for name in list(self._apis):
            self.forget(name)

    def _start(self, name: str) -> Api:
        logs = self._folder / name
        logs.mkdir(exist_ok=True)
        flags = (*FLAGS[name], *self.more_flags.get(name, ()))
        server = make_server(logs, self.model(name), *flags, variables=VARIABLES)
        server.start()
        try:
            return Api(server, _wait_ready(server))
        except BaseException:
            server.clean_up()
            raise


def _wait_ready(server: ServerProcess) -> list[int | None]:
    """What `/health` said until it said 200. Raises ServerExited when the process ends first."""
    said: list[int | None] = []
    while (status := _health(server)) != 200:
        said.append(status)
        try:
            exit_code = server.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        raise ServerExited(exit_code, server.log())
    server.processes()
    return said


def _health(server: ServerProcess) -> int | None:
    """The status of `/health`; None when the connection is refused."""
    try:
        return server.get("/health")[0]
    except ConnectionRefusedError:
        return None


def answered(response: httpx.Response) -> Any:
    """The JSON of a 200."""
    assert response.status_code == 200, f"{response.status_code}: {response.text}"
    assert response.headers["content-type"] == "application/json"
    return response.json()


def refused(response: httpx.Response, status: int, error_type: str, *parts: str) -> str:
    """The sentence of a native JSON error, which must have this type and these parts."""
    assert response.status_code == status, f"{response.status_code}: {response.text}"
    document = response.json()
    assert set(document) == {"error", "error_type"}, document
    assert document["error_type"] == error_type, document
    assert all(part in document["error"] for part in parts), document
    return str(document["error"])


def invalid(response: httpx.Response, *parts: str) -> None:
    """A value error of the native routes that names these parts."""
    sentence = refused(response, 422, "validation", *parts)
    assert sentence.startswith("Input validation error: ")


def refused_openai(response: httpx.Response, status: int, error_type: str, *parts: str) -> str:
    """The message of an error of the `/v1` routes: OpenAI's shape, TGI's type beside it."""
    assert response.status_code == status, f"{response.status_code}: {response.text}"
    document = response.json()
    assert set(document) == {"error", "error_type"}, document
    assert set(document["error"]) == {"message", "type", "param", "code"}, document
    assert document["error_type"] == error_type, document
    message = str(document["error"]["message"])
    assert all(part in message for part in parts), document
    return message


def unreadable(response: httpx.Response, status: int, *parts: str) -> None:
    """A refusal of the body itself: plain text."""
    assert response.status_code == status, f"{response.status_code}: {response.text}"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert all(part in response.text for part in parts), response.text


def used(answer: Mapping[str, Any]) -> dict[str, int]:
    """An OpenAI answer's usage without what the prefix cache had of it."""
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: answer["usage"][name] for name in names}


def near(found: Any, wanted: Any) -> bool:
    """Equal but for the last digits of numbers: a cached prefix is summed in another order."""
    if isinstance(found, float) and isinstance(wanted, float):
        return abs(found - wanted) < 1e-3
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(near(found[key], wanted[key]) for key in found)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(near, found, wanted))
    return bool(found == wanted)


def at_once(calls: list[Callable[[], Result]]) -> list[Result]:
    """Make all calls at the same time."""
    gate = threading.Barrier(len(calls))

    def go(call: Callable[[], Result]) -> Result:
        gate.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(go, calls))


def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Wait for what another process does. Fails the test after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def buckets(text: str, family: str) -> list[float]:
    """The finite bounds of a histogram's first series, in order."""
    found = re.findall(rf'^{family}_bucket{{(?:[^}}]*,)?le="([^"]+)"[^}}]*}} ', text, re.MULTILINE)
    bounds = [float(bound) for bound in found]
    end = bounds.index(float("inf"))
    return bounds[:end]


def _names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
