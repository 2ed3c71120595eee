"""Files that people write: a strict base class, and validation errors as one line."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from simulator.core.errors import BadInputError


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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
