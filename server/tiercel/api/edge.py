"""Edge: what every route needs, made once per app. No route and no answer format lives here."""

import asyncio
import itertools
import logging
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tiercel.api.admission import Admission
from tiercel.api.generation import Generation
from tiercel.api.options import EdgeOptions
from tiercel.api.record import RequestRecord
from tiercel.api.schema import GenerateRequest
from tiercel.api.validation import validate
from tiercel.engine.client import EngineClient
from tiercel.errors import GenerationError, RequestError, Unhealthy
from tiercel.telemetry.metrics import Metrics
from tiercel.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass
class ServerState:
    """What the process and the edge tell each other.

    Draining is set by the process: running requests finish, new ones are refused.
    """

    draining: bool = False
    in_flight: int = 0  # HTTP requests whose answer has not been sent to its end


class Edge:
    """The engine, the tokenizer and its threads, the limits, the permits and the metrics."""

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer,
        options: EdgeOptions,
        metrics: Metrics,
        state: ServerState,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.options = options
        self.metrics = metrics
        self.state = state
        self.admission = Admission(options.max_concurrent_requests)
        self._request_ids = itertools.count(1)
        self._threads = ThreadPoolExecutor(options.validation_workers, "tokenizer")

    def close(self) -> None:
        """Give the threads back; nothing is tokenized afterwards."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def check_serving(self) -> None:
        """Raises Unhealthy while the server drains."""
        if self.state.draining:
            raise Unhealthy("The server is shutting down")

    def healthy(self) -> bool:
        """Whether new work is welcome and can be done."""
        return not self.state.draining and self.engine.health().healthy

    def record(self, route: str) -> RequestRecord:
        """A new request has arrived."""
        return RequestRecord(route, next(self._request_ids), self.metrics.requests)

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """Work of more than a millisecond, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def generation(self, body: GenerateRequest, record: RequestRecord) -> Generation:
        """The validated request, ready to be iterated. Raises ValidationError."""
        seed = secrets.randbits(64)
        check = partial(validate, body, self.options, self.tokenizer, default_seed=seed)
        request = await self.in_thread(check)
        record.validated(len(request.token_ids), request.judged_new_tokens)
        return Generation(request, self.engine, self.tokenizer, record)


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
        fields = {"request_id": record.request_id}
        logger.error("a request broke", exc_info=error, extra={"fields": fields})
        failure = GenerationError("Server error: the answer could not be put together")
        record.failed(failure)
        raise failure from error
    finally:
        record.dropped()
