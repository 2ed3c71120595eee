"""What a decision would have given in a recorded step: exact where the outcome is known, bounded where not.

A block whose verified drafts were all accepted is censored: the next draft might have been accepted too. A
decision that verifies more of it gives at least what is known and at most all that it verifies.
Each step is asked for itself, with its requests where they stood: a run under another policy would have gone
on from other positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.core.arrays import Rows
from simulator.core.errors import BadInputError
from simulator.core.files import atomic_path, write_json, write_table
from simulator.cost.models import CostModel
from simulator.dumps.redecide import Decision, decide_again, explain
from simulator.dumps.steps import Recording, Step
from simulator.schedulers.engines.sglang import SGLang
from simulator.schedulers.parse import NamedPolicy


def bounds(step: Step, lengths: Rows) -> tuple[int, int]:
    """Tokens that so many drafts would have committed in a step, bonus tokens included: least and most."""
    least = np.minimum(lengths, step.accepted)
    most = np.where(step.censored, lengths, least)
    return step.requests + int(least.sum()), step.requests + int(np.maximum(least, most).sum())


@dataclass(frozen=True, slots=True)
class Replayed:
    """A dump decided again.

    steps: one row a step of the first policy with the first table, with what explains a difference. policies:
    one row each for the engine and for every policy with every table, over the steps that all can decide.
    """

    source: str
    mode: str
    gamma: int
    recorded_steps: int
    steps: pd.DataFrame
    policies: pd.DataFrame

    @property
    def differing(self) -> float:
        """Share of steps in which the first policy with the first table differs from the engine."""
        return float(self.steps["differs"].mean())

    def summary(self) -> str:
        """Say in a few lines what was found."""
        lines = [
            f"{len(self.steps)} of {self.recorded_steps} recorded steps decided again (mode {self.mode}, "
            f"blocks of {self.gamma}); the rest lack confidences or earlier steps",
            f"{self.differing:.1%} differ from the engine",
        ]
        lines += [f"  {row['steps']:6d}  {row['why']}" for row in self.reasons().to_dict("records")]
        for row in self.policies.to_dict("records"):
            least, most = row["throughput_least_tok_per_s"], row["throughput_most_tok_per_s"]
            span = f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"
            on = f" on {row['table']}" if row["table"] else ""
            lines.append(
                f"{row['policy']}{on}: {row['verification_budget_mean']:.2f} rows a request, {span} tok/s "
                f"({row['throughput_expected_tok_per_s']:,.0f} by the recorded confidences)"
            )
        return "\n".join(lines)

    def report(self) -> str:
        """Describe what was found as a page of Markdown."""
        policies = self.policies[list(_REPORTED)].rename(columns=_REPORTED)
        return "\n\n".join([
            f"# {self.source}, decided again",
            "```\n" + self.summary() + "\n```",
            "## What explains the differences", _table(self.reasons()),
            "## What others would have given", _table(policies),
            "Tokens and throughput are bounds where a block was accepted up to its cut: at least what is "
            "known, at most all that is verified. Step times are the first table's. "
            "Each step stands for itself.",
        ]) + "\n"  # fmt: skip

    def reasons(self) -> pd.DataFrame:
        """How many steps each reason explains, the most frequent first."""
        counts = self.steps["why"].value_counts()
        return pd.DataFrame({"why": counts.index, "steps": counts.to_numpy()})


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


_REPORTED = {
    "policy": "policy", "table": "table", "differing_share": "differs", "verification_budget_mean": "rows",
    "throughput_least_tok_per_s": "tok/s at least", "throughput_most_tok_per_s": "at most",
    "gain_least": "gain at least", "gain_most": "gain at most",
}  # fmt: skip


def _table(frame: pd.DataFrame) -> str:
    rows = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
    for row in frame.itertuples(index=False):
        rows.append([_shown(value) for value in row])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def replay(
    recording: Recording, policies: Sequence[NamedPolicy], tables: Sequence[tuple[str, CostModel]]
) -> Replayed:
    """Decide a recording again under every policy with every table.

    The first policy with the first table stands for the engine: differences from it are explained where it
    is ``sglang``. The first table is also the clock of all. Raises ``BadInputError`` where there is no step
    that all can decide.
    """
    if not policies or not tables:
        raise BadInputError(
            "needs a policy and a table", source="replay", remedy="--policy sglang --table T.json"
        )
    decided = {
        (policy.name, named): decide_again(recording, policy.scheduler, table)
        for policy in policies for named, table in tables
    }  # fmt: skip
    common = set.intersection(*({id(each.step) for each in mine} for mine in decided.values()))
    if not common:
        raise BadInputError(
            "holds no step that all policies can decide", source=recording.source, field="records",
            remedy="record more consecutive steps, with confidences",
        )  # fmt: skip
    clock, engine = tables[0][1], policies[0].scheduler
    first = next(iter(decided.values()))
    why = ["another policy" if each.differs else "agrees" for each in first]
    if isinstance(engine, SGLang):
        why = explain(recording, engine, clock, first)
    rows = [_step_row(clock, each, reason) for each, reason in zip(first, why, strict=True)]
    asked = [each for each in first if id(each.step) in common]
    recorded = [Decision(each.rank, each.step, each.step.lengths) for each in asked]
    lines = [_line("as recorded", "", recorded, clock)]
    for (name, named), mine in decided.items():
        lines.append(_line(name, named, [each for each in mine if id(each.step) in common], clock))
    summary = pd.DataFrame(lines)
    base = summary["throughput_least_tok_per_s"].iloc[0]  # what was recorded is known: least and most are one
    summary["gain_least"] = summary["throughput_least_tok_per_s"] / base - 1
    summary["gain_most"] = summary["throughput_most_tok_per_s"] / base - 1
    total = sum(map(len, recording.ranks))
    return Replayed(recording.source, recording.mode, recording.gamma, total, pd.DataFrame(rows), summary)


def _step_row(table: CostModel, decision: Decision, why: str) -> dict[str, object]:
    step = decision.step
    rows = step.requests + int(step.lengths.sum())
    return {
        "rank": decision.rank, "forward_ct": step.forward_ct, "requests": step.requests,
        "engine_drafts": int(step.lengths.sum()), "decided_drafts": int(decision.lengths.sum()),
        "differs": decision.differs, "why": why, "engine_budget": step.budget,
        "predicted_step_time_s": step.predicted_s, "measured_step_time_s": step.measured_s,
        "table_step_time_s": table.step_time_s(step.requests, rows, step.context_tokens),
    }  # fmt: skip


def _line(policy: str, table: str, decisions: Sequence[Decision], clock: CostModel) -> dict[str, object]:
    least = most = drafts = requests = differing = 0
    expected = seconds = 0.0
    for each in decisions:
        step, mine = each.step, int(each.lengths.sum())
        low, high = bounds(step, each.lengths)
        least, most = least + low, most + high
        taken = np.arange(step.survival.shape[1]) < each.lengths[:, None]
        expected += step.requests + float(step.survival[taken].sum(dtype=np.float64))
        seconds += clock.step_time_s(step.requests, step.requests + mine, step.context_tokens)
        drafts, requests, differing = drafts + mine, requests + step.requests, differing + each.differs
    return {
        "policy": policy, "table": table, "steps": len(decisions),
        "differing_share": differing / len(decisions),
        "verification_budget_mean": 1 + drafts / requests, "tokens_least": least, "tokens_most": most,
        "tokens_expected": expected, "seconds": seconds, "throughput_least_tok_per_s": least / seconds,
        "throughput_most_tok_per_s": most / seconds, "throughput_expected_tok_per_s": expected / seconds,
    }  # fmt: skip


def write_replay(found: Replayed, out: Path, form: str = "csv") -> None:
    """Write ``report.md`` and its tables, CSV or parquet, and last, when all is there, ``replay.json``."""
    out.mkdir(parents=True, exist_ok=True)
    tables = {"decisions": found.steps, "reasons": found.reasons(), "policies": found.policies}
    for name, table in tables.items():
        write_table(out / f"{name}.{form}", table, "%.8g")
    with atomic_path(out / "report.md") as temporary:
        temporary.write_text(found.report(), encoding="utf-8")
    described = {
        "schema": 1, "source": found.source, "mode": found.mode, "gamma": found.gamma,
        "recorded_steps": found.recorded_steps, "decided_steps": len(found.steps),
        "differing_share": found.differing,
    }  # fmt: skip
    write_json(out / "replay.json", described)
