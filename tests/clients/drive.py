"""Drives a client library for the tests: a task per line in, what the caller sees per line out.

It runs in the library's own environment and imports nothing else. A task names the library, sync or
async, the server's address, a key, a method, its arguments, and after how many items to close.
"""

import asyncio
import dataclasses
import inspect
import json
import sys
from importlib.metadata import version
from operator import attrgetter
from typing import Any

TIMEOUT_S = 30


def text_generation(task: dict[str, Any]) -> Any:
    import text_generation as library

    kind = library.Client if task["kind"] == "sync" else library.AsyncClient
    return kind(task["url"], headers=headers(task), timeout=TIMEOUT_S)


def huggingface_hub(task: dict[str, Any]) -> Any:
    import huggingface_hub as library

    kind = library.InferenceClient if task["kind"] == "sync" else library.AsyncInferenceClient
    return kind(task["url"], token=task["key"], timeout=TIMEOUT_S, **task["settings"])


def openai(task: dict[str, Any]) -> Any:
    import openai as library

    kind = library.OpenAI if task["kind"] == "sync" else library.AsyncOpenAI
    address = f"{task['url']}/v1"
    return kind(base_url=address, api_key=task["key"] or "-", max_retries=0, timeout=TIMEOUT_S)


def langchain(task: dict[str, Any]) -> Any:
    """An endpoint, or a chat over it; `settings` are the endpoint's."""
    from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

    endpoint = HuggingFaceEndpoint(
        endpoint_url=task["url"], server_kwargs={"headers": headers(task)}, **task["settings"]
    )
    return ChatHuggingFace(llm=endpoint) if task["chat"] else endpoint


LIBRARIES = {
    "text-generation": text_generation,
    "huggingface_hub": huggingface_hub,
    "langchain-huggingface": langchain,
    "openai": openai,
}


def headers(task: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {task['key']}"} if task["key"] else {}


def plain(value: Any) -> Any:
    """A library's own type as JSON has it."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


async def use(task: dict[str, Any], seen: dict[str, Any]) -> None:
    """Call and read; `seen` grows while the items come, so that it is there after an error."""
    client = LIBRARIES[task["library"]](task)
    try:
        method = attrgetter(task["method"])(client)
        result = method(*task["positional"], **task["arguments"])
        if inspect.isawaitable(result):
            result = await result
        if hasattr(result, "__aiter__"):
            await read_async(result, task["take"], seen)
            await close(result)
        elif hasattr(result, "__next__"):
            read(result, task["take"], seen)
            await close(result)
        else:
            seen["value"] = plain(result)
    finally:
        await close(client)


async def close(closable: Any) -> None:
    """By whatever name it is closed, if it is closed at all."""
    close = getattr(closable, "aclose", None) or getattr(closable, "close", None)
    closed = close() if close else None
    if inspect.isawaitable(closed):
        await closed


def read(stream: Any, take: int | None, seen: dict[str, Any]) -> None:
    seen["items"] = []
    for item in stream:
        seen["items"].append(plain(item))
        if len(seen["items"]) == take:
            break


async def read_async(stream: Any, take: int | None, seen: dict[str, Any]) -> None:
    seen["items"] = []
    async for item in stream:
        seen["items"].append(plain(item))
        if len(seen["items"]) == take:
            break


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        task = json.loads(line)
        seen: dict[str, Any] = {"version": version(task["library"])}
        try:
            asyncio.run(use(task, seen))
        except Exception as error:  # noqa: BLE001 - which one it is, is what the test asks
            seen["error"] = type(error).__name__
            seen["message"] = str(error)
        print(json.dumps(seen, default=str), file=answers, flush=True)


if __name__ == "__main__":
    main()
