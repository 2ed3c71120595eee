"""Traces say exactly what running the policies does, and the shipped ones are what they claim."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simulator.acceptance.calibration import expected_calibration_error, prefix_survival
from simulator.acceptance.trace import AcceptanceTrace, Replay
from simulator.acceptance.trace_file import load_trace
from simulator.core.errors import BadInputError
from simulator.core.files import data_directory
from simulator.core.provenance import Provenance
from simulator.live.models.draft import Draft
from simulator.live.models.pairs import load_draft
from simulator.live.models.targets import Target, load_target
from simulator.live.tracing.generate import SAME_TIME, generate
from simulator.live.tracing.record import (
    Outputs,
    acceptance_probability,
    prefix_outcomes,
    record,
    write_outputs,
)
from simulator.live.tracing.run import shipped_pair
from simulator.live.training.tokens import load_tokenizer
from simulator.schedulers.policies import DSpark, Fixed, Threshold
from simulator.schedulers.protocol import Batch

PROVENANCE = Provenance(kind="measured", source="a test", date="today")
PROMPT_TOKENS, ROWS, MARGIN = 16, 32, 7
TEXTS = (
    "Add 4731 and 862.\nones: 1 + 2 = 3, write 3\n",
    "    def __init__(self, name, value):\n        self.name = name\n",
    "Return a list of the words in the string, using sep as the delimiter string.",
    "Multiply 5821 by 7.\nones: 1 * 7 = 7, write 7\n",
)


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target(shipped_pair() / "target", dtype=torch.float32)


@pytest.fixture(scope="module")
def drafts() -> Mapping[str, Draft]:
    return {
        name: load_draft(shipped_pair() / name, dtype=torch.float32) for name in ("dspark", "dflash", "mtp")
    }


@pytest.fixture(scope="module")
def prompts() -> torch.Tensor:
    tokenizer = load_tokenizer(shipped_pair() / "target")
    return torch.tensor([tokenizer.encode(text).ids[:PROMPT_TOKENS] for text in TEXTS])


@pytest.fixture(scope="module")
def outputs(target: Target, prompts: torch.Tensor) -> Outputs:
    return write_outputs(target, prompts, ROWS, margin=MARGIN)


@pytest.fixture(scope="module")
def traces(target: Target, drafts: Mapping[str, Draft], outputs: Outputs) -> Mapping[str, AcceptanceTrace]:
    return {
        name: record(target, draft, outputs, "greedy", name=name, provenance=PROVENANCE)
        for name, draft in drafts.items()
    }


def replayed(replay: Replay, sequence: int, scheduler: Any) -> list[tuple[int, int, int]]:
    """Walk one sequence under a policy: (position of the anchor, verified, accepted) of each round."""
    row, end = replay.sequence_start[sequence : sequence + 2].tolist()
    first, rounds = row, []
    while row < end:
        length = int(scheduler.schedule(replay.survival[row : row + 1], Batch(cost=SAME_TIME))[0])
        accepted = min(int(replay.accepted[row]), length)
        rounds.append((row - first, length, accepted))
        row += accepted + 1
    return rounds


CASES = (
    *(("dspark", policy) for policy in (Fixed(0), Fixed(1), Fixed(3), Fixed(7), Threshold(0.6), DSpark())),
    *(("dflash", policy) for policy in (Fixed(1), Fixed(3), Fixed(7))),
    ("mtp", Fixed(1)),
)


@pytest.mark.parametrize(("name", "policy"), CASES, ids=str)
def test_replay_is_what_speculative_decoding_does_round_by_round(
    target: Target, drafts: Mapping[str, Draft], outputs: Outputs, traces: Mapping[str, AcceptanceTrace],
    name: str, policy: Any,
) -> None:  # fmt: skip
    draft, replay = drafts[name], traces[name].replay(0, raw=True)
    for sequence, tokens in enumerate(outputs.tokens.tolist()):
        run = generate(target, draft, tokens[:PROMPT_TOKENS], max_new_tokens=ROWS, scheduler=policy)
        assert run.output_ids == tokens[PROMPT_TOKENS : PROMPT_TOKENS + ROWS]
        really = [(r.start - PROMPT_TOKENS, r.verification_length, r.accepted) for r in run.rounds]
        assert replayed(replay, sequence, policy) == really


def test_recorded_confidences_are_those_of_the_blocks_really_drafted(
    target: Target, drafts: Mapping[str, Draft], outputs: Outputs, traces: Mapping[str, AcceptanceTrace]
) -> None:
    trace = traces["dspark"]
    assert trace.confidence_logits is not None
    run = generate(target, drafts["dspark"], outputs.tokens[0, :PROMPT_TOKENS].tolist(), max_new_tokens=ROWS)
    for item in run.rounds:
        recorded = trace.confidence_logits[item.start - PROMPT_TOKENS]
        np.testing.assert_allclose(recorded, item.confidence_logits or (), atol=1e-4)


def test_sequences_end_at_a_stop_token_as_they_do_in_generation(
    target: Target, drafts: Mapping[str, Draft], prompts: torch.Tensor, outputs: Outputs
) -> None:
    stop = int(outputs.tokens[0, PROMPT_TOKENS + 20])
    stopped = write_outputs(target, prompts, ROWS, margin=MARGIN, stop_token_ids=[stop])
    draft = drafts["dspark"]
    trace = record(target, draft, stopped, "greedy", name="x", provenance=PROVENANCE)
    assert trace.effective_length is not None
    replay, kept = trace.replay(0), [i for i in range(len(prompts)) if stopped.ends[i] > PROMPT_TOKENS]
    assert len(kept) == len(trace.sequence_start) - 1
    for sequence, row in enumerate(kept):
        prompt = stopped.tokens[row, :PROMPT_TOKENS].tolist()
        run = generate(target, draft, prompt, max_new_tokens=ROWS, stop_token_ids=[stop])
        really = [(r.start - PROMPT_TOKENS, r.verification_length, r.accepted) for r in run.rounds]
        assert replayed(replay, sequence, Fixed(7)) == really


def test_coupled_acceptance_gives_the_exact_law_of_output_and_length_and_expected_nearly_does() -> None:
    """Two draft positions and three tokens, every case enumerated, against rejection sampling itself."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.softmax(2 * torch.randn(4, 3, generator=generator), -1) for _ in range(2))
    # Row 0 is the first position; row 1 + x the second, after token x.
    shared = torch.minimum(p, q)
    both = sum(float(shared[0, x] * shared[1 + x].sum()) for x in range(3))
    tokens = torch.arange(3).expand(4, 3)
    spread = (p[:, None].expand(4, 3, 3), q[:, None].expand(4, 3, 3), tokens)
    reached = {}
    for kind in ("coupled", "expected"):
        accept = acceptance_probability(*spread, kind)  # [row, output token]
        np.testing.assert_allclose(
            (p * accept).sum(1), shared.sum(1), atol=1e-6
        )  # both: mean of one position
        reached[kind] = sum(
            float(p[0, x] * accept[0, x] * (p[1 + x] * accept[1 + x]).sum()) for x in range(3)
        )
    assert reached["coupled"] == pytest.approx(both, abs=1e-6)
    assert reached["expected"] != pytest.approx(both, abs=1e-3)


def test_sampled_replay_has_the_accepted_length_of_real_sampling(
    target: Target, drafts: Mapping[str, Draft], prompts: torch.Tensor
) -> None:
    """The two means of tokens per round agree within 4 standard errors; the seeds are fixed."""
    many = prompts.repeat(12, 1)
    outputs = write_outputs(target, many, 24, margin=MARGIN, temperature=1.0, seed=5)
    trace = record(target, drafts["dspark"], outputs, "coupled", name="x", provenance=PROVENANCE)
    replay = trace.replay(0)
    simulated = [len(replayed(replay, sequence, Fixed(7))) for sequence in range(len(many))]
    real = [
        len(generate(target, drafts["dspark"], row, max_new_tokens=24, temperature=1.0, seed=100 + i).rounds)
        for i, row in enumerate(many.tolist())
    ]
    difference = np.mean(simulated) - np.mean(real)
    assert abs(difference) < 4 * np.hypot(np.std(simulated), np.std(real)) / np.sqrt(len(many))


def test_kind_and_temperature_must_agree(
    target: Target, drafts: Mapping[str, Draft], outputs: Outputs
) -> None:
    with pytest.raises(BadInputError, match=r"kind.*temperature 0"):
        record(target, drafts["mtp"], outputs, "expected", name="x", provenance=PROVENANCE)


def shipped(pattern: str) -> list[Path]:
    found = sorted((data_directory("traces") / "acceptance").glob(pattern))
    assert found
    return found


def test_shipped_files_are_small_and_say_where_they_come_from() -> None:
    assert sum(file.stat().st_size for file in shipped("*.parquet")) < 5e6
    assert sum(file.stat().st_size for file in shipped_pair().rglob("*") if file.is_file()) < 10e6
    for file in shipped("*.parquet"):
        trace = load_trace(file)
        assert trace.name == file.stem
        assert trace.provenance.kind == "measured"
        assert trace.provenance.command
        assert trace.provenance.device


def test_calibration_improves_the_shipped_greedy_traces() -> None:
    traces = [load_trace(file) for file in shipped("tiny-dspark-*-greedy.parquet")]
    assert _pooled_error(traces, calibrated=True) < 0.7 * _pooled_error(traces, calibrated=False)


def _pooled_error(traces: list[AcceptanceTrace], *, calibrated: bool) -> float:
    survival = np.concatenate(
        [
            prefix_survival(trace.confidence_logits, trace.temperatures if calibrated else None)  # type: ignore[arg-type]
            for trace in traces
        ]
    )
    observed, judged = (np.concatenate(part) for part in zip(*map(prefix_outcomes, traces), strict=True))
    errors = [
        expected_calibration_error(survival[:, k], observed[:, k], weight=judged[:, k])
        for k in range(traces[0].gamma)
    ]
    return float(np.mean(errors))
