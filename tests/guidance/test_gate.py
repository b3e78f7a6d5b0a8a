"""Many different grammars at once, none of them costly, through the pool and through a server."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import tiercel.eyas
from support.server import make_server
from tiercel.api.grammar import GrammarGate, json_schema
from tiercel.errors import Overloaded
from tiercel.guidance import gate as grammars
from tiercel.sandbox.pool import SandboxPool
from tiercel.wire.request import Grammar

EYAS = Path(tiercel.eyas.__file__).parent
STREAMS = 4  # that keep the engine busy


def schema(number: int) -> dict[str, object]:
    """As applications send them: a few fields, some of them nested."""
    text = {"type": "string"}
    address = {"type": "object", "properties": {"street": text, "zip": {"type": "integer"}}}
    return {
        "type": "object",
        "properties": {
            f"name_{number}": text,
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": text},
            "address": address,
        },
        "required": [f"name_{number}", "age"],
    }


@pytest.mark.parametrize("count", [16, 32])
def test_a_crowd_of_harmless_grammars_meets_no_verdict_but_good(count: int) -> None:
    """A machine that has no time for all of them says so, and then to try again."""

    async def ends() -> list[str | BaseException | None]:
        pool = SandboxPool()
        grammars.add_to(pool, str(EYAS))
        pool.prewarm()
        try:
            while pool.state(grammars.JOB).ready == 0:
                await asyncio.sleep(0.02)
            gate = GrammarGate(lambda grammar: grammars.why_not(pool, grammar))
            asked: list[Grammar] = [json_schema(schema(number)) for number in range(count)]
            began = time.monotonic()
            found = await asyncio.gather(*map(gate.check, asked), return_exceptions=True)
            refused = [end for end in found if isinstance(end, Overloaded)]
            print(f"{count} in {time.monotonic() - began:.2f} s, {len(refused)} to try again")
            for grammar, end in zip(asked, found, strict=True):
                if isinstance(end, Overloaded):  # nothing of that was remembered
                    await gate.check(grammar)
            return list(found)
        finally:
            await pool.close()

    found = asyncio.run(ends())
    assert {type(end) for end in found} <= {type(None), Overloaded}, found
    assert found[0] is None


@pytest.mark.slow
def test_a_crowd_beside_a_busy_engine_is_not_refused(tmp_path: Path) -> None:
    with make_server(tmp_path) as server, ThreadPoolExecutor(STREAMS + 16) as threads:
        url = f"{server.url}/generate"

        def keep_busy(number: int) -> int:
            parameters = {"max_new_tokens": 300, "stop": ["\x00"]}
            body = {"inputs": f"Stream {number}", "parameters": parameters}
            return httpx.post(url, json=body, timeout=120).status_code

        def ask(number: int) -> tuple[int, str, str | None]:
            grammar = {"type": "json", "value": json.dumps(schema(number))}
            body = {"inputs": "Hi", "parameters": {"max_new_tokens": 2, "grammar": grammar}}
            answer = httpx.post(url, json=body, timeout=60)
            return answer.status_code, answer.text, answer.headers.get("retry-after")

        assert ask(99)[0] in (200, 429)  # a child has begun
        streams = [threads.submit(keep_busy, number) for number in range(STREAMS)]
        time.sleep(0.5)
        answers = list(threads.map(ask, range(16)))
        assert [stream.result() for stream in streams] == [200] * STREAMS
        statuses = [status for status, _, _ in answers]
        print(f"{statuses.count(200)} of 16 served, {statuses.count(429)} to try again")
        assert set(statuses) <= {200, 429}, answers
        assert statuses.count(200) > 0
        assert all(after for status, _, after in answers if status == 429)
        assert server.stop() == 0
