"""Names of OpenTelemetry's GenAI semantic conventions that our spans use.

The conventions are in development and the constants of the Python packages are marked deprecated,
so the names stand here, once. Prompts, answers and stop strings are opt-in there and never set
here: they are what users wrote.
"""

# What the attributes mean; `gen_ai.provider.name` came with it.
SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"

OPERATION = "gen_ai.operation.name"  # chat | text_completion
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_TOP_K = "gen_ai.request.top_k"
REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
REQUEST_SEED = "gen_ai.request.seed"
REQUEST_CHOICES = "gen_ai.request.choice.count"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ERROR_TYPE = "error.type"

# OpenAI's words for how a text ended, which the conventions and vLLM's metrics use too. A stop
# string is a stop like any other.
FINISH_REASONS = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}
