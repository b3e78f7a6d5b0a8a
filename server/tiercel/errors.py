"""The closed list of errors: a sentence for people, a code for machines.

Two families. A RequestError is a caller's answer: `error_type`, HTTP status, whether to try again.
A StartupError ends the process: one line on stderr and a documented exit code. Torch-free.
"""


class TiercelError(Exception):
    """Anything Tiercel itself says no to. `str(error)` is a whole sentence or clause for people."""


class RequestError(TiercelError):
    """One request is refused or has failed. Never affects another request."""

    error_type: str
    status: int
    retryable: bool = False
    metric: str = "generation"  # label `err` of tgi_request_failure


class ValidationError(RequestError):
    """A value in the request is out of its limits. The text names the field and the limit."""

    error_type, status, metric = "validation", 422, "validation"

    def __str__(self) -> str:
        return f"Input validation error: {super().__str__()}"


class Overloaded(RequestError):
    """The concurrency limit is reached."""

    error_type, status, retryable, metric = "overloaded", 429, True, "overloaded"

    def __init__(self) -> None:
        super().__init__("Model is overloaded")


class GenerationError(RequestError):
    """The engine failed while it computed this request, or died under it."""

    error_type, status, retryable, metric = "generation", 424, True, "generation"

    def __str__(self) -> str:
        return f"Request failed during generation: {super().__str__()}"


class IncompleteGeneration(RequestError):
    """The engine's stream ended without a final token."""

    error_type, status, retryable, metric = "incomplete_generation", 500, True, "incomplete"

    def __init__(self) -> None:
        super().__init__("Incomplete generation")


class IncompleteGenerationStream(RequestError):
    """IncompleteGeneration, as it is called in an event of a stream."""

    error_type, status, retryable = "incomplete_generation_stream", 500, True
    metric = "incomplete"

    def __init__(self) -> None:
        super().__init__("Incomplete generation stream")


class Unhealthy(RequestError):
    """The engine is not ready, late or gone, or the server drains."""

    error_type, status, retryable, metric = "healthcheck", 503, True, "generation"

    def __init__(self, message: str = "unhealthy") -> None:
        super().__init__(message)


class StartupError(TiercelError):
    """The process cannot start or go on: one line on stderr, then exit with `exit_code`."""

    exit_code: int = 1


class ConfigError(StartupError):
    """A flag, a variable or a field of the model's configuration. The text names it."""

    exit_code = 2


class WeightsError(StartupError):
    """A weight file. The text names the file and, where there is one, the tensor."""

    exit_code = 3


class EngineDied(StartupError):
    """The engine process ended or stopped answering while serving."""

    exit_code = 4


class OutOfMemory(StartupError):
    """The model and the smallest useful cache do not fit."""

    exit_code = 5
