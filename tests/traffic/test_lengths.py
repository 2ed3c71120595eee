"""Length distributions: the stated mean is the mean in tokens, and nothing piles up at a limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from simulator.core.errors import BadInputError
from simulator.traffic.lengths import (
    PUBLISHED_LENGTHS,
    ConstantLength,
    EmpiricalLengths,
    Geometric,
    IndependentLengths,
    Lognormal,
    Marginal,
    Tokens,
    longest_request,
    parse_lengths,
)

GRID = (np.arange(400_000) + 0.5) / 400_000
"""Evenly spaced quantiles: the mean over them is the mean of the distribution, without sampling noise."""


@settings(max_examples=25)
@given(st.floats(1.5, 5000), st.floats(0.1, 1.5), st.none() | st.floats(1.5, 20))
def test_lognormal_mean_is_the_stated_one_even_truncated(mean: float, cv: float, room: float | None) -> None:
    limit = None if room is None else int(np.ceil(mean * room))
    tokens = Lognormal(mean, cv, limit).quantile(GRID)
    assert tokens.min() >= 1
    assert limit is None or tokens.max() <= limit
    assert tokens.mean() == pytest.approx(mean, rel=2e-3)


def test_lognormal_spread_is_the_stated_one_when_not_truncated() -> None:
    tokens = Lognormal(1500, 0.8).quantile(GRID)
    assert tokens.std() / tokens.mean() == pytest.approx(0.8, rel=5e-3)


def test_truncation_redraws_instead_of_piling_up_at_the_limit() -> None:
    tokens = Lognormal(100, 1.0, 300).quantile(GRID)
    at_limit, just_below = (tokens == 300).mean(), (tokens == 299).mean()
    assert just_below > 0
    assert at_limit == pytest.approx(just_below, rel=0.1)
    # Clamping the untruncated distribution would have put this much there.
    assert (Lognormal(100, 1.0).quantile(GRID) >= 300).mean() > 20 * at_limit


def test_geometric_has_the_mean_and_probabilities_of_its_name() -> None:
    tokens = Geometric(20.0).quantile(GRID)
    assert tokens.mean() == pytest.approx(20.0, rel=1e-3)
    for length in (1, 2, 10):
        assert (tokens == length).mean() == pytest.approx(stats.geom.pmf(length, 1 / 20), abs=1e-5)
    assert Geometric(1.0).quantile(GRID).max() == 1


@pytest.mark.parametrize(
    "marginal", [ConstantLength(7), Geometric(30), Lognormal(300, 0.8), Lognormal(300, 0.8, 900)]
)
def test_extreme_quantiles_stay_whole_and_positive(marginal: Marginal) -> None:
    tokens = marginal.quantile(np.array([0.0, np.nextafter(1, 0)]))
    assert 1 <= tokens[0] <= tokens[1] < 10**6


@pytest.mark.parametrize(
    "build",
    [
        lambda: ConstantLength(0),
        lambda: Geometric(0.5),
        lambda: Geometric(np.nan),
        lambda: Lognormal(1.0, 1.0),
        lambda: Lognormal(np.inf, 1.0),
        lambda: Lognormal(100, 0.0),
        lambda: Lognormal(100, np.nan),
        lambda: Lognormal(100, 1.0, 100),
        lambda: Lognormal(100, 1.0, 50),
    ],
)
def test_impossible_distributions_are_refused(build: object) -> None:
    with pytest.raises(BadInputError):
        build()  # type: ignore[operator]


def test_a_longer_sample_begins_with_the_shorter() -> None:
    lengths = parse_lengths("default")
    short, long = lengths.sample(5, "x", 10), lengths.sample(5, "x", 1000)
    assert [part.tolist() for part in short] == [part[:10].tolist() for part in long]
    assert lengths.sample(6, "x", 10)[0].tolist() != short[0].tolist()
    assert lengths.sample(5, "y", 10)[0].tolist() != short[0].tolist()


def test_prompt_and_output_do_not_share_a_stream() -> None:
    prompts, outputs = IndependentLengths(Geometric(50), Geometric(50)).sample(0, "x", 20_000)
    assert abs(stats.spearmanr(prompts, outputs).statistic) < 4 / np.sqrt(20_000)


@pytest.mark.parametrize("spec", ["geometric:1e8/1e8", "lognormal:1e8,cv=100/2,cv=100", "fixed:1e9/1"])
def test_the_largest_lengths_still_fit(spec: str) -> None:
    for tokens in parse_lengths(spec).sample(0, "x", 100_000):
        assert tokens.min() >= 1
        assert tokens.max() < 2**60


def test_empirical_pairs_stay_together() -> None:
    observed = EmpiricalLengths(np.array([10, 20, 30]), np.array([1, 2, 3]))
    prompts, outputs = observed.sample(0, "x", 30_000)
    assert (prompts == 10 * outputs).all()
    assert np.bincount(outputs)[1:] / 30_000 == pytest.approx([1 / 3] * 3, abs=4 * np.sqrt(2 / 9 / 30_000))
    with pytest.raises(BadInputError, match="as many"):
        EmpiricalLengths(np.array([10, 20]), np.array([1]))
    with pytest.raises(BadInputError, match="at least 1"):
        EmpiricalLengths(np.array([10, 20]), np.array([1, 0]))


PUBLISHED_MOMENTS = {  # mean and standard deviation over mean of the files' columns
    "azure-2023-conversation": ((1154.70, 0.960, 14050), (211.13, 0.771, 1000)),
    "azure-2023-code": ((2047.85, 0.964, 7437), (27.88, 2.147, 1899)),
    "mooncake-conversation": ((12035.06, 1.313, 126195), (342.62, 0.729, 2000)),
}


@pytest.mark.parametrize("name", PUBLISHED_MOMENTS)
def test_shipped_fits_have_the_published_moments_and_say_whose_they_are(name: str) -> None:
    lengths = PUBLISHED_LENGTHS[name]
    columns = zip((lengths.prompt, lengths.output), PUBLISHED_MOMENTS[name], strict=True)
    for marginal, (mean, cv, largest) in columns:
        tokens = marginal.quantile(GRID)
        assert tokens.mean() == pytest.approx(mean, rel=1e-3)
        assert tokens.std() / tokens.mean() == pytest.approx(cv, rel=5e-2)
        assert tokens.max() <= largest
    assert lengths.provenance is not None
    assert lengths.provenance.kind == "fitted"
    assert "github.com/" in lengths.provenance.source


def test_length_specs() -> None:
    assert parse_lengths("fixed:1024/256") == IndependentLengths(ConstantLength(1024), ConstantLength(256))
    assert parse_lengths("lognormal:1500,cv=1,max=32768/300,cv=0.8") == IndependentLengths(
        Lognormal(1500, 1.0, 32768), Lognormal(300, 0.8)
    )
    assert parse_lengths("fixed:64/geometric:300") == IndependentLengths(ConstantLength(64), Geometric(300))
    assert parse_lengths("default") is PUBLISHED_LENGTHS["azure-2023-conversation"]


def test_lengths_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt_tokens,output_tokens\n10,1\n20,2\n")
    prompts, outputs = parse_lengths(f"empirical:{path}").sample(0, "x", 100)
    assert set(zip(prompts.tolist(), outputs.tolist(), strict=True)) == {(10, 1), (20, 2)}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "names no prompt and output lengths"),
        ("fixed:1024", "names no prompt and output lengths"),
        ("azure", "azure-2023-conversation"),
        ("fixed:10.5/3", "whole number"),
        ("fixed:10k/3", "prompt length: takes a plain number, without 'k'"),
        ("fixed:10,cv=1/3", "not a length distribution"),
        ("lognormal:1500/300", "not a length distribution"),
        ("lognormal:1500,cv=1,maximum=9/300,cv=1", "not a length distribution"),
        ("normal:1500/300", "fixed:N, geometric:MEAN or lognormal:MEAN,cv=CV"),
        ("lognormal:nan,cv=1/300,cv=1", "not a number"),
        ("geometric:1e300/5", r"geometric mean: must lie in 1\.\.1e\+08 tokens"),
        ("lognormal:1500,cv=1,max=0/300,cv=1", r"lognormal max: must lie in 1\.\.1,000,000,000"),
        ("lognormal:1500,cv=1e-300/300,cv=1", r"lognormal cv: must lie in 0\.0001\.\.100 .*fixed:N"),
        ("lognormal:1500,cv=1e300/300,cv=1", "lognormal cv: must lie in"),
        ("lognormal:1e300,cv=1/300,cv=1", "lognormal mean: must be above 1 and at most"),
        ("fixed:1e12/3", "at most 1,000,000,000"),
        ("fixed:1_000/3", "prompt length: takes a plain number"),
        ("fixed:\u0661/3", "prompt length: is not a number"),
        ("lognormal:100,cv=1,cv=2/3,cv=1", "prompt length: gives an option twice"),
    ],
)
def test_length_specs_that_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        parse_lengths(spec)


def test_the_longest_request_bounds_all_but_one_in_ten_million() -> None:
    """By the closed forms: a lognormal's quantile, and a geometric's log(1e-7) / log(1 - 1 / mean)."""
    sigma = np.sqrt(np.log(2))
    bound = np.exp(np.log(1500) - sigma**2 / 2 + sigma * stats.norm.ppf(1 - 1e-7))
    prompt, output = longest_request(parse_lengths("lognormal:1500,cv=1/geometric:300"))
    assert prompt == pytest.approx(bound, rel=2e-3)  # rounded up to tokens, which shifts the median
    assert output == 1 + np.floor(np.log(1e-7) / np.log(1 - 1 / 300))
    assert longest_request(parse_lengths("fixed:1024/256")) == (1024, 256)
    prompt, output = longest_request(parse_lengths("lognormal:1500,cv=1,max=4000/fixed:7"))
    assert 3_990 < prompt <= 4_000


def test_the_longest_of_observed_pairs_is_one_of_them() -> None:
    pairs = EmpiricalLengths(np.array([900, 10, 500]), np.array([5, 950, 300]))
    assert longest_request(pairs) == (10, 950)


def test_lengths_of_ones_own_are_sampled() -> None:
    class Own:
        def sample(self, seed: int, stream: str, requests: int) -> tuple[Tokens, Tokens]:
            return np.arange(1, requests + 1), np.full(requests, 5)

    assert longest_request(Own()) == (3162, 5)  # as many as one over the root of 1e-7
