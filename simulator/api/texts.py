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
    """Return a policy with its name.

    Parameters
    ----------
    text
        As in ``"dspark-async"`` or ``"fixed:3@mtp1"``, or a scheduler object.

    Returns
    -------
    NamedPolicy
        The scheduler, and whose drafts it verifies.

    Raises
    ------
    BadInputError
        If no policy has that name.

    Examples
    --------
    >>> policy("tiered:0,2,4").name
    'tiered:0,2,4'
    """
    return as_policy(text)


def acceptance(text: str | AcceptanceModel) -> AcceptanceModel:
    """Return an acceptance model.

    Parameters
    ----------
    text
        A name, a trace or log file, rates, a mean length, a mix, or an object.

    Returns
    -------
    AcceptanceModel
        What is accepted, and what is predicted of it.

    Raises
    ------
    BadInputError
        If the text is of no known form, or the file cannot be read.

    Examples
    --------
    >>> acceptance("length:3.5@5").gamma
    5
    """
    return parse_acceptance(text) if isinstance(text, str) else text


def hardware(
    model: str,
    gpu: str,
    *,
    tp: int | None = None,
    dp: int = 1,
    ep: int | None = None,
    engine: str | None = None,
    precision: str | None = None,
    drafters: Sequence[str] = DRAFTERS,
    host_time: str | None = None,
) -> Profile:
    """Return the profile of a model on a GPU: measured kernels where there are any, else a formula.

    Parameters
    ----------
    model, gpu
        Names of the catalogues, or a ``config.json``.
    tp
        GPUs over which attention is split; the fewest that hold the model by default.
    dp
        Groups of so many GPUs with attention of their own, for mixtures of experts.
    ep
        GPUs over which whole experts are dealt; all of them by default where ``dp`` is above 1.
    engine
        ``vllm``, ``sglang`` or ``trtllm``.
    precision
        Of weights, such as ``bf16`` or ``fp8``; the checkpoint's own by default.
    drafters
        Whose cost is derived.
    host_time
        Of a step, and of a drafter's pass, as in ``"1.2ms,0.3ms"``; the engine's own by default.

    Returns
    -------
    Profile
        Its provenance says of which kind the curve is, and its error band.

    Raises
    ------
    BadInputError
        If a name is not known.
    InfeasibleError
        If the model does not fit.

    Examples
    --------
    >>> hardware("qwen3-32b", "h100").provenance.kind
    'kernels'
    """
    asked = Hardware(
        model=model,
        gpu=gpu,
        tp=tp,
        dp=dp,
        ep=ep,
        engine=engine,
        precision=precision,
        drafters=tuple(drafters),
        host_time=host_time,
    )
    return profile_for(asked).profile


def lengths(text: str | Lengths) -> Lengths:
    """Return prompt and output lengths.

    Parameters
    ----------
    text
        As in ``"fixed:1024/256"``, in tokens, or an object.

    Returns
    -------
    Lengths
        What draws them.

    Raises
    ------
    BadInputError
        If the text is not of a known form.
    """
    return as_lengths(text)


def traffic(text: str | Path | Traffic, lengths: str | None = None) -> Traffic:
    """Return traffic.

    Parameters
    ----------
    text
        An arrival process such as ``"poisson:12/s"``, a recorded file, or an object.
    lengths
        Prompt and output tokens of a process; a recording has its own.

    Returns
    -------
    Traffic
        What draws or holds the requests.

    Raises
    ------
    BadInputError
        If the text is of no known form, or the file cannot be read.
    """
    return parse_traffic(str(text), lengths) if isinstance(text, str | Path) else text


def sla(terms: str | Sequence[str] | Sla) -> Sla:
    """Return a service level.

    Parameters
    ----------
    terms
        One or several terms, as in ``["ttft_p99<=2s", "tps_p10>=60"]``, or an object.

    Returns
    -------
    Sla
        The terms, parsed.

    Raises
    ------
    BadInputError
        If a term is of no known form.

    Examples
    --------
    >>> len(sla("ttft_p99<=2s").terms)
    1
    """
    if isinstance(terms, Sla):
        return terms
    listed = [terms] if isinstance(terms, str) else list(terms)
    if not all(isinstance(each, str) for each in listed):
        raise BadInputError("takes texts of terms", field="sla", value=listed, remedy='as in "ttft_p99<=2s"')
    return parse_sla(listed)
