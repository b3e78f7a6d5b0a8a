"""Every way in which the Python clients can be asked for a text, and how each tells of an error."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support.client_process import Seen

ENDPOINT = "langchain-huggingface"
KEY = "Secret1"
Ask = Callable[..., Seen]  # the fixture of tests/clients

# What TGI's `error_type` becomes in clients that read it, and the statuses in OpenAI's.
BY_TYPE = {
    "validation": "ValidationError",
    "overloaded": "OverloadedError",
    "generation": "GenerationError",
}
BY_OPENAI = {
    "validation": "UnprocessableEntityError",
    "overloaded": "RateLimitError",
    "generation": "APIStatusError",
}


@dataclass(frozen=True)
class Way:
    """One method of one library: `environment` is "own" (the server's) or "old" (its own)."""

    environment: str
    package: str
    kind: str  # "sync" or "async"
    method: str
    streams: bool = False
    chats: bool = False
    details: bool = False

    def __str__(self) -> str:
        """The name of its tests."""
        words = [self.package, self.environment if self.package == "huggingface_hub" else ""]
        words += [self.kind, self.method, "details" if self.details else ""]
        words += ["chat" if self.chats and self.package == ENDPOINT else ""]
        words += ["stream" if self.streams and "stream" not in self.method else ""]
        return "-".join(word for word in words if word)

    def task(self, prompt: str, max_tokens: int, **more: Any) -> dict[str, Any]:
        """What `ClientProcess.ask` takes. `more` are parameters of the generation."""
        if self.package == ENDPOINT:
            settings = {"max_new_tokens": max_tokens, **more}
            return {"positional": [prompt], "settings": settings, "chat": self.chats}
        arguments: dict[str, Any] = dict(more)
        given: Any = [{"role": "user", "content": prompt}] if self.chats else prompt
        arguments["max_tokens" if self._speaks_openai else "max_new_tokens"] = max_tokens
        if self.streams and "stream" not in self.method:
            arguments["stream"] = True
        if self.package == "openai":
            named = {"messages" if self.chats else "prompt": given}
            return {"arguments": {"model": "m", **named, **arguments}}
        if self.method == "text_generation":
            arguments |= {"details": self.details, "return_full_text": False}
        return {"positional": [given], "arguments": arguments}

    @property
    def _speaks_openai(self) -> bool:
        return self.chats or self.package == "openai"

    def error(self, refusal: str) -> str:
        """The exception's class for one of the refusals of `BY_TYPE`."""
        if self.package == "openai":
            return BY_OPENAI[refusal]
        if self.package != "text-generation" and self.chats:
            return self._by_status
        return BY_TYPE[refusal]

    @property
    def unauthorized(self) -> str:
        """The class for an unknown key, which TGI answers with an empty body: some trip over it."""
        asynchronous = self.environment == "old" and self.kind == "async"
        if self.package == "openai":
            return "AuthenticationError"
        if self.package == "text-generation":
            no_json = "ContentTypeError" if asynchronous else "JSONDecodeError"
            return "UnknownError" if self.chats else no_json
        return "TypeError" if asynchronous and not self.chats else self._by_status

    @property
    def _by_status(self) -> str:
        """What huggingface_hub raises where it looks at nothing but the status."""
        asynchronous = self.environment == "old" and self.kind == "async"
        return "ClientResponseError" if asynchronous else "HfHubHTTPError"


def _ways() -> list[Way]:
    ways = []
    for kind in ("sync", "async"):
        for environment in ("own", "old"):
            hub = (environment, "huggingface_hub", kind)
            for streams in (False, True):
                ways.append(Way(*hub, "text_generation", streams))
                ways.append(Way(*hub, "text_generation", streams, details=True))
                ways.append(Way(*hub, "chat_completion", streams, chats=True))
        client = ("old", "text-generation", kind)
        ways.append(Way(*client, "generate"))
        ways.append(Way(*client, "generate_stream", streams=True))
        ways.append(Way(*client, "chat", chats=True))
        for streams in (False, True):
            ways.append(Way("own", "openai", kind, "completions.create", streams))
            ways.append(Way("own", "openai", kind, "chat.completions.create", streams, chats=True))
        prefix = "a" if kind == "async" else ""
        for chats in (False, True):
            ways.append(Way("old", ENDPOINT, kind, f"{prefix}invoke", chats=chats))
            ways.append(Way("old", ENDPOINT, kind, f"{prefix}stream", streams=True, chats=chats))
    return ways


WAYS = _ways()
STREAMS = [way for way in WAYS if way.streams]


def text(seen: Seen) -> str:
    """The text that the caller has, whole or put together. Fails the test after an error."""
    if seen.items:
        pieces = [_text(item) for item in seen.stream()]
        return "".join(pieces)
    return _text(seen.result())


def _text(item: Any) -> str:
    if isinstance(item, str):
        return item
    if "token" in item:
        return str(item["token"]["text"])
    if "choices" in item:
        return "".join(_choice(choice) for choice in item["choices"])
    return str(item["generated_text"] if "generated_text" in item else item["content"])


def _choice(choice: dict[str, Any]) -> str:
    if "text" in choice:
        return str(choice["text"])
    said = choice["message"] if "message" in choice else choice["delta"]
    return said["content"] or ""
