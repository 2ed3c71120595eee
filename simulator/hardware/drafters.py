"""Drafters by name: how many layers they run over which rows, and what their weights weigh."""

from __future__ import annotations

import re
from dataclasses import dataclass

from simulator.core.errors import BadInputError
from simulator.cost.draft import Structure
from simulator.hardware.models import WEIGHT_BYTES, ModelShape

SEQUENTIAL_TURN_S = 70e-6
"""One turn of DSpark's sequential head: 51 to 90 us remain of a published H200 measurement once its backbone
is taken out; the middle of that range, for every GPU."""

BLOCK = 7
"""Draft tokens of a block where nobody says otherwise: the paper's Qwen3 drafts."""

_FORMS = "dspark:5l, dspark:5l@7, dspark:v4, dflash:5l, eagle3, eagle3@7, mtp1, mtp:3"


@dataclass(frozen=True, slots=True)
class Drafter:
    """A draft model in layers of its target.

    name: as acceptance models and policies call it. layers: of the target's kind. block: draft tokens. A
    parallel drafter runs its layers once over the block, an autoregressive one once for each token. experts:
    its layers hold all experts that the target's do. window: tokens of its context that it sees; None: all.
    """

    name: str
    layers: int
    block: int
    structure: Structure
    experts: bool = False
    window: int | None = None

    @property
    def rows(self) -> int:
        """Rows of one pass for each request."""
        return 1 if self.structure == "autoregressive" else self.block

    def weight_bytes(self, model: ModelShape) -> float:
        """Bytes of its layers; tables are the target's own.

        Layers are dense ones at 2 bytes a weight, or with experts in the precision of the target's own.
        Raises ``BadInputError`` where it takes experts and the target has none.
        """
        if self.experts:
            return self.layers * self._bytes_with_experts(model)
        width = model.intermediate
        if model.experts is not None:
            width = model.experts.intermediate * (model.experts.per_token + model.experts.shared)
        return 2.0 * self.layers * (model.attention_parameters + 3 * model.hidden * width)

    def _bytes_with_experts(self, model: ModelShape) -> float:
        """Bytes of one layer that holds all experts, its router and its attention."""
        experts = model.experts
        if experts is None:
            raise BadInputError(
                "has layers of experts, and the model has none", source="drafter", value=f"{self.name}:v4",
                remedy="name its layers, as in dspark:5l",
            )  # fmt: skip
        shared = experts.shared * model.expert_parameters
        dense = model.attention_parameters + shared + model.hidden * experts.count
        routed = experts.count * model.expert_parameters
        beside = model.dense_precision(model.native)
        return dense * WEIGHT_BYTES[beside] + routed * WEIGHT_BYTES[model.native]


def parse_drafter(text: str) -> Drafter:
    """Read ``dspark:5l@7`` (layers, block), ``dspark:v4``, ``dflash:5l``, ``eagle3``, ``mtp1`` or ``mtp:K``.

    ``dspark:v4`` is DeepSeek-V4's production draft: three layers with the target's experts, blocks of 5, a
    window of 128 tokens (config.json of DeepSeek-V4-Flash-DSpark).

    >>> parse_drafter("dspark:5l").rows
    7
    """
    if text.strip() == "dspark:v4":
        return Drafter("dspark", 3, 5, "semi-autoregressive", experts=True, window=128)
    found = re.fullmatch(r"(dspark|dflash):(\d+)l(?:@(\d+))?", text.strip())
    if found:
        structure: Structure = "semi-autoregressive" if found[1] == "dspark" else "parallel"
        return _checked(Drafter(found[1], int(found[2]), int(found[3] or BLOCK), structure), text)
    found = re.fullmatch(r"eagle3(?:@(\d+))?", text.strip())
    if found:
        return _checked(Drafter("eagle3", 1, int(found[1] or BLOCK), "autoregressive"), text)
    found = re.fullmatch(r"mtp1|mtp:(\d+)", text.strip())
    if found:
        block = int(found[1] or 1)
        return _checked(Drafter("mtp1" if block == 1 else "mtp", 1, block, "autoregressive"), text)
    raise BadInputError("is not a drafter", source="drafter", value=text, remedy=f"write one of {_FORMS}")


def _checked(drafter: Drafter, text: str) -> Drafter:
    if not 1 <= drafter.layers <= 64 or not 1 <= drafter.block <= 255:
        raise BadInputError(
            "needs 1 to 64 layers and blocks of 1 to 255", source="drafter", value=text, remedy=_FORMS
        )
    return drafter
