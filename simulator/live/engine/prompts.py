"""What live requests say: random tokens, or text that no draft was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import BadInputError
from simulator.core.random import random_stream
from simulator.live.training.corpus import load_corpus
from simulator.live.training.tokens import TokenStreams, load_tokenizer

Prompts = Callable[[int, int], NDArray[np.int64]]
"""(request, tokens) -> its prompt, that many token ids; a longer one continues a shorter one."""

RANDOM = "random"


def random_prompts(vocabulary: int, seed: int) -> Prompts:
    """Prompts of random tokens: what a pair with random weights needs, and enough to time any other."""

    def prompt(request: int, tokens: int) -> NDArray[np.int64]:
        return random_stream(seed, f"prompt/{request}").integers(0, vocabulary, tokens)

    return prompt


def text_prompts(target: Path, domain: str, seed: int, *, text: Path | None = None) -> Prompts:
    """Prompts from the test split of a corpus, as tracing takes them: each request starts somewhere else.

    target: the model's folder, for its tokenizer. domain: of the corpus, such as ``code``. text: a folder
    of text files in place of the default corpus. A request too long for the split wraps round its end.
    Raises ``BadInputError`` for a domain that the corpus does not have.
    """
    corpus = load_corpus(text)
    if domain not in corpus.domains:
        raise BadInputError(
            "is not a domain of the corpus", field="prompts", value=domain,
            remedy=f"{RANDOM}, {', '.join(corpus.domains)}",
        )  # fmt: skip
    stream = TokenStreams.of(corpus, "test", load_tokenizer(target)).streams[domain].numpy()

    def prompt(request: int, tokens: int) -> NDArray[np.int64]:
        start = int(random_stream(seed, f"prompt/{request}").integers(len(stream)))
        return stream.take(np.arange(start, start + tokens), mode="wrap")

    return prompt
