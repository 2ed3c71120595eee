"""Which cells a profile measures, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.core.errors import BadInputError
from simulator.live.profiling.cells import Repeats
from simulator.schedulers.parse import parse_policy

What = tuple[str, str, int, int, int]
"""Of a cell: kind, name, requests, batch tokens, context tokens."""

NO_DRAFTER = "none"


@dataclass(frozen=True, slots=True)
class Grid:
    """What to measure. drafts: draft tokens per request; context: positions per request.

    Raises ``BadInputError`` for sizes that do not increase and for a policy that nobody knows.
    """

    requests: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    drafts: tuple[int, ...] = (0, 1, 3, 7)
    context: tuple[int, ...] = (512, 2048, 8192)
    prefill: tuple[int, ...] = (128, 512, 2048)
    policies: tuple[str, ...] = ("dspark", "dspark-async")

    def __post_init__(self) -> None:
        for name in ("requests", "drafts", "context", "prefill"):
            sizes = getattr(self, name)
            least = 0 if name == "drafts" else 1
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < least:
                raise BadInputError(f"must be increasing sizes from {least} up", field=name, value=sizes)
        if len(self.requests) < 2 or len(self.drafts) < 2:
            raise BadInputError(
                "needs two sizes: requests and batch tokens must be told apart", field="requests, drafts"
            )
        for policy in self.policies:  # known before anything is measured
            parse_policy(policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """How to measure.

    tolerance: by how much the first cell may differ when measured again at the end. rounds: how often
    everything is measured, one round after the other; the median of a cell's rounds counts. temperature: of
    drafts and of verification; above 0 both draw from distributions over the vocabulary.
    """

    grid: Grid = field(default_factory=Grid)
    repeats: Repeats = field(default_factory=Repeats)
    tolerance: float = 0.05
    rounds: int = 1
    attention: str = "auto"
    graphs: bool = True
    fuse: bool = True
    graph_tiers: bool = True
    temperature: float = 0.0
    command: str | None = None
