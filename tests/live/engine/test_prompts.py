"""Prompts: repeatable, the shorter a prefix of the longer, from held-out text."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.core.errors import BadInputError
from simulator.live.engine.prompts import Prompts, random_prompts, text_prompts
from simulator.live.training.corpus import load_corpus
from simulator.live.training.tokens import TokenStreams, load_tokenizer

TARGET = Path(__file__).parents[3] / "traces" / "models" / "tiny" / "target"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    for name in "abcd":
        (tmp_path / f"{name}.py").write_text("\n".join(f"{name} = {name} + {i}" for i in range(60)))
    return tmp_path


def check_prefixes(prompts: Prompts) -> None:
    short, long = prompts(5, 10), prompts(5, 40)
    assert (long.dtype, len(long)) == ("int64", 40)
    assert short.tolist() == long[:10].tolist()
    assert prompts(6, 40).tolist() != long.tolist()


def test_a_longer_prompt_continues_a_shorter_one(text: Path) -> None:
    check_prefixes(random_prompts(1024, 3))
    check_prefixes(text_prompts(TARGET, "py", 3, text=text))


def test_text_is_held_out_and_wraps_round(text: Path) -> None:
    held_out = TokenStreams.of(load_corpus(text), "test", load_tokenizer(TARGET)).streams["py"].tolist()
    prompt = text_prompts(TARGET, "py", 0, text=text)(0, len(held_out)).tolist()
    starts = [at for at in range(len(held_out)) if held_out[at:] + held_out[:at] == prompt]
    assert len(starts) == 1
    assert text_prompts(TARGET, "py", 1, text=text)(0, len(held_out)).tolist() != prompt


def test_an_unknown_domain_is_refused(text: Path) -> None:
    with pytest.raises(BadInputError, match=r"poetry.*random, py"):
        text_prompts(TARGET, "poetry", 0, text=text)
