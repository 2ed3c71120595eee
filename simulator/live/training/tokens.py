"""From text to token streams: the byte-level tokenizer of a run, and batches of windows.

Batches are a function of (seed, name, step) alone, so a run that was interrupted continues with exactly
the batches that it would have had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from simulator.core.errors import BadInputError
from simulator.core.files import atomic_path
from simulator.live.training.corpus import Corpus, Split

TOKENIZER_FILE = "tokenizer.json"

END_TOKEN, MASK_TOKEN = "<|end|>", "<|mask|>"
"""Ends a document; stands for the draft tokens not yet known."""

END_ID, MASK_ID = 0, 1


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer. Digits stay apart, so that numbers of any length are read alike."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN, MASK_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise BadInputError(
            f"the text yields {tokenizer.get_vocab_size()} tokens, fewer than asked for",
            field="vocab_size",
            value=vocab_size,
            remedy="give more text",
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json into a model folder, atomically."""
    with atomic_path(folder / TOKENIZER_FILE) as temporary:
        tokenizer.save(str(temporary))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json of a model folder; ``BadInputError`` where it is missing or not one."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise BadInputError("no such file", source=str(path), remedy="put the model's tokenizer.json there")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise BadInputError(
            f"is not a tokenizer: {error}", source=str(path), remedy="export it again"
        ) from error


@dataclass(frozen=True, slots=True, eq=False)
class TokenStreams:
    """One split as token ids: for each domain, all documents end to end, int64 [n]."""

    streams: Mapping[str, Tensor]

    @classmethod
    def of(cls, corpus: Corpus, split: Split, tokenizer: Tokenizer) -> TokenStreams:
        """Encode a split; documents are separated by the end token where the tokenizer has one."""
        end = tokenizer.token_to_id(END_TOKEN)
        separator = [] if end is None else [end]
        streams = {}
        for domain in corpus.domains:
            encoded = tokenizer.encode_batch(corpus.texts(split, domain), add_special_tokens=False)
            ids = [token for document in encoded for token in (*document.ids, *separator)]
            streams[domain] = torch.tensor(ids, dtype=torch.int64)
        return cls(streams)

    def windows(self, domain: str, count: int, length: int, generator: torch.Generator) -> Tensor:
        """``count`` windows at random places of one domain, int64 [count, length]."""
        stream = self.streams[domain]
        if len(stream) < length:
            raise BadInputError(
                f"has {len(stream)} tokens, fewer than one window of {length}",
                source="text",
                field=domain,
                remedy="give more text of this domain",
            )
        starts = torch.randint(len(stream) - length + 1, (count, 1), generator=generator)
        return stream[starts + torch.arange(length)]

    def batch(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Windows of all domains in equal shares, [count, length]; the remainder rotates at random."""
        names = sorted(self.streams)
        order = torch.randperm(len(names), generator=generator).tolist()
        shares = [count // len(names) + (place < count % len(names)) for place in range(len(names))]
        rows = [
            self.windows(names[index], share, length, generator)
            for index, share in zip(order, shares, strict=True)
            if share
        ]
        return torch.cat(rows)


def step_generator(seed: int, name: str, step: int) -> torch.Generator:
    """Return a CPU generator that depends on (seed, name, step) alone."""
    digest = hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
