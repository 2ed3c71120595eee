"""Which format a draft checkpoint is in: packagings share field names and differ inside."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.live.models.checkpoints import Fields

_PACKAGINGS = {
    "Eagle": "an Eagle drafter of another kind than DeepSpec's",
    "DFlash": "z-lab's DFlash packaging",
    "NextN": "an MTP module exported by itself",
    "MTPModel": "an MTP module exported by itself",
    "Deepseek": "DeepSeek's own packaging of another model than V3 and V4",
    "DeepSeek": "DeepSeek's own packaging of another model than V3 and V4",
    "Glm4Moe": "GLM's packaging of an MTP module",
    "ForCausalLM": "a whole language model, not a draft",
}
"""What an architecture's name gives away about checkpoints that share DeepSpec's field names."""


def architecture(fields: Fields, known: Sequence[str]) -> str:
    """Tell the architecture that a draft's config names; raises ``BadInputError`` for an unknown one."""
    named = fields.raw.get("architectures")
    if isinstance(named, list) and len(named) == 1 and named[0] in known:
        return str(named[0])
    text = str(named[0]) if isinstance(named, list) and named else ""
    packaging = next((what for mark, what in _PACKAGINGS.items() if mark in text), None)
    if "speculators_config" in fields.raw or "speculators_model_type" in fields.raw:
        packaging = "vLLM's speculators format"
    problem = f"is {packaging}, which is not read here" if packaging else "names no draft that is read here"
    raise fields.error("architectures", problem, f"convert it to {' or '.join(known)}")
