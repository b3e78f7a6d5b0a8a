"""Where a request's time goes, over the real engine: validation, queue, inference; contract 1.2."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from support.chats import CHAT, CLOCK, HI
from tiercel import eyas
from tiercel.api.app import create_app
from tiercel.api.edge import ServerState
from tiercel.api.options import EdgeOptions
from tiercel.engine.client import EngineHealth
from tiercel.engine.inline import InlineEngine
from tiercel.guidance import gate as grammars
from tiercel.sandbox.pool import SandboxPool
from tiercel.telemetry.metrics import Metrics
from tiercel.text.chat import ChatTemplate
from tiercel.text.tokenizer import Tokenizer
from tiercel.wire.messages import EngineReady, EngineStats, TokenDelta
from tiercel.wire.options import EngineOptions
from tiercel.wire.request import GenerationRequest

VALIDATION_S = 0.4
CUT_MS = 0.002  # a header is cut to a whole millisecond


class SlowTokenizer(Tokenizer):
    """Takes its time over every text."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        time.sleep(VALIDATION_S)
        return super().encode(text, add_special_tokens=add_special_tokens)


class Watched:
    """See EngineClient: another one, and when it was sent what, and said what."""

    def __init__(self, engine: InlineEngine) -> None:
        self._engine = engine
        self.sent: list[GenerationRequest] = []
        self.ended_s: list[float] = []
        self.queue_s: list[float] = []

    @property
    def ready(self) -> EngineReady:
        return self._engine.ready

    @property
    def stats(self) -> EngineStats | None:
        return self._engine.stats

    def health(self) -> EngineHealth:
        return self._engine.health()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        assert request.arrival_s <= time.monotonic()
        self.sent.append(request)
        try:
            async with aclosing(self._engine.generate(request)) as deltas:
                async for delta in deltas:
                    if delta.queue_s is not None:
                        self.queue_s.append(delta.queue_s)
                    yield delta
        finally:
            self.ended_s.append(time.monotonic())


class Answered:
    """One answer, its times in seconds, and what the engine saw of it."""

    def __init__(
        self, began_s: float, response: httpx.Response, engine: Watched, metrics: str
    ) -> None:
        assert response.status_code == 200, response.text
        self.began_s = began_s
        self.engine = engine
        self._headers = response.headers
        self._metrics = metrics

    def header(self, name: str) -> float:
        return int(self._headers[f"x-{name}-time"]) / 1e3

    def sum(self, family: str) -> float:
        """All that a histogram has observed."""
        (line,) = [x for x in self._metrics.splitlines() if x.startswith(f"{family}_sum")]
        return float(line.rpartition(" ")[2])

    def check(self) -> None:
        """The queue is the engine's; and nothing is left out of the sum, or counted twice."""
        waited_s = sum(self.engine.queue_s)
        assert self.header("queue") == pytest.approx(waited_s, abs=CUT_MS)
        for family in ("tgi_request_queue_duration", "tiercel_queue_time_seconds"):
            assert self.sum(family) == pytest.approx(waited_s, abs=CUT_MS)
        parts = sum(map(self.header, ("validation", "queue", "inference")))
        assert parts == pytest.approx(self.header("total"), abs=3 * CUT_MS)
        assert self.sum("tgi_request_validation_duration") >= VALIDATION_S


def ask(path: str, body: dict[str, Any]) -> Answered:
    """One request to a server that is idle but for it."""

    async def run() -> Answered:
        options = EngineOptions(model_path=str(eyas.path()), max_batch_total_tokens=2_048)
        inline = InlineEngine(options)
        engine, metrics, sandbox = Watched(inline), Metrics(), SandboxPool()
        edge = EdgeOptions("test/model", vocab_size=inline.ready.vocab_size)
        metrics.configure(edge)
        template = ChatTemplate.load(eyas.path())
        template.add_to(sandbox)
        grammars.add_to(sandbox, str(eyas.path()))
        app = create_app(
            engine, SlowTokenizer.load(eyas.path()), edge, metrics, ServerState(),
            chat_template=template, sandbox=sandbox,
        )  # fmt: skip
        transport = httpx.ASGITransport(app)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://tiercel") as http:
                status = 429
                while status == 429:  # the first sandbox child is still starting
                    began_s = time.monotonic()
                    response = await http.post(path, json=body, timeout=60)
                    status = response.status_code
                return Answered(began_s, response, engine, (await http.get("/metrics")).text)
        finally:
            await sandbox.close()
            inline.close()

    return asyncio.run(run())


def test_validation_is_no_part_of_the_queue() -> None:
    answered = ask("/generate", {"inputs": "Hello", "parameters": {"max_new_tokens": 4}})
    (request,) = answered.engine.sent
    assert request.arrival_s >= answered.began_s + VALIDATION_S
    assert answered.header("validation") >= VALIDATION_S
    answered.check()


def test_a_call_that_was_given_up_is_no_part_of_the_texts_queue() -> None:
    body = {"messages": HI, "tools": [CLOCK], "max_tokens": 3}  # which end within the name
    answered = ask(CHAT, body)
    call, text = answered.engine.sent
    assert call.grammar is not None and text.grammar is None
    assert call.arrival_s >= answered.began_s + 2 * VALIDATION_S
    assert text.arrival_s >= answered.engine.ended_s[0]
    assert len(answered.engine.queue_s) == 2
    answered.check()
