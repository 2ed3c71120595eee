"""The origin of a number. Every profile, trace and fitted model carries one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["measured", "kernels", "modelled", "published", "fitted", "synthetic", "mixed"]
"""kernels: composed from measured kernels. modelled: from a formula. fitted: to published results."""


class Provenance(BaseModel):
    """Origin of a data file. A number of several origins has kind ``mixed`` and lists them in ``source``."""

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
        # Caches use models as keys by value, and a mapping such as ``software`` has no hash.
        return hash(self.model_dump_json())

    def line(self) -> str:
        """Return the origin on one line, for listings."""
        where = f" on {self.device}" if self.device else ""
        return f"{self.kind}{where}, {self.date}: {self.source}"
