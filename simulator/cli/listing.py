"""What there is to choose from: profiles, policies, acceptance models."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from simulator.acceptance.fitted import catalogue
from simulator.deployment.profile import load_profile, shipped_profiles
from simulator.schedulers.parse import policy_help


def show() -> None:
    """Print what there is to choose from, as ``dspark-sim list`` does."""
    print_listing()


def print_listing() -> None:
    """Print every profile, policy and acceptance model, each with its provenance in a line."""
    console = Console()
    console.print(_profiles())
    console.print(_policies())
    console.print(_acceptance())
    console.print(
        "Also: a trace FILE.parquet, an engine's log FILE or FILE@BLOCK, conditional:0.9,0.88, "
        "marginal:0.9,0.8, length:3.5@5, rate:0.34@7, a mix "
        "0.6*NAME+0.4*NAME; qwen3-4b-chat is short for qwen3-4b/dspark/chat.",
        markup=False,
    )


def _profiles() -> Table:
    table = _table("Profiles", "name", "what", "where from")
    for name in shipped_profiles():
        profile = load_profile(name)
        table.add_row(name, profile.title, profile.provenance.line())
    return table


def _policies() -> Table:
    table = _table("Policies (POLICY or POLICY@DRAFTER)", "policy", "what it does")
    for form, text in policy_help().items():
        table.add_row(form, text)
    return table


def _acceptance() -> Table:
    table = _table("Acceptance models", "target/drafter/dataset", "accepted length, published", "where from")
    for model in catalogue():
        published = model.published_accepted_length
        source = (
            f"{model.provenance.kind}, {model.provenance.date}: arXiv 2607.05147, table 1 and figures 2, 6"
        )
        table.add_row(model.name, "" if published is None else f"{published:.2f}", source)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
