"""The controls of the page Explore, and the state that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dash import dcc, html

from simulator.acceptance.fitted import catalogue as fitted_acceptance
from simulator.core.errors import BadInputError, SimulatorError
from simulator.deployment.acceptance_text import production_acceptance
from simulator.deployment.profile import shipped_profiles
from simulator.hardware import gpus, models
from simulator.hardware.models import WEIGHT_BYTES
from simulator.hardware.steps.kernel_modes import ENGINES
from simulator.ui.explore.asked import Deployed, Explored
from simulator.ui.explore.work import hardware_of
from simulator.ui.security import check_acceptance, check_hardware, check_policies, check_profile
from simulator.ui.widgets import aria, choices, dropdown, field

MOST_EDITED = 8
"""Positions whose rates can be edited: the catalogue's longest block has seven."""

BY_POSITION = "by position"

POLICIES = (
    "autoregressive", "mtp1", "mtp3", "fixed:1", "fixed:2", "fixed:3", "fixed:5", "fixed:7", "threshold:0.5",
    "dspark", "dspark-async", "tiered:0,2,4", "sglang", "vllm", "trtllm", "off-gate", "balanced", "goodput",
    "moving-average", "utility", "bandit", "oracle",
)  # fmt: skip
"""Policies to choose from; any other form of `dspark-sim list` can be typed."""

FEWEST = "the fewest that fit"

EFFORTS = {"usual": "9 loads, once each", "full": "14 loads, 3 seeds, as `compare`"}

STATISTICS = {"mean": "on average", "p10": "for 90% of the users (p10)"}


def controls(state: Explored) -> html.Form:
    """Return the controls as they stand in a state."""
    return html.Form(
        [
            html.H2("What runs"), *_what_runs(state.on),
            html.H2("How good drafts are"), *_acceptance(state.on),
            html.H2("Policies"), *_policies(state),
            html.H2("Promise to users"), *_promise(state),
        ],
        className="controls", **aria(label="What is compared"),
    )  # fmt: skip


def _what_runs(on: Deployed) -> list[Any]:
    profiles = [name for name in shipped_profiles() if not name.startswith("kernels/")]
    titles = {
        name: f"{gpu.title} ({'measured kernels' if gpu.kernel_tables else 'formula'})"
        for name, gpu in gpus.catalogue().items()
    }
    engines = {"": "the engine nearest the median"} | {name: name for name in ENGINES}
    precisions = {"": "the model's own"} | {name: name for name in WEIGHT_BYTES}
    layouts = {"": FEWEST} | ({on.layout: on.layout} if on.layout else {})
    hardware = [
        field("e-model", "Model", dropdown("e-model", sorted(models.catalogue()), on.model or None)),
        field("e-gpu", "GPU", dropdown("e-gpu", titles, on.gpu or None)),
        field("e-engine", "Kernels of", dropdown("e-engine", engines, on.engine)),
        field("e-precision", "Precision of weights", dropdown("e-precision", precisions, on.precision)),
        field("e-layout", "GPUs of a replica", dropdown("e-layout", layouts, on.layout)),
    ]
    ways = {"profile": "a profile", "hardware": "a model on a GPU"}
    usual = on.profile or Deployed().profile
    return [
        choices("e-on", "What runs", ways, "profile" if on.profile else "hardware"),
        field("e-profile", "Profile", dropdown("e-profile", profiles, usual)),
        html.Div(hardware, id="e-hardware"),
    ]


def _acceptance(on: Deployed) -> list[Any]:
    listed = [*production_acceptance(), *(model.name for model in fitted_acceptance())]
    named = {"": "the profile's own", BY_POSITION: "edited by position"} | {name: name for name in listed}
    rates = _rates_of(on.acceptance)
    if on.acceptance and not rates:
        named.setdefault(on.acceptance, on.acceptance)
    chosen = BY_POSITION if rates else on.acceptance
    return [
        field("e-acceptance", "Acceptance", dropdown("e-acceptance", named, chosen)),
        _positions(rates),
    ]


def _positions(rates: Sequence[float]) -> html.Fieldset:
    given: list[float | None] = [*rates, *[None] * (MOST_EDITED - len(rates))]
    inputs = [
        dcc.Input(
            id=f"e-rate-{k}", type="number", min=0, max=1, step="any",
            value=rate, debounce=True,
        )
        for k, rate in enumerate(given, 1)
    ]  # fmt: skip
    return html.Fieldset(
        [
            html.Legend("P(draft accepted, given those before)"),
            html.Div([html.Label([str(k), each]) for k, each in enumerate(inputs, 1)], className="rates"),
            html.P("By position; the first empty one ends the block.", className="soft hint"),
        ],
        id="e-rates",
    )


def _policies(state: Explored) -> list[Any]:
    known = list(dict.fromkeys([*POLICIES, *state.policies]))
    own = dcc.Input(id="e-own", debounce=True, placeholder="fixed:4@dspark", autoComplete="off")
    return [
        field("e-policy", "Side by side", dropdown("e-policy", known, list(state.policies), multi=True)),
        field("e-own", "Add a policy", own, "Any form that `dspark-sim list` shows; Enter adds it."),
        field("e-effort", "Precision", dropdown("e-effort", EFFORTS, state.effort)),
    ]


def _promise(state: Explored) -> list[Any]:
    bounds = html.Div(
        [
            dcc.Input(id="e-sla", type="range", min=5, max=max(250, state.sla), step=1, value=state.sla),
            dcc.Input(id="e-sla-number", type="number", min=1, value=state.sla, debounce=True),
        ],
        className="slider",
    )
    return [
        field("e-sla", "Tokens/s per user, at least", bounds),
        choices("e-statistic", "Promised to", STATISTICS, state.statistic),
    ]


def _rates_of(acceptance: str) -> tuple[float, ...]:
    """Rates that an acceptance text lists by position; none for any other."""
    kind, _, rest = acceptance.partition(":")
    try:
        return tuple(float(each) for each in rest.split(","))[:MOST_EDITED] if kind == "conditional" else ()
    except ValueError:
        return ()


def acceptance_of(chosen: str, rates: Sequence[float | None]) -> str:
    """Return the acceptance model as text: the name that is chosen, or the rates up to the first gap.

    >>> acceptance_of(BY_POSITION, [0.9, 0.8, None, 0.5])
    'conditional:0.9,0.8'
    """
    if chosen != BY_POSITION:
        return chosen
    until = next((k for k, rate in enumerate(rates) if rate is None), len(rates))
    if not until:
        raise BadInputError("names no rate", source="acceptance", remedy="give the first position a rate")
    return "conditional:" + ",".join(f"{rate:g}" for rate in rates[:until])


def state_of(
    on: str, profile: str, model: str | None, gpu: str | None, engine: str, precision: str, layout: str,
    acceptance: str, policies: Sequence[str], effort: str, *rates: float | None,
) -> Explored:  # fmt: skip
    """Return what the controls ask, checked. Raises ``BadInputError`` whose source is the field."""
    where = Deployed(profile) if on == "profile" else Deployed(
        "", model or "", gpu or "", engine, precision, layout=layout
    )  # fmt: skip
    where = replace(where, acceptance=acceptance_of(acceptance, rates))
    check(where)
    check_policies(policies)
    return Explored(where, tuple(policies), "full" if effort == "full" else "usual")


def check(on: Deployed) -> None:
    """Refuse whatever is no name of a catalogue: no word of the page may reach a file."""
    if on.profile:
        check_profile(on.profile)
    else:
        check_hardware(on.model, on.gpu)
        _check_layout(on)
    check_acceptance(on.acceptance)


def layouts_of(on: Deployed) -> dict[str, str]:
    """Return the label of every layout that holds a model, with what is shown of it; none where none does."""
    try:
        fitting = hardware_of(replace(on, layout="")).layouts()
    except SimulatorError:  # the run says why, at its field
        return {}
    return {each.label: f"{each.gpus} ({each.label}), {_tokens(each.kv_tokens)}" for each in fitting}


def _tokens(count: int) -> str:
    return f"{count / 1e6:,.1f}M tokens fit" if count >= 1e6 else f"{count / 1e3:,.0f}k tokens fit"


def _check_layout(on: Deployed) -> None:
    """Refuse a layout that does not hold the model; where none does, the run says so."""
    fitting = layouts_of(on)
    if on.layout and fitting and on.layout not in fitting:
        raise BadInputError(
            f"does not hold {on.model} on {on.gpu}", source="layout", value=on.layout,
            remedy=", ".join(fitting),
        )  # fmt: skip
