"""The controls of the page Plan: the scenario as a form, and its YAML beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dash import dcc, html

from simulator.deployment.profile import shipped_profiles
from simulator.hardware import gpus, models
from simulator.ui.plan.asked import FIELDS, MOST_GPUS, Planned, form_of, mapping_of
from simulator.ui.widgets import aria, choices, dropdown, field

EFFORTS = {"first": "a first answer", "scenario": "as the scenario's search asks"}

LABELS: Mapping[str, tuple[str, str]] = {
    "name": ("Name", ""),
    "tp": ("GPUs of a replica", "Empty: the fewest that hold the model."),
    "policies": ("Policies", "Comma-separated; gains are over the first."),
    "acceptance": ("Acceptance", "[DRAFTER=]MODEL, comma-separated; empty: the profile's own."),
    "arrivals": ("Traffic", "poisson:12/s, gamma:12/s,cv=3 or diurnal:120/s,peak=1.6"),
    "lengths": ("Lengths, prompt/output", "Empty where the classes in the YAML have their own."),
    "sla": ("Promises", "Comma-separated: tps_p10>=60, ttft_p99<=2s"),
    "concurrency": ("Requests at once on a replica", ""),
    "prefill": ("Prompt tokens/s of a prefill worker", "Empty: the profile's; unknown, no cost is stated."),
    "headroom": ("Room beyond the peak", ""),
    "price": ("Price of a GPU hour", ""),
}
"""Text fields of the form: what stands above each, and below."""


def controls(state: Planned) -> html.Form:
    """Return the controls as they stand in a state."""
    shown = form_of(mapping_of(state.text))

    def fields(*names: str) -> list[Any]:
        return [field(f"p-{name}", *_label(name, shown)) for name in names]

    return html.Form(
        [
            html.H2("What runs"), *fields("name"), *_what_runs(state, shown),
            *fields("policies", "acceptance"),
            html.H2("For whom"), *fields("arrivals", "lengths", "sla"),
            html.H2("On what, at which price"), *fields("concurrency", "prefill", "headroom", "price"),
            html.H2("How precisely"), choices("p-effort", "How precisely", EFFORTS, state.effort),
            html.Div(html.Button("Plan", id="p-go", type="button", className="main"), className="go"),
        ],
        className="controls", **aria(label="Scenario as a form"),
    )  # fmt: skip


def _label(name: str, shown: Mapping[str, Any]) -> tuple[str, Any, str]:
    above, below = LABELS[name]
    kind: Any = "number" if FIELDS[name][1] == "number" else "text"
    value = shown[name]
    return above, dcc.Input(id=f"p-{name}", type=kind, value=value, debounce=True, autoComplete="off"), below


def _what_runs(state: Planned, shown: Mapping[str, Any]) -> list[Any]:
    profiles = [name for name in shipped_profiles() if not name.startswith("kernels/")]
    titles = {name: gpu.title for name, gpu in gpus.catalogue().items()}
    ways = {"profile": "a profile", "hardware": "a model on GPUs"}
    further = dropdown("p-gpus", titles, list(state.gpus), multi=True)
    hardware = [
        field("p-model", "Model", dropdown("p-model", sorted(models.catalogue()), shown["model"])),
        field("p-gpu", "GPU", dropdown("p-gpu", titles, shown["gpu"])),
        field("p-tp", *_label("tp", shown)),
        field(
            "p-gpus", "Beside it", further, f"Up to {MOST_GPUS} further GPUs, each at its catalogue price."
        ),
    ]
    return [
        choices("p-on", "What runs", ways, "hardware" if shown["model"] else "profile"),
        field("p-profile", "Profile", dropdown("p-profile", profiles, shown["profile"])),
        html.Div(hardware, id="p-hardware"),
    ]


def editor(state: Planned) -> html.Details:
    """Return the scenario as YAML, to be edited as well."""
    area = dcc.Textarea(id="p-yaml", value=state.text, spellCheck=False, className="yaml")
    below = "Change it here or in the form: each follows the other when a field is left."
    return html.Details([html.Summary("The scenario as YAML"), field("p-yaml", "scenario.yaml", area, below)])
