"""Distributions of prompt and output lengths over whole tokens, at least 1 and never clamped.

Every distribution turns uniforms into token counts by inversion. Request ``i`` of a seed therefore keeps its
quantile when a mean, a rate or the number of requests changes (common random numbers).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.core.random import random_stream
from simulator.core.statistics import root
from simulator.core.units import parse_number
from simulator.traffic.recorded.files import read_lengths
from simulator.traffic.workload import MAX_TOKENS

Tokens = NDArray[np.int64]

MAX_MEAN_TOKENS = 1e8
"""Largest mean of a distribution with a tail: 1e9 times the mean must fit into 64 bits."""

CV_RANGE = (1e-4, 100.0)
"""Coefficients of variation of a lognormal. Below, fixed:N is the same; above, no sample shows the mean."""


class Marginal(Protocol):
    """Distribution of one length, prompt or output, in tokens."""

    @property
    def mean(self) -> float:
        """Expected tokens."""
        ...

    def quantile(self, uniform: NDArray[np.float64]) -> Tokens:
        """Token counts at the given probabilities in [0, 1), elementwise."""
        ...


class Lengths(Protocol):
    """Joint distribution of (prompt, output) lengths."""

    def sample(self, seed: int, stream: str, requests: int) -> tuple[Tokens, Tokens]:
        """Prompt and output tokens, [requests] each; a longer sample begins with the shorter one."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantLength:
    """The same number of tokens for every request."""

    tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MAX_TOKENS:
            raise BadInputError(
                f"must lie in 1..{MAX_TOKENS:,} tokens", field="fixed length", value=self.tokens
            )

    @property
    def mean(self) -> float:
        """Mean length, tokens."""
        return float(self.tokens)

    def quantile(self, uniform: NDArray[np.float64]) -> Tokens:
        """Return lengths at uniforms in [0, 1), int64, same shape."""
        return np.full(uniform.shape, self.tokens, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Geometric:
    """Geometric on 1, 2, ...: the end of text has the same chance after every token."""

    mean: float

    def __post_init__(self) -> None:
        if not 1 <= self.mean <= MAX_MEAN_TOKENS:
            raise BadInputError(
                f"must lie in 1..{MAX_MEAN_TOKENS:g} tokens", field="geometric mean", value=self.mean
            )

    def quantile(self, uniform: NDArray[np.float64]) -> Tokens:
        """Return lengths at uniforms in [0, 1), int64, same shape."""
        if self.mean == 1:
            return np.ones(uniform.shape, dtype=np.int64)
        trials = np.floor(np.log1p(-uniform) / math.log1p(-1 / self.mean))
        return 1 + trials.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Lognormal rounded up to whole tokens, whose mean in tokens is exactly ``mean``.

    ``cv`` is the standard deviation over the mean of the underlying lognormal. ``max_tokens`` truncates:
    longer requests are redrawn, so that none accumulate at the limit. ``mean`` is the mean after truncation,
    and the spread is then smaller than ``cv``. Raises ``BadInputError`` where no such distribution exists.
    """

    mean: float
    cv: float
    max_tokens: int | None = None
    _log_median: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 < self.mean <= MAX_MEAN_TOKENS:
            raise BadInputError(
                f"must be above 1 and at most {MAX_MEAN_TOKENS:g} tokens",
                field="lognormal mean",
                value=self.mean,
            )
        if not CV_RANGE[0] <= self.cv <= CV_RANGE[1]:
            raise BadInputError(
                f"must lie in {CV_RANGE[0]:g}..{CV_RANGE[1]:g}",
                field="lognormal cv",
                value=self.cv,
                remedy="or use fixed:N",
            )
        if self.max_tokens is not None and not 1 <= self.max_tokens <= MAX_TOKENS:
            raise BadInputError(
                f"must lie in 1..{MAX_TOKENS:,} tokens", field="lognormal max", value=self.max_tokens
            )
        object.__setattr__(self, "_log_median", self._solve_log_median())

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return math.sqrt(math.log1p(self.cv**2))

    def quantile(self, uniform: NDArray[np.float64]) -> Tokens:
        """Return lengths at uniforms in [0, 1), int64, same shape."""
        below_limit = self._probability_below_limit(self._log_median)
        deviates = ndtri(np.maximum(uniform, np.finfo(np.float64).tiny) * below_limit)
        tokens = np.ceil(np.exp(self._log_median + self.sigma * deviates))
        # Rounding in exp must not move a quantile of 1 - 1e-16 beyond the truncation point.
        return np.minimum(np.maximum(tokens, 1), self.max_tokens or np.inf).astype(np.int64)

    def _solve_log_median(self) -> float:
        limit = self.max_tokens
        highest = math.log(self.mean) if limit is None else math.log(limit) + 4 * self.sigma
        lowest = min(math.log(self.mean), highest) - self.sigma**2 - 12 * self.sigma - 1

        def excess(log_median: float) -> float:
            return self._mean_tokens(log_median) - self.mean

        if excess(lowest) > 0 or excess(highest) < 0:
            raise BadInputError(
                f"cannot have mean {self.mean:g} with cv {self.cv:g} and at most {limit} tokens",
                field="lognormal length",
                remedy="raise max or lower the mean",
            )
        return root(excess, lowest, highest, xtol=1e-12, rtol=1e-14)

    def _mean_tokens(self, log_median: float) -> float:
        """E[ceil X] given X <= limit: the sum over k >= 0 of P(X > k), conditioned."""
        limit = math.inf if self.max_tokens is None else float(self.max_tokens)
        beyond = 1 - self._probability_below_limit(log_median)
        head = min(limit, 4096.0)
        total = float(self._tail(np.arange(head), log_median).sum())
        if limit > head:
            # The far tail is smooth, and the midpoint rule equals its sum to well below 1e-9 of it.
            total += self._excess_over(head - 0.5, log_median)
            total -= 0.0 if math.isinf(limit) else self._excess_over(limit - 0.5, log_median)
        return (total - (limit * beyond if beyond else 0.0)) / (1 - beyond)

    def _probability_below_limit(self, log_median: float) -> float:
        if self.max_tokens is None:
            return 1.0
        return float(ndtr((math.log(self.max_tokens) - log_median) / self.sigma))

    def _tail(self, tokens: NDArray[np.float64], log_median: float) -> NDArray[np.float64]:
        """P(X > tokens); certain at 0."""
        tail = np.ones(tokens.shape)
        tail[1:] = ndtr((log_median - np.log(tokens[1:])) / self.sigma)
        return tail

    def _excess_over(self, tokens: float, log_median: float) -> float:
        """E[max(X - tokens, 0)], the integral of the tail from there on."""
        distance = (log_median - math.log(tokens)) / self.sigma
        whole = math.exp(log_median + self.sigma**2 / 2)
        return float(whole * ndtr(distance + self.sigma) - tokens * ndtr(distance))


@dataclass(frozen=True, slots=True)
class IndependentLengths:
    """Prompt and output lengths that are independent of each other."""

    prompt: Marginal
    output: Marginal
    provenance: Provenance | None = None

    def sample(self, seed: int, stream: str, requests: int) -> tuple[Tokens, Tokens]:
        """Draw prompt and output lengths, int64 [requests] each."""
        prompts = self.prompt.quantile(random_stream(seed, f"{stream}/prompt").random(requests))
        outputs = self.output.quantile(random_stream(seed, f"{stream}/output").random(requests))
        return prompts, outputs


@dataclass(frozen=True, slots=True, eq=False)
class EmpiricalLengths:
    """(prompt, output) pairs drawn with replacement from observed pairs, which keeps their dependence."""

    prompt_tokens: Tokens  # [observations], >= 1
    output_tokens: Tokens  # [observations], >= 1
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens"):
            object.__setattr__(self, name, _observed(getattr(self, name), name))
        if self.prompt_tokens.size != self.output_tokens.size:
            raise BadInputError(
                "must be as many as prompts", field="output_tokens", value=self.output_tokens.size
            )

    def sample(self, seed: int, stream: str, requests: int) -> tuple[Tokens, Tokens]:
        """Draw prompt and output lengths, int64 [requests] each."""
        uniform = random_stream(seed, f"{stream}/pair").random(requests)
        chosen = (uniform * self.prompt_tokens.size).astype(np.int64)
        return self.prompt_tokens[chosen], self.output_tokens[chosen]


RARE = 1e-7
"""Chance of each of a request's two lengths to be beyond the longest that is planned for. A choice."""


def longest_request(lengths: Lengths) -> tuple[int, int]:
    """Return prompt and output tokens that bound what is drawn, but for ``RARE`` requests."""
    if isinstance(lengths, IndependentLengths):
        rare = np.array([1 - RARE])
        return int(lengths.prompt.quantile(rare)[0]), int(lengths.output.quantile(rare)[0])
    if isinstance(lengths, EmpiricalLengths):
        return longest_of(lengths.prompt_tokens, lengths.output_tokens)
    return longest_of(*lengths.sample(0, "longest", round(1 / RARE**0.5)))


def longest_of(prompts: Tokens, outputs: Tokens) -> tuple[int, int]:
    """Return the prompt and output tokens of the longest of some requests."""
    longest = int(np.argmax(prompts + outputs))
    return int(prompts[longest]), int(outputs[longest])


def _observed(values: ArrayLike, name: str) -> Tokens:
    tokens = np.asarray(values)
    if tokens.ndim != 1 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer) or tokens.min() < 1:
        raise BadInputError("must be one row of whole numbers, at least 1 each", field=name)
    return tokens.astype(np.int64)


def _fitted(
    prompt: Lognormal, output: Lognormal, *, source: str, date: str, notes: str
) -> IndependentLengths:
    return IndependentLengths(
        prompt, output, Provenance(kind="fitted", source=source, date=date, notes=notes)
    )


# Fits to published files. Matched, per column: the mean, the largest value and the standard deviation over
# the mean; the last is met after truncation, so that the cv below, before it, is larger. Quantiles are not
# fitted: the notes give published against fitted. Prompt and output are nearly independent in all three
# (Spearman 0.07, -0.02 and 0.07).
PUBLISHED_LENGTHS = {
    "azure-2023-conversation": _fitted(
        Lognormal(1154.7, 0.990, 14050),
        Lognormal(211.1, 0.906, 1000),
        source="AzureLLMInferenceTrace_conv.csv of github.com/Azure/AzurePublicDataset (CC-BY; Patel et al., "
        "Splitwise, ISCA 2024)",
        date="2023-11",
        notes="19,366 requests in one hour; median prompt 1020 (fit 824), output 129 (163); "
        "p90 2734 (2373) and 424 (427); cv 0.960 and 0.771",
    ),
    "azure-2023-code": _fitted(
        Lognormal(2047.8, 4.0, 7437),
        Lognormal(27.88, 2.404, 1899),
        source="AzureLLMInferenceTrace_code.csv of github.com/Azure/AzurePublicDataset (CC-BY; Patel et al., "
        "Splitwise, ISCA 2024)",
        date="2023-11",
        notes="8,819 requests in one hour; median prompt 1469 (fit 1387), output 13 (11); "
        "p90 5188 (5116) and 55 (63); cv 0.964 (0.923; a truncated lognormal cannot reach it) and 2.147",
    ),
    "mooncake-conversation": _fitted(
        Lognormal(12035.1, 1.760, 126195),
        Lognormal(342.6, 0.770, 2000),
        source="conversation trace of github.com/kvcache-ai/Mooncake (Qin et al., Mooncake, FAST 2025)",
        date="2025-02",
        notes="12,031 requests in one hour; median prompt 6909 (fit 6473), output 350 (274); "
        "p90 27367 (28824) and 597 (654); cv 1.313 and 0.729",
    ),
}

DEFAULT_LENGTHS = "azure-2023-conversation"


def as_lengths(lengths: Lengths | str | None) -> Lengths:
    """Return lengths from text; None gives the default."""
    if lengths is None or isinstance(lengths, str):
        return parse_lengths(lengths or "default")
    return lengths


def parse_lengths(spec: str) -> Lengths:
    """Parse lengths: PROMPT/OUTPUT in tokens, each KIND:MEAN; the kind of the output may be left out.

    ``fixed:1024/256``, ``lognormal:1500,cv=1,max=32768/300,cv=0.8``, ``geometric:1500/300``,
    ``fixed:1024/lognormal:300,cv=0.8``; ``empirical:FILE[@skip-malformed]`` draws pairs from a workload file;
    ``default`` or a name in ``PUBLISHED_LENGTHS`` is a fit to published statistics.
    """
    named = PUBLISHED_LENGTHS.get(DEFAULT_LENGTHS if spec == "default" else spec)
    if named is not None:
        return named
    kind, _, rest = spec.partition(":")
    if kind == "empirical":
        path, at, option = rest.rpartition("@")
        skip = bool(at) and option == "skip-malformed"
        return EmpiricalLengths(*read_lengths(Path(path if skip else rest), skip_malformed=skip))
    prompt, slash, output = spec.partition("/")
    if not slash:
        raise BadInputError(
            "names no prompt and output lengths",
            field="lengths",
            value=spec,
            remedy=f"write for example fixed:1024/256, default or one of {', '.join(PUBLISHED_LENGTHS)}",
        )
    if ":" not in output:
        output = f"{kind}:{output}"
    return IndependentLengths(
        _parse_marginal(prompt, "prompt length"), _parse_marginal(output, "output length")
    )


def _parse_marginal(spec: str, name: str) -> Marginal:
    kind, _, rest = spec.partition(":")
    mean_text, *option_texts = rest.split(",")
    mean = parse_number(mean_text, field=name)
    given = [_parse_option(text, name) for text in option_texts]
    options = dict(given)
    if len(options) < len(given):
        raise BadInputError("gives an option twice", field=name, value=spec, remedy="keep one")
    match kind, sorted(options):
        case ["fixed", []]:
            return ConstantLength(_whole(mean, name))
        case ["geometric", []]:
            return Geometric(mean)
        case ["lognormal", ["cv"]]:
            return Lognormal(mean, options["cv"])
        case ["lognormal", ["cv", "max"]]:
            return Lognormal(mean, options["cv"], _whole(options["max"], f"{name} max"))
    raise BadInputError(
        "is not a length distribution",
        field=name,
        value=spec,
        remedy="use fixed:N, geometric:MEAN or lognormal:MEAN,cv=CV[,max=N]",
    )


def _parse_option(text: str, name: str) -> tuple[str, float]:
    key, _, value = text.partition("=")
    return key.strip(), parse_number(value, field=f"{name} {key.strip()}")


def _whole(value: float, name: str) -> int:
    if not value.is_integer() or abs(value) > MAX_TOKENS:
        raise BadInputError(
            f"must be a whole number of tokens, at most {MAX_TOKENS:,}", field=name, value=value
        )
    return int(value)
