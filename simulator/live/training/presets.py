"""Sizes of the models that ``dspark-sim train`` makes, and how long it trains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulator.core.errors import BadInputError
from simulator.live.training.optimisation import Schedule


@dataclass(frozen=True, slots=True)
class Preset:
    """A target's shape, its drafts' and the training of each.

    sequences x length: tokens in a batch. anchors: blocks drafted in each of its sequences.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    key_value_heads: int
    target_layers: int
    draft_layers: int
    target_layer_ids: tuple[int, ...]
    gamma: int
    markov_rank: int
    sequences: int
    length: int
    anchors: int
    target: Schedule
    draft: Schedule
    mtp: Schedule


PRESETS: Mapping[str, Preset] = {
    # Seconds on one CPU core: to try the machinery, too small to learn anything worth having.
    "nano": Preset(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=384,
        heads=4,
        key_value_heads=2,
        target_layers=3,
        draft_layers=1,
        target_layer_ids=(0, 1),
        gamma=7,
        markov_rank=8,
        sequences=4,
        length=48,
        anchors=4,
        target=Schedule(steps=40, learning_rate=5e-3),
        draft=Schedule(steps=20, learning_rate=5e-3),
        mtp=Schedule(steps=20, learning_rate=5e-3),
    ),
    # Ten minutes on one CPU core.
    "tiny": Preset(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=384,
        heads=4,
        key_value_heads=2,
        target_layers=4,
        draft_layers=2,
        target_layer_ids=(0, 1, 2),
        gamma=7,
        markov_rank=64,
        sequences=12,
        length=192,
        anchors=24,
        target=Schedule(steps=900, learning_rate=3e-3),
        draft=Schedule(steps=550, learning_rate=2e-3),
        mtp=Schedule(steps=350, learning_rate=2e-3),
    ),
    # Sized for 15 minutes of one modern GPU, by its arithmetic; not yet timed on one.
    "small": Preset(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        heads=8,
        key_value_heads=4,
        target_layers=12,
        draft_layers=5,
        target_layer_ids=(1, 3, 5, 7, 9),
        gamma=7,
        markov_rank=256,
        sequences=32,
        length=512,
        anchors=64,
        target=Schedule(steps=2500, learning_rate=1e-3),
        draft=Schedule(steps=2000, learning_rate=6e-4),
        mtp=Schedule(steps=1500, learning_rate=6e-4),
    ),
}


def find_preset(name: str) -> Preset:
    """Find a preset by its name; ``BadInputError`` lists them where there is none."""
    if name not in PRESETS:
        raise BadInputError(
            "no such preset", field="preset", value=name, remedy=f"choose one of {', '.join(PRESETS)}"
        )
    return PRESETS[name]
