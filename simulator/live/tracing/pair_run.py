"""Tracing any pair over a file of prompts: bounded memory, resumed where it was interrupted.

The product behind ``dspark-sim trace --target PATH --draft PATH --prompts FILE.jsonl``. Each prompt is
traced by itself and kept; the trace is put together when all are there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.acceptance.trace import AcceptanceTrace
from simulator.acceptance.trace_file import save_trace
from simulator.core.errors import BadInputError
from simulator.core.files import PARTIAL, write_json
from simulator.core.provenance import Provenance
from simulator.core.reading import read_json
from simulator.core.statistics import t_quantile
from simulator.live.device import device_name, software
from simulator.live.models import sampling
from simulator.live.models.draft import Draft
from simulator.live.models.pairs import asked_dtype, check_pair, load_draft
from simulator.live.models.targets import Target, load_target
from simulator.live.tracing.generate import stop_ids
from simulator.live.tracing.prompt_trace import SAMPLED, PromptTrace, trace_prompt
from simulator.live.tracing.prompts import PromptOptions, read_prompts
from simulator.live.tracing.record import Kind
from simulator.live.tracing.report import Recorded

_SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class PairTracing:
    """What is recorded of each prompt; the defaults are those of DeepSpec's evaluation.

    output_tokens: anchors of each output at most. command: what repeats the run, for provenance.
    """

    output_tokens: int = 2048
    temperature: float = 1.0
    seed: int = 0
    command: str = ""

    def __post_init__(self) -> None:
        if self.output_tokens < 1:
            raise BadInputError("must be at least 1", field="output_tokens", value=self.output_tokens)
        if not 0 <= self.temperature < float("inf"):
            raise BadInputError(
                "must be 0 (greedy) or above, and finite", field="temperature", value=self.temperature
            )


@dataclass(frozen=True, slots=True, eq=False)
class TracedPair:
    """What a pair left.

    file: the trace that was written. recorded: it and the other records of the same outputs. rounds: one
    row, ``rounds_table``.
    """

    file: Path
    recorded: Sequence[Recorded]
    rounds: pd.DataFrame


def trace_files(
    target: str,
    draft: str,
    prompts: Path,
    out: Path,
    *,
    reading: PromptOptions,
    options: PairTracing,
    device: str = "cpu",
    dtype: str | None = None,
    on_prompt: Callable[[int, int], None] = lambda done, prompts: None,
) -> TracedPair:
    """Load a pair and a file of prompts and trace them; see ``trace_pair``, ``read_prompts``."""
    kind = asked_dtype(dtype, device)
    model = load_target(target, dtype=kind, device=device)
    encoded = read_prompts(prompts, model.folder, reading)
    return trace_pair(
        model, load_draft(draft, dtype=kind, device=device), encoded, out, dataset=prompts.stem,
        options=options, on_prompt=on_prompt,
    )  # fmt: skip


def trace_pair(
    target: Target,
    draft: Draft,
    prompts: Sequence[Sequence[int]],
    out: Path,
    *,
    dataset: str,
    options: PairTracing | None = None,
    on_prompt: Callable[[int, int], None] = lambda done, prompts: None,
) -> TracedPair:
    """Trace every prompt and write ``OUT/TARGET-DRAFT-DATASET-greedy.parquet``, or ``...-sampled``.

    on_prompt: told how many prompts are done, and of how many. What an earlier call has finished is kept
    beside the file until the trace is whole; it is used again when pair, prompts and options are the
    same, and refused with a ``BadInputError`` when they are not.
    """
    options = options or PairTracing()
    check_pair(target, draft)
    kind = "greedy" if sampling.is_greedy(options.temperature) else "sampled"
    name = f"{_stem(target.name)}-{_stem(draft.source or 'draft')}-{dataset}-{kind}"
    parts = Path(out) / f"{PARTIAL}{name}"
    _claim(parts, _settings(target, draft, prompts, options))
    for index, prompt in enumerate(prompts):
        path = parts / f"{index:06}.npz"
        if not path.exists():
            trace_prompt(
                target, draft, prompt, output_tokens=options.output_tokens,
                temperature=options.temperature, stop_token_ids=stop_ids(target), seed=options.seed + index,
            ).save(path)  # fmt: skip
        on_prompt(index + 1, len(prompts))
    traced = [PromptTrace.load(parts / f"{index:06}.npz") for index in range(len(prompts))]
    provenance = _provenance(target, draft, dataset, options)
    kinds: tuple[Kind, ...] = ("greedy",) if kind == "greedy" else SAMPLED
    traces = {each: _assembled(traced, each, name, draft.gamma, provenance) for each in kinds}
    file = Path(out) / f"{name}.parquet"
    save_trace(traces[kinds[0]], file)
    shutil.rmtree(parts)
    recorded = [Recorded(_stem(draft.source or "draft"), dataset, each, traces[each]) for each in kinds]
    return TracedPair(file, recorded, rounds_table(traced, dataset, draft.gamma))


def rounds_table(traced: Sequence[PromptTrace], dataset: str, gamma: int) -> pd.DataFrame:
    """Summarise rounds under full verification, in the definitions of DeepSpec's evaluation.

    Columns dataset, prompts, rounds, accepted_length (tokens committed per round, bonus included),
    half_width (95%, prompts being the independent samples of a ratio), drafts_per_round, verify_rate
    (tokens committed per row verified) and accept_rate@k: of the rounds that proposed more than k drafts,
    the share that accepted more than k.
    """
    proposed, accepted, committed = (
        np.concatenate([getattr(each, field) for each in traced])
        for field in ("proposed", "accepted", "committed")
    )
    tokens = np.array([each.committed.sum() for each in traced], dtype=np.float64)
    rounds = np.array([len(each.committed) for each in traced], dtype=np.float64)
    row: dict[str, Any] = {"dataset": dataset, "prompts": len(traced), "rounds": len(committed)}
    tau = tokens.sum() / rounds.sum() if rounds.any() else float("nan")
    row |= {
        "accepted_length": tau,
        "half_width": _half_width(tokens, rounds, tau),
        "drafts_per_round": float(proposed.mean()) if len(proposed) else float("nan"),
        "verify_rate": committed.sum() / max(proposed.sum() + len(proposed), 1),
    }
    for k in range(gamma):
        of = int((proposed > k).sum())
        row[f"accept_rate@{k}"] = float((accepted > k).sum() / of) if of else float("nan")
    return pd.DataFrame([row])


def _half_width(tokens: NDArray[Any], rounds: NDArray[Any], tau: float) -> float:
    count = len(tokens)
    if count < 2 or not rounds.any():
        return float("nan")
    spread = (tokens - tau * rounds).std(ddof=1) * np.sqrt(count) / rounds.sum()
    return float(spread * t_quantile(0.975, count - 1))


def _assembled(
    traced: Sequence[PromptTrace], kind: Kind, name: str, gamma: int, provenance: Provenance
) -> AcceptanceTrace:
    kept = [each for each in traced if len(each.tokens)]
    if not kept:
        raise BadInputError("every output stops at once", source=name, remedy="choose other prompts")
    outcome = np.concatenate([each.outcomes[kind] for each in kept])
    effective = np.concatenate([each.effective_length for each in kept])
    logits = [each.confidence_logits for each in kept if each.confidence_logits is not None]
    return AcceptanceTrace(
        name=name,
        confidence_logits=np.concatenate(logits) if logits else None,
        sequence_start=np.concatenate([[0], np.cumsum([len(each.tokens) for each in kept])]),
        provenance=provenance,
        accepted=outcome if kind == "greedy" else None,
        acceptance_probability=None if kind == "greedy" else outcome,
        effective_length=None if bool((effective == gamma).all()) else effective,
        target_tokens=np.concatenate([each.tokens for each in kept]),
        block_size=gamma,
    )


def _settings(
    target: Target, draft: Draft, prompts: Sequence[Sequence[int]], options: PairTracing
) -> dict[str, Any]:
    """All that a part depends on."""
    return {
        "target": target.digest,
        "draft": draft.digest,
        "prompts": hashlib.sha256(json.dumps([list(each) for each in prompts]).encode()).hexdigest(),
        "output_tokens": options.output_tokens,
        "temperature": options.temperature,
        "seed": options.seed,
        "device": device_name(target.device),
        "software": software(),
    }


def _claim(parts: Path, settings: dict[str, Any]) -> None:
    """Begin a folder of parts, or continue one of the same settings."""
    file = parts / _SETTINGS
    if not file.exists():
        write_json(file, settings)
        return
    found = read_json(file)
    before = found if isinstance(found, dict) else {}
    different = [name for name, value in settings.items() if before.get(name) != value]
    if different:
        raise BadInputError(
            f"holds an unfinished trace of another {different[0]}", source=str(parts), field=different[0],
            value=before.get(different[0]), remedy="choose another --out, or delete this folder",
        )  # fmt: skip


def _provenance(target: Target, draft: Draft, dataset: str, options: PairTracing) -> Provenance:
    dtype = str(target.dtype).removeprefix("torch.")
    return Provenance(
        kind="measured",
        source=f"the target's own output after the prompts of {dataset}",
        date=date.today().isoformat(),
        command=options.command,
        device=device_name(target.device),
        software=software(),
        model=_stem(target.name),
        draft=_stem(draft.source or "draft"),
        notes=f"{dtype}; acceptance at temperature {options.temperature:g}",
    )


def _stem(name: str) -> str:
    return Path(name).name or name
