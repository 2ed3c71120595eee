"""Names that vLLM and SGLang give to what a term promises, in one table, and terms written with them.

Only what an engine measures as a term means it is in the table. SGLang's inter-token latency divides the gap
of a delivery by its tokens, so that it is no ``itl`` here, and it has no time per output token by request.
Read on 2026-11-30 in vllm/v1/metrics/loggers.py (vllm-project/vllm a6f0308cfe80) and
docs/references/production_metrics.md (sgl-project/sglang 40ef116f011c).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from simulator.core.errors import BadInputError

Engine = Literal["vllm", "sglang"]

HISTOGRAMS: Mapping[Engine, Mapping[str, str]] = {
    "vllm": {
        "ttft": "vllm:time_to_first_token_seconds",
        "tpot": "vllm:request_time_per_output_token_seconds",
        "itl": "vllm:inter_token_latency_seconds",
        "e2e": "vllm:e2e_request_latency_seconds",
    },
    "sglang": {
        "ttft": "sglang:time_to_first_token_seconds",
        "e2e": "sglang:e2e_request_latency_seconds",
    },
}
"""Engine to metric of a term to its histogram, in seconds, one observation a request (itl: a delivery)."""

MEAN_SPEED: Mapping[Engine, str] = {
    "vllm": (
        "(sum(rate(vllm:request_generation_tokens_sum[{window}])) "
        "- sum(rate(vllm:request_generation_tokens_count[{window}]))) "
        "/ sum(rate(vllm:request_decode_time_seconds_sum[{window}]))"
    ),
    "sglang": (
        "sum(rate(sglang:inter_token_latency_seconds_count[{window}])) "
        "/ sum(rate(sglang:inter_token_latency_seconds_sum[{window}]))"
    ),
}
"""Engine to its mean generation speed: tokens after the first over the time that they took."""

_METRIC = {name: metric for names in HISTOGRAMS.values() for metric, name in names.items()}

_NAMED = re.compile(
    r"\s*((?:vllm|sglang):\w+?_seconds)_(mean|p[0-9]{1,2}(?:\.[0-9]+)?)\s*(<=?|>=?)\s*(\S+)\s*"
)

_QUANTILE = re.compile(
    r"\s*histogram_quantile\(\s*(0?\.[0-9]+)\s*,.*?\b((?:vllm|sglang):\w+?)_bucket\b.*\)\s*(<=?|>=?)\s*(\S+)\s*",
    re.DOTALL,
)

LONGEST = 1000
"""Characters of an expression that is looked at; a choice."""


def in_terms(text: str) -> str:
    """Write a term that names an engine's metric as a term; any other text is returned as it is.

    >>> in_terms("vllm:time_to_first_token_seconds_p99<=2")
    'ttft_p99<=2s'
    >>> in_terms("histogram_quantile(0.9, rate(vllm:e2e_request_latency_seconds_bucket[5m])) < 8")
    'e2e_p90<=8s'
    """
    if len(text) > LONGEST:
        return text
    if found := _NAMED.fullmatch(text):
        name, statistic, sign, bound = found.groups()
    elif found := _QUANTILE.fullmatch(text):
        name, sign, bound = found[2], found[3], found[4]
        statistic = f"p{100 * float(found[1]):.6g}"
    else:
        return text
    if name not in _METRIC:
        raise BadInputError(
            f"names {name}, which measures nothing that a term promises", source="sla", value=text,
            remedy=f"use one of {', '.join(_METRIC)}, or a term such as tpot_p90<=20ms",
        )  # fmt: skip
    seconds = bound + "s" if re.fullmatch(r"[0-9.]+(?:e-?[0-9]+)?", bound) else bound
    return f"{_METRIC[name]}_{statistic}{sign[0]}={seconds}"
