"""What there is to choose from: profiles, policies, acceptance models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from simulator.acceptance.fitted import catalogue
from simulator.core.errors import InfeasibleError
from simulator.core.provenance import Provenance
from simulator.deployment.acceptance_text import production_acceptance
from simulator.deployment.profile import load_profile, shipped_profiles
from simulator.hardware import gpus, models
from simulator.hardware.choose import Hardware, kernel_name
from simulator.hardware.engines import FORMULA_ENGINE, chunk_tokens
from simulator.hardware.memory import Layout
from simulator.schedulers.parse import policy_help


def show() -> None:
    """Print what there is to choose from, as ``dspark-sim list`` does."""
    print_listing()


def choices(what: str) -> dict[str, str]:
    """Names of policies, profiles, acceptance, models or gpus, each with a line about it: for a shell.

    A policy that takes an argument ends with its colon.
    """
    if what == "policies":
        forms = {form.partition("[")[0]: text for form, text in policy_help().items()}
        return {_until_argument(form): text for form, text in forms.items()}
    if what == "profiles":
        return dict.fromkeys(shipped_profiles(), "")
    if what == "acceptance":
        lengths = {model.name: model.published_accepted_length for model in catalogue()}
        shown = {name: f"accepted length {length:.2f}" if length else "" for name, length in lengths.items()}
        return shown | dict.fromkeys(production_acceptance(), "")
    if what == "models":
        return {name: f"{model.parameters / 1e9:,.1f} B" for name, model in models.catalogue().items()}
    return {name: gpu.title for name, gpu in gpus.catalogue().items()}


def listed(*, models: bool = False, gpus: bool = False) -> dict[str, object]:
    """Return what ``list`` prints, names with a line about each, as ``--json`` shows it."""
    asked = [name for name, wanted in (("models", models), ("gpus", gpus)) if wanted]
    if asked:
        return {name: choices(name) for name in asked}
    policies = policy_help()
    return {"profiles": list(choices("profiles")), "policies": policies, "acceptance": choices("acceptance")}


def _until_argument(form: str) -> str:
    name, colon, _ = form.partition(":")
    return name.removesuffix("K") + colon


def print_listing() -> None:
    """Print every profile, policy and acceptance model, each with its kind, its date and its source."""
    console, sources = Console(), _Sources()
    console.print(_profiles(sources))
    console.print(_policies())
    console.print(_in_full())
    console.print(_acceptance(sources))
    console.print(
        "Also: a trace FILE.parquet, an engine's log FILE or FILE@BLOCK, conditional:0.9,0.88, "
        "marginal:0.9,0.8, length:3.5@5, rate:0.34@7, a mix "
        "0.6*NAME+0.4*NAME; qwen3-4b-chat is short for qwen3-4b/dspark/chat.",
        markup=False,
    )
    console.print(sources.table())


def print_models() -> None:
    """Print every model that ``--model`` names, with its size."""
    table = _table("Models", "name")
    for head in ("billion\nparameters", "\nactive"):
        table.add_column(head, justify="right")
    table.add_column("own\nweights")
    table.add_column("KV bytes\na token", justify="right")
    for name, model in models.catalogue().items():
        active = "" if model.experts is None else f"{model.active_parameters / 1e9:,.1f}"
        kept = f"{model.kv_bytes_per_token():,.0f}"
        table.add_row(name, f"{model.parameters / 1e9:,.1f}", active, model.native, kept)
    console = Console()
    console.print(table)
    console.print(
        "Shapes are those of each model's config.json on Hugging Face; parameters agree with the published "
        "counts. Any other config.json is taken too: --model FOLDER.",
        highlight=False,
    )


def print_gpus() -> None:
    """Print every GPU that ``--gpu`` names, and where its numbers and its price come from."""
    table = _table("GPUs", "name")
    for head in ("memory\nGiB", "bandwidth\nTB/s", "bf16\nTFLOP/s"):
        table.add_column(head, justify="right")
    table.add_column("\nkernels")
    table.add_column("price\nUSD/h", justify="right")
    for name, gpu in gpus.catalogue().items():
        table.add_row(
            name, f"{gpu.memory_bytes / 2**30:,.0f}", f"{gpu.bandwidth_bytes_per_s / 1e12:.2f}",
            f"{gpu.flop_per_s['bf16'] / 1e12:,.0f}", "measured" if gpu.kernel_tables else "formula",
            "" if gpu.price_per_hour is None else f"{gpu.price_per_hour:.2f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    for name, gpu in gpus.catalogue().items():
        price = "" if gpu.price_source is None else f"; price: {gpu.price_source}"
        console.print(f"{name}: {gpu.title}; {gpu.source}{price}", style="dim", highlight=False)


_FITS = (
    "Weights, and keys and values of a token, on each GPU; tokens that fit, all requests together; prompt "
    "tokens of a step. A derived curve needs the extra silicon and tables that pass their gates; else the "
    "formula answers."
)


def print_fits(model: str, named: Sequence[str] | None) -> list[dict[str, object]]:
    """Print the layouts that hold a model: the smallest of every GPU, or all of a node of those named.

    Returns a row for each. Raises ``InfeasibleError`` where none of those named holds the model.
    """
    rows: list[dict[str, object]] = []
    refused: dict[str, str] = {}
    for gpu in named or gpus.catalogue():
        asked = Hardware(model=model, gpu=gpu)
        try:
            rows += map(_fit, asked.layouts() if named else (asked.layout(),))
        except InfeasibleError as error:
            refused[gpu] = str(error)
    if not rows:
        raise InfeasibleError("; ".join(refused.values()))
    table = _table(model, "layout", "weights", "KV a token", "KV tokens", "chunk", "curve")
    for row in rows:
        table.add_row(
            _where(row), f"{row['weights_gib_per_gpu']:,.1f} GiB",
            f"{row['kv_bytes_per_token']:,.0f} B", f"{row['kv_tokens']:,}", f"{row['chunk_tokens']:,}",
            str(row["curve"]),
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(_FITS, style="dim", highlight=False)
    for gpu, why in refused.items():
        console.print(f"{gpu}: {why}", style="dim", highlight=False)
    return rows


def _where(row: Mapping[str, object]) -> str:
    """Return a layout in words; its widths where attention is not tensor-parallel alone."""
    widths = f", {row['layout']}" if row["layout"] != f"tp{row['gpus']}" else ""
    return f"{row['gpus']} x {row['gpu']}{widths}, {row['precision']}"


def _fit(layout: Layout) -> dict[str, object]:
    """Tabulate a layout; its chunk is that of the engine that runs on every GPU."""
    derived = "derived" if layout.gpu.kernel_tables else "formula"
    return {
        "gpu": layout.gpu.name, "gpus": layout.gpus, "layout": layout.label, "precision": layout.precision,
        "weights_gib_per_gpu": layout.weight_bytes / 2**30, "kv_bytes_per_token": layout.kv_bytes_per_token,
        "kv_tokens": layout.kv_tokens, "chunk_tokens": chunk_tokens(FORMULA_ENGINE, layout.gpu, layout.dp),
        "curve": "shipped" if kernel_name(layout) in shipped_profiles() else derived,
    }  # fmt: skip


class _Sources:
    """Where entries come from, in full: each source once, under a number that rows refer to."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def mark(self, short: str, line: str) -> str:
        """Return ``short`` with the number of the source ``line``: rows stay short on 80 columns."""
        if line not in self._lines:
            self._lines.append(line)
        return f"{short} [{self._lines.index(line) + 1}]"

    def mark_provenance(self, provenance: Provenance) -> str:
        """Return kind and date with the number of the source."""
        return self.mark(f"{provenance.kind}, {provenance.date}", provenance.line())

    def table(self) -> Table:
        """Return a row per source."""
        table = _table("Where from", "", "source")
        for number, line in enumerate(self._lines, 1):
            table.add_row(f"[{number}]", line)
        return table


def _profiles(sources: _Sources) -> Table:
    table = _table("Profiles", "name", "what", "where from")
    curves = 0
    for name in shipped_profiles():
        if name.startswith("kernels/"):
            curves += 1
            continue
        profile = load_profile(name)
        table.add_row(name, profile.title, sources.mark_provenance(profile.provenance))
    kernels = f"kernels: {curves} curves are shipped; else derived, or modelled by a formula; always said"
    table.add_row(
        "--model M --gpu G", "see list --models, --gpus",
        sources.mark("kernels or formula", kernels),
    )  # fmt: skip
    return table


_LONGEST_NAME = 14
"""Characters of a policy's form that leave room for what it does on a line of 80: a choice."""


def _policies() -> Table:
    """Tabulate policies, a line each on 80 columns."""
    table = _table("Policies (POLICY or POLICY@DRAFTER)", "policy", "what it does")
    for form, text in policy_help().items():
        table.add_row(escape(_name(form)), escape(text))
    return table


def _in_full() -> Table:
    """Tabulate all that can be said to a policy, as one word: a line each on 80 columns."""
    table = _table("Policies in full (what is in brackets may be left out)", "policy")
    for form in policy_help():
        if form != _name(form):
            table.add_row(escape(form))
    return table


def _name(form: str) -> str:
    """Return a policy's form without what may be added, and without arguments where it is long even so."""
    needed = form.partition("[")[0]
    return needed if len(needed) <= _LONGEST_NAME else needed.partition(":")[0]


def _acceptance(sources: _Sources) -> Table:
    table = _table("Acceptance models", "target/drafter/dataset", "accepted length,\npublished", "where from")
    for model in catalogue():
        published = model.published_accepted_length
        short = f"{model.provenance.kind}, {model.provenance.date}"
        source = sources.mark(short, f"{short}: arXiv 2607.05147, table 1 and figures 2, 6")
        table.add_row(model.name, "" if published is None else f"{published:.2f}", source)
    for name, spec in production_acceptance().items():
        length = "" if spec.accepted_length is None else f"{spec.accepted_length:.2f}"
        table.add_row(name, length, sources.mark_provenance(spec.provenance))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
