"""Any pair over a file of prompts: what is recorded, what is kept, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from simulator.acceptance.trace_file import load_trace
from simulator.core.errors import BadInputError
from simulator.live.models.draft import Draft
from simulator.live.models.pairs import load_draft
from simulator.live.models.targets import Target, load_target
from simulator.live.tracing import pair_run, record
from simulator.live.tracing.generate import generate
from simulator.live.tracing.pair_run import PairTracing, rounds_table, trace_pair
from simulator.live.tracing.prompt_trace import PromptTrace, trace_prompt
from simulator.live.tracing.prompts import PromptOptions, read_prompts
from simulator.live.tracing.run import shipped_pair
from simulator.schedulers.policies import Fixed
from tests.live.tracing.test_record import replayed
from tests.support.command_line import run as command

PROMPTS = ([40, 41, 42, 43, 44], [300, 20, 21], [7, 300, 64, 65, 66, 67])


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target(shipped_pair() / "target", dtype=torch.float32)


@pytest.fixture(scope="module")
def draft() -> Draft:
    return load_draft(shipped_pair() / "dspark", dtype=torch.float32)


@pytest.mark.parametrize("name", ["dspark", "mtp"])
@pytest.mark.parametrize("kinds", [("greedy",), ("expected", "coupled")])
def test_reading_in_small_pieces_changes_nothing(
    target: Target, name: str, kinds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_draft(shipped_pair() / name, dtype=torch.float32)
    tokens = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))
    anchors = torch.arange(9, 31)
    whole = record.judge(target, model, tokens, anchors, kinds, temperature=0.8)
    monkeypatch.setattr(record, "_POSITIONS_PER_PASS", 3)
    monkeypatch.setattr(record, "_ANCHORS_PER_PASS", 5)
    pieces = record.judge(target, model, tokens, anchors, kinds, temperature=0.8)
    for kind in kinds:
        torch.testing.assert_close(pieces.outcomes[kind], whole.outcomes[kind], atol=1e-4, rtol=1e-4)
    if whole.confidence_logits is not None:
        torch.testing.assert_close(pieces.confidence_logits, whole.confidence_logits, atol=1e-3, rtol=1e-3)


def test_acceptance_is_that_of_the_temperature(target: Target, draft: Draft) -> None:
    tokens = torch.tensor([[40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52]])
    judged = record.judge(target, draft, tokens, torch.tensor([4]), ("expected", "coupled"), temperature=0.5)
    states = target.forward(tokens, layer_ids=draft.target_layer_ids)
    proposal = draft.propose(
        states.features[0, :4], tokens[0, 1:5], torch.tensor([4]), draft.new_cache(1, 20)
    )
    p, q = (torch.softmax(2 * logits, -1) for logits in (states.logits[0, 4], proposal.logits[0, 0]))
    expected, coupled = (float(judged.outcomes[kind][0, 0, 0]) for kind in ("expected", "coupled"))
    assert expected == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-5)
    assert coupled == pytest.approx(min(1.0, float(q[45] / p[45])), abs=1e-4)


def test_a_greedy_trace_replays_what_speculation_does(target: Target, draft: Draft, tmp_path: Path) -> None:
    options = PairTracing(output_tokens=24, temperature=0.0)
    traced = trace_pair(target, draft, PROMPTS, tmp_path, dataset="three", options=options)
    assert traced.file.name == "target-dspark-three-greedy.parquet"
    assert [path.name for path in tmp_path.iterdir()] == [traced.file.name]
    replay = load_trace(traced.file).replay(0, raw=True)
    rounds = 0
    for index, prompt in enumerate(PROMPTS):
        for policy in (Fixed(7), Fixed(2)):
            run = generate(target, draft, prompt, max_new_tokens=24, scheduler=policy)
            really = [(r.start - len(prompt), r.verification_length, r.accepted) for r in run.rounds]
            # The anchor of row 0 is the first token of the output.
            assert replayed(replay, index, policy) == really
            rounds += len(really) if policy == Fixed(7) else 0
    assert int(traced.rounds["rounds"].iloc[0]) == rounds


def test_a_sampled_prompt_keeps_both_records_and_stops_where_the_output_does(
    target: Target, draft: Draft
) -> None:
    free = trace_prompt(target, draft, PROMPTS[0], output_tokens=30, temperature=1.0, seed=3)
    assert free.tokens.shape == (30,)
    assert set(free.outcomes) == {"expected", "coupled"}
    assert (free.effective_length == draft.gamma).all()
    stop = int(free.tokens[12])
    first = free.tokens.tolist().index(stop)
    cut = trace_prompt(
        target, draft, PROMPTS[0], output_tokens=30, temperature=1.0, seed=3, stop_token_ids=[stop]
    )
    np.testing.assert_array_equal(cut.tokens, free.tokens[:first])
    left = np.minimum(first - np.arange(first), draft.gamma)
    np.testing.assert_array_equal(cut.effective_length, left)
    known = np.arange(draft.gamma) < left[:, None]
    for kind in ("expected", "coupled"):
        ours, whole = cut.outcomes[kind][known], free.outcomes[kind][:first][known]
        np.testing.assert_allclose(ours, whole, atol=1e-4)
    nothing = trace_prompt(
        target, draft, PROMPTS[0], output_tokens=30, temperature=1.0, seed=3,
        stop_token_ids=[int(free.tokens[0])],
    )  # fmt: skip
    assert (len(nothing.tokens), len(nothing.committed)) == (0, 0)


def test_an_interrupted_trace_continues_with_what_is_finished(
    target: Target, draft: Draft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PairTracing(output_tokens=8, temperature=1.0, seed=5)
    whole = trace_pair(target, draft, PROMPTS, tmp_path / "whole", dataset="d", options=options)

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        trace_pair(target, draft, PROMPTS, out, dataset="d", options=options, on_prompt=stop)
    other = PairTracing(output_tokens=9, temperature=1.0, seed=5)
    with pytest.raises(BadInputError, match=r"output_tokens: .*unfinished trace.*got 8.*delete this folder"):
        trace_pair(target, draft, PROMPTS, out, dataset="d", options=other)
    traced_now: list[int] = []

    def counted(*arguments: Any, seed: int, **more: Any) -> PromptTrace:
        traced_now.append(seed)
        return trace_prompt(*arguments, seed=seed, **more)

    monkeypatch.setattr(pair_run, "trace_prompt", counted)
    continued = trace_pair(target, draft, PROMPTS, out, dataset="d", options=options)
    assert traced_now == [7]
    for mine, theirs in zip(continued.recorded, whole.recorded, strict=True):
        np.testing.assert_array_equal(mine.trace.acceptance_probability, theirs.trace.acceptance_probability)
    pd.testing.assert_frame_equal(continued.rounds, whole.rounds)


def _rounds(proposed: list[int], accepted: list[int], committed: list[int]) -> PromptTrace:
    nothing = np.zeros(0)
    return PromptTrace(
        nothing.astype(np.int64), nothing.astype(np.uint8), {}, None,
        np.array(proposed), np.array(accepted), np.array(committed),
    )  # fmt: skip


def test_the_table_of_rounds_has_deepspecs_definitions() -> None:
    traced = [_rounds([3, 3], [3, 0], [4, 1]), _rounds([3, 2], [1, 2], [2, 2])]
    row = rounds_table(traced, "d", 3).iloc[0]
    assert row["accepted_length"] == 9 / 4
    assert row["drafts_per_round"] == 11 / 4
    assert row["verify_rate"] == 9 / 15
    assert [row[f"accept_rate@{k}"] for k in range(3)] == [3 / 4, 2 / 4, 1 / 3]
    # Tokens 5 and 4, rounds 2 and 2: residuals of +-1/2, whose spread is sqrt(1/2).
    assert row["half_width"] == pytest.approx(np.sqrt(0.5) * np.sqrt(2) / 4 * 12.7062, rel=1e-4)


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def chat_folder(tmp_path: Path) -> Path:
    """The shipped target's tokenizer with a chat template."""
    folder = tmp_path / "chat"
    folder.mkdir()
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(shipped_pair() / "target" / name, folder / name)
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if enable_thinking %}think{% else %}answer{% endif %}:"
    )
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_prompts_go_through_the_chat_template(chat_folder: Path, tmp_path: Path) -> None:
    from simulator.live.training.tokens import load_tokenizer

    file = write(
        tmp_path / "p.jsonl",
        {"turns": ["Why\u2028?", "and then?"], "id": 3},
        "",
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]},
        {"prompt": "Why?"},
        {"prompt_ids": [3, 4]},
    )
    tokenizer = load_tokenizer(chat_folder)

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    assert read_prompts(file, chat_folder, PromptOptions()) == [
        ids("user: Why\u2028?\nanswer:"), ids("system: Be brief.\nuser: Why?\nanswer:"),
        ids("user: Why?\nanswer:"), [3, 4],
    ]  # fmt: skip
    assert read_prompts(file, chat_folder, PromptOptions(thinking=True))[2] == ids("user: Why?\nthink:")
    alone = write(tmp_path / "one.jsonl", {"prompt": "Why?"})
    assert read_prompts(alone, chat_folder, PromptOptions(raw=True)) == [ids("Why?")]


def test_a_sample_of_prompts_is_the_one_that_pythons_shuffle_draws(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", *({"prompt_ids": [number]} for number in range(6)))
    # An interpreter shuffles [0, 1, 2, 3, 4, 5] with random.Random(980406) into [0, 2, 4, 3, 5, 1].
    assert read_prompts(file, None, PromptOptions(sequences=3, seed=980406)) == [[0], [2], [4]]
    assert read_prompts(file, None, PromptOptions(sequences=9)) == [[number] for number in range(6)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "a"', "line 1: is not JSON"),
        ({"question": "a"}, r"line 1: must be an object with one of turns"),
        ({"prompt": "a", "turns": ["b"]}, "must be an object with one of turns"),
        ({"turns": []}, "turns: must be a list of texts, not empty"),
        ({"prompt": ""}, "prompt: must be text, not empty"),
        ({"messages": [{"role": "user"}]}, "messages: must be a list of objects with role and content"),
        ({"prompt_ids": [1.5]}, "prompt_ids: must be a list of token ids"),
        ("", "holds no prompt"),
    ],
)
def test_bad_prompts_are_named_with_their_line(
    chat_folder: Path, tmp_path: Path, line: Any, problem: str
) -> None:
    with pytest.raises(BadInputError, match=problem):
        read_prompts(write(tmp_path / "p.jsonl", line), chat_folder, PromptOptions())


def test_a_tokenizer_without_what_is_needed_is_refused(chat_folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", {"messages": [{"role": "user", "content": "a"}] * 2})
    with pytest.raises(BadInputError, match="is a conversation, which needs a chat template"):
        read_prompts(file, chat_folder, PromptOptions(raw=True))
    (chat_folder / "chat_template.jinja").unlink()
    with pytest.raises(BadInputError, match=r"has no chat template.*--raw"):
        read_prompts(file, chat_folder, PromptOptions())
    with pytest.raises(BadInputError, match="no folder with a tokenizer"):
        read_prompts(file, None, PromptOptions())
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match="no tokenizer that transformers can load"):
        read_prompts(file, tmp_path / "empty", PromptOptions())


def test_settings_out_of_range_are_refused() -> None:
    for wrong, field in (({"output_tokens": 0}, "output_tokens"), ({"temperature": -1.0}, "temperature")):
        with pytest.raises(BadInputError, match=field):
            PairTracing(**wrong)  # type: ignore[arg-type]


def test_the_command_traces_a_pair_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write(tmp_path / "mine.jsonl", {"prompt": "Add 47 and 86."}, {"prompt": "def f(x):"})
    given = ("trace", "--target", shipped_pair() / "target", "--draft", shipped_pair() / "dspark")
    out = tmp_path / "out"
    more = ("--out", out, "--report", tmp_path / "report", "--raw", "--output-tokens", 6, "--temperature", 0)
    assert command(*given, "--prompts", prompts, *more) == 0
    said = capsys.readouterr()
    assert "prompt 1/2\nprompt 2/2\n" in said.err
    assert said.out.splitlines()[-1] == str(out / "target-dspark-mine-greedy.parquet")
    trace = load_trace(out / "target-dspark-mine-greedy.parquet")
    assert trace.rows == 12
    assert trace.provenance.notes == "float32; acceptance at temperature 0"
    tables = {path.name for path in (tmp_path / "report").iterdir()}
    assert tables == {"rounds.csv", "accepted_length.csv", "conditional.csv"}
    assert command(*given, "--out", out) == 2
    assert "--target, --draft and --prompts go together" in capsys.readouterr().err
    assert command("trace", tmp_path, *given[1:], "--prompts", prompts, "--out", out) == 2
