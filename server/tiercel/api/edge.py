"""Edge: what every route needs, made once per app. No route and no answer format lives here."""

import asyncio
import itertools
import logging
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec
from starlette.types import Scope

from tiercel.api.admission import Admission
from tiercel.api.auth import tenant_of
from tiercel.api.generation import Generation
from tiercel.api.grammar import GrammarGate
from tiercel.api.identity import identity_of
from tiercel.api.options import EdgeOptions
from tiercel.api.record import RequestRecord
from tiercel.api.schema import GenerateParameters
from tiercel.api.spans import request_attributes
from tiercel.api.summary import summary_of
from tiercel.api.tracing import span_of
from tiercel.api.validation import NO_EXTRAS, Extras, Prompt, ValidatedRequest, validate
from tiercel.engine.client import EngineClient
from tiercel.errors import GenerationError, RequestError, Unhealthy
from tiercel.guidance.gate import why_not
from tiercel.sandbox.pool import SandboxPool
from tiercel.telemetry.metrics import Metrics
from tiercel.text.chat import ChatTemplate
from tiercel.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_SEED_MASK = (1 << 64) - 1


@dataclass
class ServerState:
    """What the process and the edge tell each other.

    Draining is set by the process: running requests finish, new ones are refused.
    """

    draining: bool = False
    in_flight: int = 0  # HTTP requests whose answer has not been sent to its end
    owed: int = (
        0  # those of them that a drain waits for: all but GETs, which cost nothing to repeat
    )


class Edge:
    """The engine, the tokenizer and its threads, the limits, the permits and the metrics."""

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer,
        options: EdgeOptions,
        metrics: Metrics,
        state: ServerState,
        chat_template: ChatTemplate | None = None,
        sandbox: SandboxPool | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.options = options
        self.metrics = metrics
        self.state = state
        self.chat_template = chat_template or ChatTemplate(None)
        self.sandbox = sandbox or SandboxPool()  # has the template's lane already
        self.admission = Admission(options.max_concurrent_requests)
        self._sequence_ids = itertools.count(1)
        self._grammars = GrammarGate(partial(why_not, self.sandbox))
        self.long_text = asyncio.Lock()  # held while one is tokenized for its own sake
        self._threads = ThreadPoolExecutor(options.validation_workers, "tokenizer")

    def prewarm(self) -> None:
        """Start, in the background, what the first request should not have to wait for."""
        self.sandbox.prewarm()
        self._checking = asyncio.ensure_future(self.chat_template.check(self.sandbox))

    async def close(self) -> None:
        """Give threads and processes back; nothing is tokenized or rendered afterwards."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self.sandbox.close()

    def check_serving(self) -> None:
        """Raises Unhealthy while the server drains."""
        if self.state.draining:
            self.metrics.requests.rejected.labels("draining").inc()
            raise Unhealthy("The server is shutting down")

    def healthy(self) -> bool:
        """Whether new work is welcome and can be done."""
        return not self.state.draining and self.engine.health().healthy

    def record(self, route: str, scope: Scope) -> RequestRecord:
        """A new request has arrived."""
        return RequestRecord(
            route,
            identity_of(scope),
            self.metrics.requests,
            tenant_of(scope),
            span_of(scope),
            summary_of(scope),
        )

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """Work of more than a millisecond, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def validated(
        self,
        prompt: Prompt,
        parameters: GenerateParameters,
        record: RequestRecord,
        extras: Extras = NO_EXTRAS,
    ) -> ValidatedRequest:
        """The request, if its every value is within its limits. Raises ValidationError."""
        seed = secrets.randbits(64)
        check = partial(
            validate, prompt, parameters, extras, self.options, self.tokenizer, default_seed=seed
        )
        request = await self.in_thread(check)
        if request.grammar is not None:
            await self._grammars.check(request.grammar)
        record.validated(len(request.token_ids), request.judged_new_tokens)
        if record.span.recording:
            record.span.set(
                request_attributes(
                    request.sampling,
                    request.max_new_tokens,
                    self.options.model_id,
                    record.route,
                )
            )
        return request

    def start(self, request: ValidatedRequest, record: RequestRecord, nth: int = 0) -> Generation:
        """One sequence, ready to be iterated: the `nth` of the request has a seed of its own."""
        if nth:
            seed = (request.sampling.seed + nth) & _SEED_MASK
            sampling = msgspec.structs.replace(request.sampling, seed=seed)
            request = replace(request, sampling=sampling)
        sequence = record.sequence(next(self._sequence_ids))
        return Generation(request, self.engine, self.tokenizer, sequence)


@contextmanager
def outcome(record: RequestRecord) -> Iterator[None]:
    """Ends the record however the block ends. The per-request fault boundary of the edge.

    Raises RequestError only; whatever else went wrong is logged here and becomes one.
    """
    try:
        yield
    except RequestError as error:
        record.failed(error)
        raise
    except Exception as error:  # one request's fault stays with that request
        fields = {"request_id": record.identity.request_id}
        logger.error("a request broke", exc_info=error, extra={"fields": fields})
        failure = GenerationError("Server error: the answer could not be put together")
        record.failed(failure)
        raise failure from error
    finally:
        record.dropped()
