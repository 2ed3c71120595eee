"""Where a number comes from: every profile, trace and fitted model carries this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["measured", "kernels", "modelled", "published", "fitted", "synthetic", "mixed"]
"""kernels: composed from measured kernels. modelled: from a formula. fitted: to published results."""


class Provenance(BaseModel):
    """Origin of a data file; a number that mixes sources says ``mixed`` and lists them in ``source``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    source: str
    date: str
    command: str | None = None
    device: str | None = None
    driver: str | None = None
    software: Mapping[str, str] = {}
    model: str | None = None
    draft: str | None = None
    notes: str | None = None

    def __hash__(self) -> int:
        # Models are cached by value, and the mapping of software versions has no hash of its own.
        return hash(self.model_dump_json())

    def line(self) -> str:
        """One line for listings."""
        where = f" on {self.device}" if self.device else ""
        return f"{self.kind}{where}, {self.date}: {self.source}"
