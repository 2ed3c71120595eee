"""Policies from text, such as dspark-async or fixed:3@mtp1."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from simulator.core.errors import BadInputError, naming
from simulator.core.units import require_ascii_digits
from simulator.schedulers.batch_table import BatchTable
from simulator.schedulers.beyond.averages import Goodput, MovingAverage
from simulator.schedulers.beyond.fixed_budget import FixedBudget
from simulator.schedulers.beyond.gate import OffGate
from simulator.schedulers.beyond.slo import Balanced, SloFirst
from simulator.schedulers.beyond.trials import Bandit, Utility
from simulator.schedulers.engines.sglang import SGLang
from simulator.schedulers.engines.trtllm import TensorRTLLM
from simulator.schedulers.engines.vllm import VLLM
from simulator.schedulers.options import from_options
from simulator.schedulers.policies import DSpark, DSparkAsync, Fixed, Oracle, Threshold, Tiered
from simulator.schedulers.protocol import Scheduler

_Number = TypeVar("_Number", int, float)

_HELP = {
    "autoregressive": "no speculation: one token per request and step",
    "mtp1": "one draft of a one-layer MTP module, always: usual baseline",
    "mtpK": "K drafts by K passes of that module: mtp3 is fixed:3@mtp",
    "fixed:K": "always verify K draft tokens of the drafter at hand",
    "threshold:P": "verify up to the first token whose confidence is below P",
    "dspark": "Algorithm 1: admit by survival while throughput rises",
    "dspark-async[:LAG]": "budget searched LAG (2) steps before, shared by survival now",
    "tiered:N,N,...[:LAG]": "budget from captured sizes, N drafts a request (TensorRT-LLM)",
    "batch-table:1-16=5,17-64=3,65-=1": "a length by how many requests decode, as vLLM takes it by hand",
    "sglang[:lag=2,probes=8/16,tiers=8/16,reinflate,min-gain=0.05,prefill,ranks=2]": "SGLang's own planner",
    "vllm[:lag=1,captured=8/16/32,prefill=no]": "vLLM's own adaptive verification",
    "trtllm[:lag=1,tiers=1/4/7,prefill]": "TensorRT-LLM's own planner: captured lengths, 1 draft at least",
    "off-gate[:weight=0.02,probe=16]": "as dspark-async, without draft passes that do not pay",
    "slo:12ms[,extend]": "what a time per token needs first; by class chat=9ms,all=20ms",
    "balanced[:power=2,all=12ms]": "as dspark-async, drafts weighted by how late a request is",
    "goodput[:weight=0.1,probe=32]": "a length for all by mean acceptance and step time (TurboSpec)",
    "moving-average[:tiers=1/3/7,interval=5,up=0,down=-0.25]": "a length by recent acceptance (SGLang)",
    "fixed-budget:K": "the K most likely drafts of the batch, at any load (TETRIS)",
    "utility[:test=4,keep=32,first=3]": "tries lengths, keeps what pays, else drafts nothing (Cascade)",
    "bandit[:patience=0.02,seed=0]": "a bandit over lengths for each range of batch sizes (Nightjar)",
    "oracle": "knows the outcome: in any one step no scheduler can do better",
}

_MTP = re.compile(r"mtp([1-9]\d{0,2})")
"""A module that runs once for each draft: ``mtp3``."""

_BY_OPTIONS: dict[str, type[Any]] = {
    "sglang": SGLang,
    "vllm": VLLM,
    "trtllm": TensorRTLLM,
    "off-gate": OffGate,
    "goodput": Goodput,
    "moving-average": MovingAverage,
    "utility": Utility,
    "bandit": Bandit,
}
"""Policies whose fields are given as options after the colon."""

_PARSED: dict[str, Callable[[str], Scheduler]] = {
    "batch-table": BatchTable.parse,
    "slo": SloFirst.parse,
    "balanced": Balanced.parse,
}
"""Policies that read what follows their colon themselves."""

_OWN: dict[str, Callable[..., Scheduler]] = {}
"""Policies that were registered, by name."""


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A scheduler under the name the user gave it, and the drafter it runs with.

    drafter: None leaves the choice to the acceptance given (its only multi-token drafter).
    """

    name: str
    scheduler: Scheduler
    drafter: str | None = None


def parse_policy(text: str) -> NamedPolicy:
    """``NAME[:ARGUMENT][@DRAFTER]`` as written on a command line; errors list what is known."""
    require_ascii_digits(text, source="policy")
    spec, _, drafter = text.strip().partition("@")
    name, _, argument = spec.partition(":")
    with naming(f"policy: {text.strip()}"):
        scheduler = _build(name, argument)
    default = {"mtp1": "mtp1", "autoregressive": "none"}.get(name)
    if default is None and _MTP.fullmatch(name):
        default = "mtp"
    return NamedPolicy(name=text.strip(), scheduler=scheduler, drafter=drafter or default)


def as_policy(policy: str | NamedPolicy | Scheduler) -> NamedPolicy:
    """Return a policy from its text, or from a scheduler object under the name of its class."""
    if isinstance(policy, NamedPolicy):
        return policy
    if isinstance(policy, str):
        return parse_policy(policy)
    if not callable(getattr(policy, "schedule", None)):
        raise BadInputError(
            "is neither text nor an object with schedule(survival, batch)", field="policy", value=policy,
            remedy='as in "dspark-async", or a subclass of simulator.Policy',
        )  # fmt: skip
    return NamedPolicy(type(policy).__name__, policy)


def register_policy(name: str, make: Callable[..., Scheduler]) -> None:
    """Give a policy of your own a name that texts may use, as in ``--policy NAME`` or ``NAME:ARGUMENT``.

    Workers of a parallel sweep need not register it: they get the object.

    Parameters
    ----------
    name
        Of the policy: small letters, digits and dashes, a letter first.
    make
        Called without an argument, or with the text after the colon.

    Raises
    ------
    BadInputError
        If the name is taken or is not plain.
    """
    known = {form.partition(":")[0].partition("[")[0] for form in _HELP}
    taken = name in known or _MTP.fullmatch(name) is not None
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or taken:
        raise BadInputError(
            "is taken" if taken else "is not a plain name", field="name", value=name,
            remedy="letters, digits and dashes, such as rising-bar",
        )  # fmt: skip
    _OWN[name] = make


def policy_help() -> dict[str, str]:
    """Each form a policy can be written in, with what it does in a line."""
    own = {
        name: (make.__doc__ or "a policy of your own").strip().splitlines()[0] for name, make in _OWN.items()
    }
    return _HELP | own


def _build(name: str, argument: str) -> Scheduler:
    plain: dict[str, Scheduler] = {
        "autoregressive": Fixed(0),
        "mtp1": Fixed(1),
        "dspark": DSpark(),
        "oracle": Oracle(),
    }
    if name in plain:
        if argument:
            raise BadInputError("takes no argument", remedy=f"write {name}")
        return plain[name]
    if name in _OWN:
        return _own(name, argument)
    if (module := _MTP.fullmatch(name)) and not argument:
        return Fixed(int(module[1]))
    if name == "fixed":
        return Fixed(_number(argument, int))
    if name == "fixed-budget":
        return FixedBudget(_number(argument, int))
    if name == "threshold":
        return Threshold(_number(argument, float))
    if name == "dspark-async":
        return DSparkAsync(_number(argument, int)) if argument else DSparkAsync()
    if name in _BY_OPTIONS:
        scheduler: Scheduler = from_options(_BY_OPTIONS[name], argument)
        return scheduler
    if name in _PARSED:
        return _PARSED[name](argument)
    if name == "tiered":
        sizes, _, lag = argument.partition(":")
        tiers = tuple(_number(size, int) for size in sizes.split(","))
        return Tiered(tiers, _number(lag, int)) if lag else Tiered(tiers)
    raise BadInputError("is not a policy", remedy=f"one of {', '.join(policy_help())}")


def _own(name: str, argument: str) -> Scheduler:
    try:
        return _OWN[name](argument) if argument else _OWN[name]()
    except (TypeError, ValueError) as error:
        raise BadInputError(f"cannot be made: {error}") from error


def _number(argument: str, kind: type[_Number]) -> _Number:
    try:
        return kind(argument)
    except ValueError as error:
        raise BadInputError(
            "needs a number after the colon", remedy="as in fixed:3 or threshold:0.7"
        ) from error
