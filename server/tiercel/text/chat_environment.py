"""The Jinja dialect of chat templates: what transformers gives them, in an immutable sandbox.

Parsing is for any process; compiling and rendering can take for ever and belong into a child.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

# No chat template has a use for them; two have been ways out of the sandbox (CVE-2025-27516).
_UNNEEDED_FILTERS = ("attr", "pprint", "random", "urlize", "xmlattr")


@dataclass(frozen=True)
class TemplateFacts:
    """What the text of a template tells without running it."""

    names: frozenset[str]  # variables that it reads
    keys: frozenset[str]  # attributes and string constants: what it may look up in a message
    literals: tuple[str, ...]  # text and string constants


class RaisedByTemplate(jinja2.TemplateError):
    """The template called `raise_exception`."""


def environment() -> ImmutableSandboxedEnvironment:
    """A fresh environment with transformers' settings, functions and filters."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    for name in _UNNEEDED_FILTERS:
        del made.filters[name]
    del made.globals["lipsum"]
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    made.globals["namespace"] = _Namespace
    return made


def facts(source: str) -> TemplateFacts:
    """Parse a template. Raises jinja2.TemplateSyntaxError, and RecursionError for deep nesting."""
    tree = environment().parse(source)
    names = {each.name for each in tree.find_all(jinja2.nodes.Name) if each.ctx == "load"}
    attributes = {each.attr for each in tree.find_all(jinja2.nodes.Getattr)}
    constants = [each.value for each in tree.find_all(jinja2.nodes.Const)]
    strings = [each for each in constants if isinstance(each, str)]
    text = [each.data for each in tree.find_all(jinja2.nodes.TemplateData)]
    return TemplateFacts(frozenset(names), frozenset((*attributes, *strings)), (*text, *strings))


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what a model says, for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's, but no template can plant an attribute that Python itself would look at."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes for HTML, which a prompt is not."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise RaisedByTemplate(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
