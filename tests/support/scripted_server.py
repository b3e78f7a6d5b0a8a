"""A tiny asyncio HTTP server that speaks the native routes on a schedule the test decides."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class ScriptedServer:
    """Streams `max_new_tokens` events: one after `first_s(payload)`, the others every `gap_s()`."""

    first_s: Callable[[dict[str, Any]], float] = lambda payload: 0.0
    gap_s: Callable[[], float] = lambda: 0.0
    split_bytes: int | None = None  # writes pieces of this size, to cut events apart
    break_after: int | None = None  # closes the connection after that many events
    metrics: dict[str, float] = field(default_factory=dict)
    streaming: int = 0
    port: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._answer(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ", 2)[1]
            length = [line for line in head.split("\r\n") if line.startswith("Content-Length")]
            body = await reader.readexactly(int(length[0].partition(":")[2])) if length else b""
            if path == "/generate_stream":
                await self._stream(writer, json.loads(body))
            elif path == "/tokenize":
                words = json.loads(body)["inputs"].split()
                self._whole(writer, json.dumps([{"id": 1} for word in words for _ in range(2)]))
            else:
                samples = {"tgi_batch_current_size": self.streaming, **self.metrics}
                self._whole(writer, "".join(f"{k} {v}\n" for k, v in samples.items()))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _whole(self, writer: asyncio.StreamWriter, body: str) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nx-test: yes\r\n\r\n"
        writer.write((head + body).encode())

    async def _stream(self, writer: asyncio.StreamWriter, payload: dict[str, Any]) -> None:
        self.streaming += 1
        try:
            await self._write(
                writer,
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\n\r\n",
            )
            count = payload["parameters"]["max_new_tokens"]
            for index in range(1, count + 1):
                await asyncio.sleep(self.gap_s() if index > 1 else self.first_s(payload))
                await self._write(writer, _chunk(index, last=index == count))
                if index == self.break_after:
                    return
            await self._write(writer, b"0\r\n\r\n")
        finally:
            self.streaming -= 1

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        size = self.split_bytes or len(data)
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await writer.drain()
            if self.split_bytes:
                await asyncio.sleep(0)


def _chunk(index: int, *, last: bool) -> bytes:
    # The text looks like a token event itself, as generated text may.
    token = {"id": index, "text": 'say "token":{} \r\n', "logprob": -0.5, "special": False}
    event = {"index": index, "token": token, "generated_text": "all" if last else None}
    body = f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"
