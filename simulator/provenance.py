"""Where a number comes from: every profile, trace and fitted model carries this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from simulator.errors import BadInputError

Kind = Literal["measured", "published", "fitted", "synthetic", "mixed"]


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


def complain(error: ValidationError, source: str) -> BadInputError:
    """Turn pydantic's report into one error that names the file, the field, the value and the remedy."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    if first["type"] == "extra_forbidden":
        return BadInputError(
            "unknown key", source=source, field=field, remedy="remove it or correct its spelling"
        )
    if first["type"] == "missing":
        return BadInputError("is missing", source=source, field=field, remedy="add it")
    return BadInputError(
        first["msg"], source=source, field=field, value=first.get("input"), remedy="correct it"
    )
