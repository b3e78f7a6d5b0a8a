"""ChatTemplate: messages to a prompt by the model's own template, which runs in a sandbox child.

Knows what a template is and asks the pool to render it. Routes decide what they put into messages.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from tiercel.errors import (
    ConfigError,
    Overloaded,
    RequestError,
    TemplateError,
    Unhealthy,
    ValidationError,
)
from tiercel.sandbox.errors import (
    JobRefused,
    SandboxBusy,
    SandboxError,
    SandboxOutOfMemory,
    SandboxTimeout,
    SandboxUnavailable,
)
from tiercel.sandbox.limits import Limits
from tiercel.sandbox.pool import SandboxPool
from tiercel.text.chat_environment import facts
from tiercel.text.chat_source import TemplateSource, find_template

logger = logging.getLogger(__name__)

JOB = "render_chat"
# A template is the model's, not the caller's: it is rarely a bomb, and every chat waits for it. So
# it is not held back by a nice value or by rests, and it may wait long for a process that is still
# starting.
RENDER_LIMITS = Limits(
    cpu_s=0.5, run_s=1.0, wait_s=10.0, turns=4, max_waiting=1024, nice=0, rest_s=0.0
)
NOT_FOUND = "template not found"
# Falcon ends its turn by writing the user's next one, not with a token of its own. The blank line
# in front belongs to that turn as well.
USER_TURN = "User:"
USER_STOPS = ("\nUser:", "\n\nUser:")


class ChatTemplate:
    """One model's template, or the reason why there is none: then `render` raises.

    Made by `load`; `add_to` a pool before the first `render` with it.
    """

    def __init__(self, source: TemplateSource | None, problem: str = NOT_FOUND) -> None:
        """`problem` is the answer to every chat where there is no `source`."""
        self._source = source
        self._problem = problem
        self.uses_tools = False  # whether it reads `tools` itself
        self.default_stops: tuple[str, ...] = ()  # where a turn of the user begins in plain text
        self._uses_calls = False
        if source is None:
            return
        try:
            found = facts(source.text)
        except jinja2.TemplateSyntaxError as error:
            self._refuse_all(f"syntax error: {error} (in chat_template:{error.lineno})")
            return
        except RecursionError:
            self._refuse_all("syntax error: the template is nested too deeply")
            return
        self.uses_tools = "tools" in found.names
        self._uses_calls = "tool_calls" in found.keys
        if any(USER_TURN in text for text in found.literals):
            self.default_stops = USER_STOPS

    @classmethod
    def load(
        cls, folder: Path | str, name: str = "", config_path: Path | None = None
    ) -> "ChatTemplate":
        """The template of a model's folder; `name` is what its users call the model.

        `config_path` is read instead of the folder's tokenizer_config.json. Never raises: without a
        usable template the server serves everything but chats, and a warning says why.
        """
        try:
            return cls(find_template(Path(folder), name, config_path))
        except ConfigError as error:
            logger.warning("the model's chat template cannot be used: %s", error)
            return cls(None, "the model's chat template cannot be read")

    @property
    def available(self) -> bool:
        """Whether `render` can succeed."""
        return self._source is not None

    def add_to(self, pool: SandboxPool) -> None:
        """Open the lane that `render` will use."""
        if self._source is not None:
            context = {"source": self._source.text, "variables": self._source.variables}
            pool.add(JOB, context, RENDER_LIMITS)

    async def check(self, pool: SandboxPool) -> None:
        """Let a child compile the template, so that the log tells before the first chat does."""
        if self._source is None:
            return
        try:
            await pool.run(JOB, {"messages": None})
        except SandboxBusy:
            return
        except SandboxError as error:
            self._warn(str(error))

    async def render(
        self,
        pool: SandboxPool,
        messages: Sequence[Mapping[str, Any]],
        tools: list[dict[str, Any]] | None,
    ) -> str:
        """The prompt for messages as JSON has them, with contents of strings or of text parts.

        It ends with the last message's content where that is from `assistant`, else as the
        template begins an answer. Raises TemplateError, ValidationError for text that is none,
        Overloaded when too many others wait, and Unhealthy when no child can be started.
        """
        if self._source is None:
            raise TemplateError(self._problem)
        plain = [self._plain(message) for message in messages]
        payload = {
            "messages": plain,
            "tools": tools,
            "continue": bool(plain) and plain[-1].get("role") == "assistant",
        }
        try:
            prompt = await pool.run(JOB, payload)
        except SandboxError as error:
            raise _refusal(error) from None
        except UnicodeEncodeError:
            raise ValidationError("`messages` must not hold half of a surrogate pair") from None
        except OverflowError:
            raise ValidationError("`messages` and `tools` take integers of 64 bits") from None
        except RecursionError:
            raise ValidationError("`messages` or `tools` are nested too deeply") from None
        return str(prompt)

    def _plain(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as templates expect it."""
        plain = {key: value for key, value in message.items() if value is not None}
        calls = plain.pop("tool_calls", None)
        content = plain.get("content")
        if isinstance(content, list | tuple):
            plain["content"] = "".join(part.get("text", "") for part in content)
        if content is None:
            plain["content"] = ""
            if calls and self._uses_calls:
                plain["tool_calls"] = [_with_arguments(call) for call in calls]
            elif calls:
                plain["content"] = json.dumps(calls, ensure_ascii=False, separators=(",", ":"))
        return plain

    def _refuse_all(self, problem: str) -> None:
        self._warn(problem)
        self._source, self._problem = None, problem

    def _warn(self, problem: str) -> None:
        origin = self._source.origin if self._source is not None else "the chat template"
        logger.warning("%s: %s; every chat is answered with that error", origin, problem)


def _with_arguments(call: Any) -> Any:
    """A tool call whose arguments are an object: clients send text, templates expect the object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _refusal(error: SandboxError) -> RequestError:
    if isinstance(error, SandboxBusy):
        return Overloaded()
    if isinstance(error, SandboxUnavailable):
        return Unhealthy(f"chats cannot be rendered: {error}")
    if isinstance(error, JobRefused):
        return TemplateError(str(error))
    if isinstance(error, SandboxTimeout):
        return TemplateError(f"rendering the messages takes more than {RENDER_LIMITS.run_s:g} s")
    if isinstance(error, SandboxOutOfMemory):
        return TemplateError("rendering the messages takes too much memory")
    return TemplateError(f"rendering the messages failed: {error}")
