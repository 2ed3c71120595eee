"""A profile from a table of measured steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.core.reading import is_file
from simulator.cost.fit import Term, fit_additive, spread_token_probes
from simulator.deployment.engine_files import WHOLE_STEPS, Imported, fit_notes
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import AdditiveSpec

if TYPE_CHECKING:
    import pandas as pd

NEEDED = ("requests", "batch_tokens", "step_time_s")

TERMS: dict[str, Term] = {"context_tokens": "context", "prefill_tokens": "prefill"}
"""Columns that may stand beside the needed ones, and the term of the cost that each one tells."""


def fitted_profile(
    path: Path,
    *,
    name: str,
    device: str | None = None,
    model: str | None = None,
    replica_gpus: int | None = None,
) -> Imported:
    """Fit an additive step cost to a CSV or parquet file, a row for each measured step.

    Columns: requests; batch_tokens, all rows of the pass, anchors included; step_time_s, seconds; where they
    are there and vary, context_tokens (of the whole batch) and prefill_tokens too. A term is left out where
    its column does not vary. Raises ``BadInputError`` for other columns' absence, unreadable values, and
    cells that cannot tell the parts of the cost apart.
    """
    table = _read(path)
    terms = [
        term for column, term in TERMS.items() if column in table.columns and table[column].nunique() > 1
    ]
    sizes = len(table[["requests", "batch_tokens"]].drop_duplicates())
    try:
        fit = fit_additive(
            table, token_probes=spread_token_probes(table), terms=terms, folds=max(2, min(5, sizes))
        )
    except BadInputError as error:
        raise BadInputError(
            error.problem, source=str(path), field=error.field, value=error.value, remedy=error.remedy
        ) from error
    used = ", ".join(
        ["requests", "batch_tokens", *(column for column, term in TERMS.items() if term in terms)]
    )
    notes = (f"{len(table)} steps of {sizes} sizes; fitted on {used}", *fit_notes(fit), WHOLE_STEPS)
    profile = Profile(
        name=name,
        title=f"{model or name}{f' on {device}' if device else ''}",
        provenance=Provenance(
            kind="measured", source=str(path), date="undated", device=device, model=model,
            notes="; ".join(notes),
        ),
        step=AdditiveSpec.of(fit.cost),
        replica_gpus=replica_gpus,
    )  # fmt: skip
    return Imported(profile, notes)


def _read(path: Path) -> pd.DataFrame:
    """Read the columns that matter, as numbers."""
    import pandas as pd
    import pyarrow as pa

    if not is_file(path):
        raise BadInputError(
            "no such file", source=str(path), field="cells", remedy="give a CSV or parquet file"
        )
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, UnicodeDecodeError, pa.ArrowException) as error:
        raise BadInputError(
            f"is not a table: {error}", source=str(path), field="cells", remedy="give a CSV or parquet file"
        ) from error
    missing = [column for column in NEEDED if column not in table.columns]
    if missing:
        raise BadInputError(
            f"lacks {', '.join(missing)}", source=str(path), field="columns",
            value=", ".join(map(str, table.columns)), remedy=f"name the columns {', '.join(NEEDED)}",
        )  # fmt: skip
    kept = table[[*NEEDED, *(column for column in TERMS if column in table.columns)]]
    for column in kept.columns:
        if not pd.api.types.is_numeric_dtype(kept[column]):
            raise BadInputError(
                "is not a column of numbers", source=str(path), field=str(column),
                value=str(kept[column].iloc[0]) if len(kept) else None, remedy="give numbers alone",
            )  # fmt: skip
    return kept
