"""From messages to a prompt: what the chat template sees of a chat request."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tiercel.api.edge import Edge
from tiercel.api.openai.schema import Message, Tool
from tiercel.api.validation import Prompt

DEFAULT_TOOL_PROMPT = (
    "You may call these functions. To call one, answer with its name and its arguments as JSON."
)
# OpenAI renamed the system role; templates know the old name.
_ROLES = {"developer": "system"}
# A template that knows nothing of tools would refuse their results: there the user tells them.
_ROLES_WITHOUT_TOOLS = {**_ROLES, "tool": "user", "function": "user"}


async def chat_prompt(
    edge: Edge,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    tool_prompt: str | None = None,
) -> Prompt:
    """The rendered chat; its special tokens are text in it. Raises TemplateError.

    A template that knows nothing of tools gets them at the end of the last message, and their
    results from the user.
    """
    template = edge.chat_template
    roles = _ROLES if template.uses_tools else _ROLES_WITHOUT_TOOLS
    documents = [_document(message, roles) for message in messages]
    described = [_described(tool) for tool in tools]
    if described and not template.uses_tools:
        prompt = DEFAULT_TOOL_PROMPT if tool_prompt is None else tool_prompt
        text = json.dumps(described, ensure_ascii=False, separators=(",", ":"))
        documents[-1]["content"] = f"{documents[-1]['content'] or ''}\n---\n{prompt}\n{text}"
        described = []
    rendered = await template.render(edge.sandbox, documents, described or None)
    return Prompt(rendered, add_special_tokens=False)


def _document(message: Message, roles: Mapping[str, str]) -> dict[str, Any]:
    """A text beside calls wins over them (contract 1.8); some clients send an empty one."""
    role = roles.get(message.role, message.role)
    calls = message.tool_calls
    if calls and not message.content:
        written = [call.model_dump() for call in calls]
        return {"role": role, "content": None, "tool_calls": written}
    return {"role": role, "content": message.content or ""}


def _described(tool: Tool) -> dict[str, Any]:
    return {"type": "function", "function": tool.function.model_dump(exclude_none=True)}
