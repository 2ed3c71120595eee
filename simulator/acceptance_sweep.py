"""Static confidence thresholds: what they verify, what they commit, and the picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.acceptance import AcceptanceModel, anchor_rows
from simulator.errors import BadInputError
from simulator.published import SweepEnds, published
from simulator.schedulers.search import confident

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def threshold_sweep(model: AcceptanceModel, thresholds: Sequence[float], seed: int) -> pd.DataFrame:
    """Verify each block up to its first draft whose confidence is below the threshold (paper, figure 5).

    The raw confidence of the single draft decides, not the product. Every sequence of the replay is walked
    from its first row to its last, each step advancing by what it committed.

    Returns one row per threshold: ``threshold, verified_length_mean, accepted_length_mean,
    acceptance_rate``. The bonus token counts in both lengths, and the rate is accepted over verified.
    Raises ``BadInputError`` for a model without confidences and for thresholds outside 0..1.
    """
    import pandas as pd  # slow to import

    if not model.has_confidence:
        raise BadInputError(
            "has no confidence head, so no threshold applies",
            source=model.name,
            remedy="choose a DSpark model or a trace with confidences",
        )
    if not len(thresholds):
        raise BadInputError("needs at least one", source=model.name, field="thresholds")
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise BadInputError("must be within 0..1", source=model.name, field="thresholds", value=threshold)
    replay = model.replay(seed, raw=True)
    rows = []
    for threshold in thresholds:
        verified = _leading(confident(replay.survival, threshold)) + 1
        committed = np.minimum(replay.accepted.astype(np.int64) + 1, verified)
        steps = anchor_rows(replay, committed)
        rows.append(
            {
                "threshold": float(threshold),
                "verified_length_mean": verified[steps].mean(),
                "accepted_length_mean": committed[steps].mean(),
                "acceptance_rate": committed[steps].sum() / verified[steps].sum(),
            }
        )
    return pd.DataFrame(rows)


def plot_threshold_sweep(sweep: pd.DataFrame, model: AcceptanceModel) -> Figure:
    """Figure 5's two curves over the threshold, with its published end points where the paper has them."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    lengths = figure.subplots()
    rates = lengths.twinx()
    for axes, column, colour, label in (
        (lengths, "verified_length_mean", "tab:grey", "verified per step"),
        (lengths, "accepted_length_mean", "tab:blue", "accepted per step"),
        (rates, "acceptance_rate", "tab:orange", "acceptance rate (right axis)"),
    ):
        axes.plot(sweep["threshold"], sweep[column], color=colour, marker="o", markersize=3, label=label)
    known = published_ends(model)
    if known is not None:
        dataset, ends = known
        style: dict[str, Any] = {
            "linestyle": "none",
            "marker": "D",
            "markersize": 7,
            "markerfacecolor": "none",
        }
        lengths.plot(
            ends.threshold, ends.accepted_length, color="tab:blue", label=f"published, {dataset}", **style
        )
        rates.plot(
            ends.threshold, ends.acceptance_rate, color="tab:orange", label="_", **style
        )  # one entry for both
    lengths.set(
        xlabel="threshold on raw confidence", ylabel="tokens per step, bonus included", title=model.name
    )
    lengths.set_ylim(bottom=0)
    rates.set(ylabel="accepted / verified", ylim=(0, 1.02))
    handles = [*lengths.get_legend_handles_labels()[0], *rates.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def published_ends(model: AcceptanceModel) -> tuple[str, SweepEnds] | None:
    """Figure 5's end points and their dataset, for the fitted model of that dataset or of its domain.

    None for any other model, and for a block size other than the paper's.
    """
    figures = published()
    sweeps = figures.threshold_sweep_ends
    if model.gamma != figures.accepted_length.gamma:
        return None
    for domain, dataset in sweeps.datasets.items():
        prefix = f"{sweeps.target}/{sweeps.drafter}"
        if model.name in (f"{prefix}/{dataset}", f"{prefix}/{domain}"):
            return dataset, sweeps.values[domain]
    return None


def _leading(passes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many drafts of each block pass before the first that does not, [N]."""
    leading: NDArray[np.int64] = np.logical_and.accumulate(passes, axis=1).sum(axis=1)
    return leading
