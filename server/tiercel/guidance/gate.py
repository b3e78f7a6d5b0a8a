"""The way from the edge to a verdict: asks a sandbox child whether a grammar may be used."""

from tiercel.errors import Overloaded, Unhealthy
from tiercel.sandbox.errors import (
    SandboxBusy,
    SandboxError,
    SandboxOutOfMemory,
    SandboxTimeout,
    SandboxUnavailable,
)
from tiercel.sandbox.pool import SandboxPool
from tiercel.wire.request import Grammar

JOB = "check_grammar"


def add_to(pool: SandboxPool, model_path: str) -> None:
    """Open the lane in which grammars for the tokenizer of this folder are checked."""
    pool.add(JOB, model_path)


async def why_not(pool: SandboxPool, grammar: Grammar) -> str | None:
    """Why the grammar cannot be used, as a clause; None if it can.

    Raises Overloaded when no child was free, or the machine too busy to give the grammar the time
    that each may take, and Unhealthy when no child can be had: then nothing is known of it.
    """
    try:
        await pool.run(JOB, [grammar.kind, grammar.text])
    except SandboxBusy:
        raise Overloaded from None
    except SandboxUnavailable as error:
        raise Unhealthy(f"grammars cannot be checked: {error}") from None
    except (SandboxTimeout, SandboxOutOfMemory):
        return "it is too costly; use smaller counts, fewer alternatives or shorter texts"
    except SandboxError as error:  # the job's own words, or a child that crashed over it
        return str(error)
    return None
