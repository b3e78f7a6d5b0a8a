"""Where a request's time goes, over the real engine: validation, queue, inference; contract 1.2."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from support.chats import CHAT, HI
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
# An engine with nothing to do begins at once; what a busy machine may add is far less than what
# would be counted by mistake.
SOON_S = VALIDATION_S / 2
NAME = "zq_" * 21  # so many tokens that a call is cut off in its name


class SlowTokenizer(Tokenizer):
    """Takes its time over every text."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        time.sleep(VALIDATION_S)
        return super().encode(text, add_special_tokens=add_special_tokens)


class Watched:
    """See EngineClient: another one, and when it was sent what, and said what."""

    def __init__(self, engine: InlineEngine) -> None:
        self._engine = engine
        self.sent: list[tuple[GenerationRequest, float]] = []
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
        self.sent.append((request, time.monotonic()))
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

    def __init__(self, response: httpx.Response, engine: Watched, metrics: str) -> None:
        assert response.status_code == 200, response.text
        self.engine = engine
        self._headers = response.headers
        self._metrics = metrics

    def header(self, name: str) -> float:
        return int(self._headers[f"x-{name}-time"]) / 1e3

    def sum(self, family: str) -> float:
        """All that a histogram has observed."""
        (line,) = [x for x in self._metrics.splitlines() if x.startswith(f"{family}_sum")]
        return float(line.rpartition(" ")[2])

    def check_sum(self) -> None:
        """Nothing is left out and nothing counted twice; each is cut to a whole millisecond."""
        parts = sum(map(self.header, ("validation", "queue", "inference")))
        assert parts == pytest.approx(self.header("total"), abs=0.005)


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
                response = await http.post(path, json=body, timeout=60)
                while response.status_code == 429:  # the first sandbox child is still starting
                    response = await http.post(path, json=body, timeout=60)
                return Answered(response, engine, (await http.get("/metrics")).text)
        finally:
            await sandbox.close()
            inline.close()

    return asyncio.run(run())


def test_validation_is_no_part_of_the_queue() -> None:
    answered = ask("/generate", {"inputs": "Hello", "parameters": {"max_new_tokens": 4}})
    assert answered.header("validation") >= VALIDATION_S
    assert answered.header("queue") < SOON_S
    assert answered.header("inference") < SOON_S  # and taken from nothing twice
    answered.check_sum()
    ((request, sent_s),) = answered.engine.sent
    assert request.arrival_s == pytest.approx(sent_s, abs=SOON_S / 2)
    assert answered.sum("tgi_request_validation_duration") >= VALIDATION_S
    for family in ("tgi_request_queue_duration", "tiercel_queue_time_seconds"):
        assert answered.sum(family) < SOON_S


def test_a_call_that_was_given_up_is_no_part_of_the_texts_queue() -> None:
    tool = {"type": "function", "function": {"name": NAME}}
    body = {"messages": HI, "tools": [tool], "max_tokens": 30}
    answered = ask(CHAT, body)
    (call, _), (text, _) = answered.engine.sent
    assert call.grammar is not None and text.grammar is None
    assert text.arrival_s >= answered.engine.ended_s[0]
    assert len(answered.engine.queue_s) == 2
    waited_s = sum(answered.engine.queue_s)
    assert waited_s < SOON_S
    assert answered.header("queue") == pytest.approx(waited_s, abs=0.002)
    assert answered.header("validation") >= 2 * VALIDATION_S
    answered.check_sum()
    assert answered.sum("tgi_request_queue_duration") == pytest.approx(waited_s, abs=0.002)
    assert answered.sum("tiercel_queue_time_seconds") == pytest.approx(waited_s, abs=0.002)
