"""GrammarCompiler: requests wait here until their grammar is compiled, beside the step loop."""

import logging
import queue
import threading
from collections import deque

from tiercel.errors import ConfigError
from tiercel.guidance.cache import GrammarCache
from tiercel.guidance.grammar import GrammarError
from tiercel.wire.request import GenerationRequest

logger = logging.getLogger(__name__)

Compiled = tuple[GenerationRequest, str | None]  # the second is why it cannot run


class GrammarCompiler:
    """One thread that compiles, in order of arrival. All methods are the step loop's."""

    def __init__(self, cache: GrammarCache) -> None:
        self._cache = cache
        self._todo: queue.SimpleQueue[GenerationRequest] = queue.SimpleQueue()
        self._done: deque[Compiled] = deque()
        self._waiting: dict[int, GenerationRequest] = {}
        self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)

    def start(self) -> None:
        """Read the tokenizer in the background, so that the first grammar need not wait for it."""
        self._thread.start()

    @property
    def pending(self) -> int:
        """Requests whose grammar is not ready, or that `ready` has not given back."""
        return len(self._waiting)

    def submit(self, request: GenerationRequest) -> None:
        """Take a request with a grammar."""
        self._waiting[request.id] = request
        self._todo.put(request)

    def abort(self, request_id: int) -> bool:
        """Nobody waits for the request any more. False: it is not here."""
        return self._waiting.pop(request_id, None) is not None

    def ready(self) -> list[Compiled]:
        """The requests whose grammar is settled since the last call."""
        settled = []
        while self._done:
            request, error = self._done.popleft()
            if self._waiting.get(request.id) is request:
                del self._waiting[request.id]
                settled.append((request, error))
        return settled

    def _run(self) -> None:
        try:
            self._cache.table()
        except Exception as error:  # noqa: BLE001 - told to those who send a grammar
            logger.debug("grammars are not available: %s", error)
        while True:
            request = self._todo.get()
            if self._waiting.get(request.id) is request:
                self._done.append((request, self._compile(request)))

    def _compile(self, request: GenerationRequest) -> str | None:
        grammar = request.grammar
        if grammar is None:
            return None
        try:
            self._cache.get(grammar.kind, grammar.text)
        except (GrammarError, ConfigError) as error:
            return f"grammar is not valid: {error}"
        # A panic of the library's Rust is a BaseException, and the thread has to outlive it.
        except BaseException as error:
            logger.exception("a grammar broke the compiler")
            return f"grammar is not valid: {type(error).__name__}"
        return None
