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
    metric: str = "generation"  # label `err` of tgi_request_failure
    quotes: bool = False  # the sentence may repeat what a user or the model wrote: never log it


class ValidationError(RequestError):
    """A value in the request is out of its limits. The text names the field and the limit."""

    error_type, status, metric = "validation", 422, "validation"

    def __str__(self) -> str:
        return f"Input validation error: {super().__str__()}"


class GrammarRefused(ValidationError):
    """The grammar of the request cannot be used. The text may repeat parts of it."""

    quotes = True


class Overloaded(RequestError):
    """The concurrency limit is reached."""

    error_type, status, metric = "overloaded", 429, "overloaded"

    def __init__(self) -> None:
        super().__init__("Model is overloaded")


class GenerationError(RequestError):
    """The engine failed while it computed this request, or died under it."""

    error_type, status, metric = "generation", 424, "generation"

    def __str__(self) -> str:
        return f"Request failed during generation: {super().__str__()}"


class SlowClient(GenerationError):
    """Nobody has read the stream for too long, so its sequence was ended: a client that left."""

    metric = "dropped"


class IncompleteGeneration(RequestError):
    """The engine's stream ended without a final token."""

    error_type, status, metric = "incomplete_generation", 500, "incomplete"

    def __init__(self) -> None:
        super().__init__("Incomplete generation")


class IncompleteGenerationStream(RequestError):
    """IncompleteGeneration, as it is called in an event of a stream."""

    error_type, status = "incomplete_generation_stream", 500
    metric = "incomplete"

    def __init__(self) -> None:
        super().__init__("Incomplete generation stream")


class Unhealthy(RequestError):
    """The engine is not ready, late or gone, or the server drains."""

    error_type, status, metric = "healthcheck", 503, "generation"

    def __init__(self, message: str = "unhealthy") -> None:
        super().__init__(message)


class TemplateError(RequestError):
    """The chat template is missing, or it refused the messages."""

    error_type, status, metric, quotes = "template_error", 422, "template", True

    def __str__(self) -> str:
        return f"Template error: {super().__str__()}"


class ToolError(RequestError):
    """Tools that contradict each other, or a tool call that could not be generated."""

    error_type, status, metric, quotes = "tool_error", 422, "validation", True

    def __str__(self) -> str:
        return f"Tool error: {super().__str__()}"


class SuffixNotSupported(RequestError):
    """Falcon was never trained to fill in the middle."""

    error_type, status, metric = "suffix not supported", 422, "validation"

    def __init__(self) -> None:
        super().__init__("`suffix` is not supported: the model cannot fill in the middle")


class ModelNotFound(RequestError):
    """`/v1/models/{id}` of a model that is not served here."""

    error_type, status, metric = "model_not_found", 404, "validation"

    def __init__(self, asked: str, served: str) -> None:
        super().__init__(f"The model `{asked[:200]}` is not served here; `{served}` is")


class BatchSizeExceeded(RequestError):
    """More prompts in one request than the server takes."""

    error_type, status, metric = "batch size exceeded", 422, "validation"

    def __init__(self, limit: int, given: int) -> None:
        super().__init__(
            f"Number of prompts exceeds the maximum client batch size of {limit}. Given: {given}"
        )


class NoInstances(RequestError):
    """Vertex AI's body has nothing to predict for."""

    error_type, status, metric = "Input validation error", 422, "validation"

    def __init__(self) -> None:
        super().__init__("Input validation error")


class PredictionFailed(RequestError):
    """The generation for one of Vertex AI's instances failed."""

    error_type, status = "Incomplete generation", 500

    def __init__(self) -> None:
        super().__init__("Incomplete generation")


class LengthMismatch(RequestError):
    """KServe's `inputs` and `outputs` are not as many."""

    error_type, status, metric = "length mismatch", 422, "validation"

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            f"`outputs` must have as many entries as `inputs` has prompts, or be left out: length "
            f"mismatch of {outputs} and {inputs}"
        )


class NotUtf8(RequestError):
    """KServe's bytes are no text."""

    error_type, status, metric = "utf8", 422, "validation"

    def __init__(self) -> None:
        super().__init__("`data` must be the bytes of a text in UTF-8")


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


class RankLost(EngineDied):
    """A rank of the group, or its machine, failed or stopped answering: start all of them again."""

    exit_code = 6


class OutOfMemory(StartupError):
    """The model and the smallest useful cache do not fit."""

    exit_code = 5


class StepOutOfMemory(TiercelError):
    """A step wanted more memory than there is. Nothing of it counts; a smaller one may do."""


def with_exit_code(exit_code: int, message: str) -> StartupError:
    """The error of this list that has this exit code, from a process that could not raise it."""
    for kind in (ConfigError, WeightsError, OutOfMemory, RankLost):
        if kind.exit_code == exit_code:
            return kind(message)
    return EngineDied(message)
