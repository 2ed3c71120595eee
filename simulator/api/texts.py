"""Objects from text; an object is returned as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simulator.acceptance.trace import AcceptanceModel
from simulator.core.errors import BadInputError
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.deployment.profile import Profile
from simulator.hardware.choose import DRAFTERS, Hardware, profile_for
from simulator.schedulers.parse import NamedPolicy, as_policy
from simulator.schedulers.protocol import Scheduler
from simulator.sla.terms import Sla, parse_sla
from simulator.traffic.lengths import Lengths, as_lengths
from simulator.traffic.parse import parse_traffic
from simulator.traffic.sources import Traffic


def policy(text: str | NamedPolicy | Scheduler) -> NamedPolicy:
    """Return a policy, as in ``"dspark-async"`` or ``"fixed:3@mtp1"``, or from a scheduler object.

    >>> policy("tiered:0,2,4").name
    'tiered:0,2,4'
    """
    return as_policy(text)


def acceptance(text: str | AcceptanceModel) -> AcceptanceModel:
    """Return an acceptance model: a name, a trace or log file, rates, a mean length, a mix.

    >>> acceptance("length:3.5@5").gamma
    5
    """
    return parse_acceptance(text) if isinstance(text, str) else text


def hardware(
    model: str,
    gpu: str,
    *,
    tp: int | None = None,
    engine: str | None = None,
    precision: str | None = None,
    drafters: Sequence[str] = DRAFTERS,
    host_time: str | None = None,
) -> Profile:
    """Return the profile of a model on a GPU: measured kernels where there are any, else a formula.

    model, gpu: names of the catalogues, or a ``config.json``. tp: GPUs of a replica. drafters: whose cost is
    derived. host_time: of a step, and of a drafter's pass, as in ``"1.2ms,0.3ms"``; the engine's own by
    default. Raises ``BadInputError`` for what is not known and ``InfeasibleError`` for what does not fit.

    >>> hardware("qwen3-32b", "h100").provenance.kind
    'kernels'
    """
    asked = Hardware(
        model=model,
        gpu=gpu,
        tp=tp,
        engine=engine,
        precision=precision,
        drafters=tuple(drafters),
        host_time=host_time,
    )
    return profile_for(asked).profile


def lengths(text: str | Lengths) -> Lengths:
    """Return prompt and output lengths, tokens, as in ``"fixed:1024/256"``."""
    return as_lengths(text)


def traffic(text: str | Path | Traffic, lengths: str | None = None) -> Traffic:
    """Return traffic: an arrival process such as ``"poisson:12/s"`` with its lengths, or a recorded file."""
    return parse_traffic(str(text), lengths) if isinstance(text, str | Path) else text


def sla(terms: str | Sequence[str] | Sla) -> Sla:
    """Return a service level, as in ``["ttft_p99<=2s", "tps_p10>=60"]``.

    >>> len(sla("ttft_p99<=2s").terms)
    1
    """
    if isinstance(terms, Sla):
        return terms
    listed = [terms] if isinstance(terms, str) else list(terms)
    if not all(isinstance(each, str) for each in listed):
        raise BadInputError("takes texts of terms", field="sla", value=listed, remedy='as in "ttft_p99<=2s"')
    return parse_sla(listed)
