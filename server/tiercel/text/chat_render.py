"""The job `render_chat` of the sandbox: messages to a prompt. Runs in a child, which is killed when
it takes too long; sizes are watched here.
"""

import codecs
import secrets
import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import TracebackType
from typing import Any

import jinja2

from tiercel.sandbox.errors import JobRefused
from tiercel.text.chat_environment import RaisedByTemplate, environment

MAX_PROMPT_BYTES = 1_000_000
_MAX_MESSAGE_CHARACTERS = 1_000
# What Jinja imports only when it is needed, which is too late: a prepared child opens no file.
_LATE_IMPORTS = ("jinja2.debug", "jinja2.constants", "pprint")
_LATE_CODECS = ("ascii", "latin-1", "unicode-escape", "utf-8", "utf-16", "idna")


def render_chat(context: dict[str, Any]) -> Callable[[dict[str, Any]], str]:
    """Prepare a template.

    `context`: `source`, and `variables` such as bos_token. A payload has `messages`, `tools` and
    `continue`: whether the prompt ends with the last message's content. The answer is the prompt;
    without messages it is empty where the template compiles. Refuses, of kind "template", with a
    sentence that names the line.
    """
    for module in _LATE_IMPORTS:
        import_module(module)
    env = environment()
    time.tzset()  # reads the time zone
    source, given = str(context["source"]), dict(context["variables"])
    marker = secrets.token_hex(16)
    for codec in _LATE_CODECS:
        codecs.lookup(codec)

    @cache
    def template() -> jinja2.Template:
        # Not before the first payload: compiling computes constants, and only jobs have a limit.
        return env.from_string(source)

    def render(payload: dict[str, Any]) -> str:
        messages = payload["messages"]
        variables = {
            **given,
            "messages": messages,
            "tools": payload.get("tools"),
            "add_generation_prompt": True,
        }
        try:
            if messages is None:
                template()
                return ""
            if not payload["continue"]:
                return _text(template(), variables)
            return _continued(template(), variables, messages[-1], marker)
        except (JobRefused, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 (a template can raise whatever Python can)
            raise JobRefused("template", _sentence(error)) from None

    return render


def _text(template: jinja2.Template, variables: dict[str, Any]) -> str:
    pieces = []
    room = MAX_PROMPT_BYTES
    for piece in template.generate(variables):
        room -= len(piece) if piece.isascii() else len(piece.encode("utf-8", "replace"))
        if room < 0:
            raise JobRefused("template", f"the prompt has more than {MAX_PROMPT_BYTES} bytes")
        pieces.append(piece)
    text = "".join(pieces)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise JobRefused("template", "the prompt holds half of a surrogate pair") from None
    return text


def _continued(
    template: jinja2.Template, variables: dict[str, Any], last: dict[str, Any], marker: str
) -> str:
    """The prompt up to the end of the last message's content, without white space at its end.

    A marker behind the content finds the place where the words themselves are not unique: in
    `Assistant:` for a content of `A`. A template that drops the marker is searched for the content.
    """
    content = last["content"]
    last["content"] = content + marker
    text = _text(template, variables)
    cut = text.rfind(marker)
    if cut >= 0:
        return text[:cut].replace(marker, "").rstrip()
    last["content"] = content
    text = _text(template, variables)
    cut = text.rfind(content)
    return (text[: cut + len(content)] if cut >= 0 else text).rstrip()


def _sentence(error: BaseException) -> str:
    message = str(error)[:_MAX_MESSAGE_CHARACTERS] or type(error).__name__
    line = _line_in_template(error.__traceback__)
    if isinstance(error, jinja2.TemplateSyntaxError):
        kind, line = "syntax error", error.lineno
    elif isinstance(error, RaisedByTemplate):
        kind = "syntax error"  # so says every server of this family; clients look for it
    elif isinstance(error, jinja2.exceptions.SecurityError):
        kind = "not allowed"
    elif isinstance(error, jinja2.UndefinedError):
        kind = "undefined value"
    elif isinstance(error, RecursionError):
        kind, message = "too deep", "the template calls itself too often"
    else:
        kind = "invalid operation"
    place = "" if line is None else f" (in chat_template:{line})"
    return f"{kind}: {message}{place}"


def _line_in_template(traceback: TracebackType | None) -> int | None:
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
