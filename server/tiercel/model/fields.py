"""Typed access to the fields of one config.json, and the list of those that change nothing.

Every error names file, field, value and what to do. What fields mean is config.py's. Torch-free.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tiercel.errors import ConfigError
from tiercel.foreign_files import BadFile, read_object, shown

CONFIG_LIMIT_BYTES = 4 * 1024 * 1024

# Nothing here changes the logits of a causal language model.
_BOOKKEEPING_AND_TRAINING = """
_attn_implementation _attn_implementation_autoset _commit_hash _experts_implementation
_from_model_config _name_or_path _output_attentions architectures attention_dropout
attn_implementation auto_map base_model chunk_size_feed_forward classifier_dropout
cross_attention_hidden_size custom_pipelines decoder_start_token_id finetuning_task
gradient_checkpointing hidden_dropout id2label initializer_range is_decoder
keys_to_ignore_at_inference label2id model_max_length model_type name_or_path num_labels
output_attentions output_hidden_states pad_token_id prefix problem_type return_dict sep_token_id
task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torchscript
transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
# How to generate, in the names of transformers 4 and 5. They belong into generation_config.json,
# but old versions wrote them into config.json.
_GENERATION = """
assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind
bad_words_ids begin_suppress_tokens cache_config cache_implementation compile_config constraints
disable_compile diversity_penalty do_sample dola_layers early_stopping encoder_no_repeat_ngram_size
encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty
force_words_ids forced_bos_token_id forced_eos_token_id guidance_scale is_assistant length_penalty
low_memory max_cache_len max_length max_matching_ngram_size max_new_tokens max_time min_length
min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
num_beam_groups num_beams num_return_sequences output_logits output_scores penalty_alpha
prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values renormalize_logits
repetition_penalty return_dict_in_generate return_legacy_cache sequence_bias stop_strings
suppress_tokens target_lookbehind temperature token_healing top_h top_k top_p typical_p
watermarking_config
"""
HARMLESS = frozenset((_BOOKKEEPING_AND_TRAINING + _GENERATION).split())


class Fields:
    """The fields of one JSON object. Reading a field marks it as understood; null counts as absent.

    All readers take the names a field may have; two of them with different values are an error.
    """

    def __init__(self, path: Path, values: dict[str, Any], inside: str = "") -> None:
        self.path = path
        self._inside = inside  # "rope_scaling." for the fields below rope_scaling
        self._values = {name: value for name, value in values.items() if value is not None}
        self._understood = set(HARMLESS)

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """Read `path`. Raises ConfigError when it is not a readable JSON object."""
        try:
            return cls(path, read_object(path, CONFIG_LIMIT_BYTES))
        except BadFile as bad:
            remedy = (
                "give a folder with the config.json of a Falcon model"
                if path.name == "config.json"
                else f"copy the model's {path.name} again, or remove it"
            )
            raise ConfigError(f"{path}: {bad}; {remedy}") from bad

    def error(self, name: str, value: object, must: str) -> ConfigError:
        """Return the error for a field with a wrong value."""
        return ConfigError(
            f"{self.path}: field {shown(self._inside + name)} is {shown(value)}; {must}"
        )

    def missing(self, name: str, must: str) -> ConfigError:
        return ConfigError(f"{self.path}: field {shown(self._inside + name)} is missing; {must}")

    def ignore(self, *names: str) -> None:
        """Mark fields as understood although their values do not matter here."""
        self._understood.update(names)

    def value(self, *names: str) -> tuple[str, Any]:
        """Return the name that was used and the value, which is None when the field is absent."""
        self._understood.update(names)
        present = [name for name in names if name in self._values]
        for name in present[1:]:
            if self._values[name] != self._values[present[0]]:
                other = f"field {shown(present[0])} says {shown(self._values[present[0]])}"
                raise self.error(name, self._values[name], f"{other}; remove the wrong one")
        return (present[0], self._values[present[0]]) if present else (names[0], None)

    def integer(self, *names: str, low: int, high: int, default: int | None = None) -> int:
        """Return a whole number in [low, high]. Without a default the field is required."""
        name, value = self.value(*names)
        if value is None:
            if default is None:
                raise self.missing(name, f"it must be a whole number from {low} to {high}")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, value, f"it must be a whole number from {low} to {high}")
        return value

    def number(self, *names: str, low: float, high: float, default: float) -> float:
        """Return a finite number in [low, high]."""
        name, value = self.value(*names)
        if value is None:
            return default
        good = isinstance(value, int | float) and not isinstance(value, bool)
        # The range is checked first: float() of a whole number with 400 digits overflows.
        if not good or not low <= value <= high or not math.isfinite(value):
            raise self.error(name, value, f"it must be a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        name, value = self.value(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, value, "it must be true or false")
        return value

    def text(self, *names: str, allowed: Iterable[str], default: str | None = None) -> str:
        """Return one of `allowed`. Without a default the field is required."""
        name, value = self.value(*names)
        choices = ", ".join(allowed)
        if value is None:
            if default is None:
                raise self.missing(name, f"it must be one of {choices}")
            return default
        if not isinstance(value, str) or value not in choices.split(", "):
            raise self.error(name, value, f"it must be one of {choices}")
        return value

    def nested(self, name: str) -> "Fields | None":
        """Return the object below `name`, with its own record of what was understood."""
        _, value = self.value(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.error(name, value, "it must be an object or null")
        return Fields(self.path, value, f"{name}.")

    def only(self, name: str, *allowed: object, why: str) -> None:
        """Refuse any present value but `allowed`; `why` ends the sentence."""
        _, value = self.value(name)
        if value is not None and not any(
            value == choice and type(value) is type(choice) for choice in allowed
        ):
            raise self.error(name, value, why)

    def refuse_unknown(self) -> None:
        """Raise ConfigError for the first field that nobody understood."""
        for name, value in self._values.items():
            if name not in self._understood:
                raise self.error(
                    name,
                    value,
                    "Tiercel does not know this field and it may change what the model computes; "
                    "remove it if it does not",
                )
