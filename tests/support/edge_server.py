"""The real HTTP edge under a real uvicorn on loopback, in a thread, over a scripted engine."""

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import httpx
import uvicorn

from support.scripted_engine import Play, ScriptedEngine, speak
from tiercel import eyas
from tiercel.api.app import create_app
from tiercel.api.auth import KeyRing
from tiercel.api.edge import ServerState
from tiercel.api.http_protocol import ReceiveLimits, limited_protocol
from tiercel.api.options import EdgeOptions
from tiercel.api.tracing import Traces
from tiercel.guidance import gate as grammars
from tiercel.sandbox.pool import SandboxPool
from tiercel.settings import Settings
from tiercel.telemetry.metrics import Metrics
from tiercel.text.chat import ChatTemplate
from tiercel.text.tokenizer import Tokenizer

STORY = " a story of the sea and the ships"
TOKENIZER = Tokenizer.load(eyas.path())
(EOS,) = TOKENIZER.eos_token_ids


def ids(text: str) -> list[int]:
    """The tokens of a text, for an engine to say."""
    return TOKENIZER.encode(text)


def say(text: str, *, eos: bool = False, **timing: float) -> Play:
    """An engine that says a text, and then ends or says it again."""
    return speak([*ids(text), *([EOS] if eos else [])], **timing)  # type: ignore[arg-type]


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for what another thread does. Fails the test after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.005)


class EdgeServer:
    """Use as a context: `url` is served inside. `options` are EdgeOptions' fields."""

    def __init__(
        self,
        play: Play | None = None,
        *,
        engine: ScriptedEngine | None = None,
        keys: KeyRing | None = None,
        receive: ReceiveLimits | None = None,
        template: ChatTemplate | None = None,
        traces: Traces | None = None,
        **options: Any,
    ) -> None:
        limits = {"model_id": "test/model", "max_input_tokens": 64, "max_total_tokens": 128}
        self.options = EdgeOptions(**{**limits, **options})
        play = play or say(" a story of the sea and the ships")
        self.engine = engine or ScriptedEngine(play)
        self.metrics = Metrics()
        self.metrics.configure(self.options)
        self.state = ServerState()
        sandbox = SandboxPool()
        template = template or ChatTemplate.load(eyas.path())
        template.add_to(sandbox)
        grammars.add_to(sandbox, str(eyas.path()))
        self.app = create_app(
            self.engine, TOKENIZER, self.options, self.metrics, self.state, keys, traces,
            chat_template=template, sandbox=sandbox,
        )  # fmt: skip
        self.uvicorn = uvicorn.Server(
            uvicorn.Config(
                self.app,
                http=limited_protocol(receive or ReceiveLimits()),
                ws="none",
                log_config=None,
                access_log=False,
                # As the server's own. uvicorn's 5 s are httpx's, too: whichever ends first, a
                # client that comes back just then is cut off.
                timeout_keep_alive=math.ceil(Settings.model_fields["idle_timeout"].default),
            )
        )
        self._thread = threading.Thread(target=self._serve, name="edge")

    def __enter__(self) -> Self:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread.start()
        until(lambda: self.uvicorn.started)
        self.http = httpx.Client(base_url=self.url, timeout=20)
        return self

    def __exit__(self, *error: object) -> None:
        self.http.close()
        self.uvicorn.should_exit = True
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        self.uvicorn.run(sockets=[self._socket])

    def post(self, path: str, body: object, **more: Any) -> httpx.Response:
        """POST JSON, with `json.dumps` as it comes."""
        return self.http.post(path, content=json.dumps(body), headers=_JSON, **more)

    def generate(self, inputs: str = "Hello there", /, **parameters: Any) -> httpx.Response:
        """POST /generate with parameters."""
        return self.post("/generate", {"inputs": inputs, "parameters": parameters})

    def events(
        self, inputs: str = "Hello there", /, path: str = "/generate_stream", **parameters: Any
    ) -> list[dict[str, Any]]:
        """All events of a stream that must answer 200."""
        body = {"inputs": inputs, "parameters": parameters, "stream": True}
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return parse_events(response.content)

    @contextmanager
    def stream(self, inputs: str = "Hello there", /, **parameters: Any) -> Iterator[httpx.Response]:
        """An open stream."""
        body = json.dumps({"inputs": inputs, "parameters": parameters})
        with self.http.stream("POST", "/generate_stream", content=body, headers=_JSON) as response:
            yield response

    def value(self, name: str, **labels: str) -> float:
        """One sample of /metrics by its name as written; 0 if it is not there."""
        braced = ",".join(f'{label}="{value}"' for label, value in labels.items())
        series = f"{name}{{{braced}}}" if braced else name
        for line in self.http.get("/metrics").text.splitlines():
            found, _, value = line.rpartition(" ")
            if found == series:
                return float(value)
        return 0.0


_JSON = {"content-type": "application/json"}


def parse_events(content: bytes) -> list[dict[str, Any]]:
    """The documents of the events, after checking the framing byte by byte."""
    *events, rest = content.split(b"\n\n")
    assert rest == b""
    documents = []
    for event in events:
        if event == b":":
            continue
        assert event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event, event
        documents.append(json.loads(event[len(b"data: ") :]))
    return documents
