"""Derive the DeepSeek-V4 profiles and acceptance from what is published of its production serving.

Reads profiles/sources, writes profiles/deepseek-v4-{flash,pro}[-figure7].json and traces/production.json.

Steps come from the paper's MTP-1 lines, taken apart by layers (``simulator.paper.production``). Acceptance
comes from accepted lengths that others measured on V4-Pro. Nothing is fitted to a line of DSpark's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.core.files import data_directory, write_json
from simulator.core.provenance import Provenance
from simulator.deployment.acceptance_text import AcceptanceSpec
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import PublishedClaims
from simulator.paper.production import (
    MTP1_ACCEPTED_LENGTH,
    TEXT,
    Shape,
    falling_rates,
    level_for,
    parts_of,
    sources,
    step_curve,
    text,
)

TRAFFIC = "thinking"
"""Kind of the published accepted lengths that the profiles ship with. V4's live traffic is some mix of it and
of traffic without thinking; no source says which. The lower one claims less."""
DATE = "2026-07"


def acceptance_of(traffic: str) -> dict[str, AcceptanceSpec]:
    """Return the drafters' acceptance on one kind of traffic, from its published accepted lengths."""
    _, published = sources()
    lengths: Mapping[str, Any] = published["accepted_length"][traffic]
    block, length = lengths["dspark"][-1]
    mtp_block, mtp_length = lengths["mtp"][-1]
    rates = falling_rates(MTP1_ACCEPTED_LENGTH - 1, mtp_length, mtp_block)
    at = f"{published['source']}, {traffic.replace('-', ' ')}"
    return {
        "dspark": AcceptanceSpec(
            model=TEXT,
            block_size=block,
            level=level_for(text(), length, block),
            accepted_length=length,
            provenance=Provenance(
                kind="fitted",
                source=f"level: accepted length {length} at {block} drafts, {at}; shape: Qwen3-4B DSpark "
                "on math, code and chat in equal parts (arXiv 2607.05147, figures 2, 5, 6)",
                date=DATE,
                command="scripts/derive_profiles",
            ),
        ),
        "mtp": AcceptanceSpec(
            model="conditional:" + ",".join(f"{rate:g}" for rate in rates),
            accepted_length=mtp_length,
            provenance=Provenance(
                kind="fitted",
                source=f"accepted length {mtp_length} at {mtp_block} drafts, {at}; first draft as MTP-1's, "
                "each further one the same multiple of the one before",
                date=DATE,
                command="scripts/derive_profiles",
            ),
        ),
    }


def mtp1_acceptance() -> AcceptanceSpec:
    """Return MTP-1's: its accepted length is published, and nothing else is needed."""
    return AcceptanceSpec(
        model=f"conditional:{MTP1_ACCEPTED_LENGTH - 1:g}",
        provenance=Provenance(kind="published", source="accepted length of MTP-1 near 1.85", date=DATE),
    )


def profile(title: str, acceptance: Mapping[str, AcceptanceSpec], figure_7_alone: bool = False) -> Profile:
    """Return the profile of one model, its steps taken apart by layers."""
    figures, published = sources()
    lines = figures[title.lower().removeprefix("deepseek-").replace("-", "_")]
    shape, drafters = Shape(**published["shapes"][title]), published["drafters"]
    parts = parts_of(
        step_curve(lines, figure_7_alone), shape, drafters["dspark"]["layers"],
        drafters["dspark"]["block"], drafters["mtp"]["block"],
    )  # fmt: skip
    suffix = "-figure7" if figure_7_alone else ""
    used = "figure 7's MTP-1 line alone" if figure_7_alone else "MTP-1 lines"
    source = "Cheng et al., DSpark, arXiv 2607.05147, figures 7 and 8"
    return Profile(
        name=title.lower() + suffix,
        title=title + suffix,
        provenance=Provenance(
            kind="published",
            source=f"{source}: {used}, step time = {MTP1_ACCEPTED_LENGTH} * requests / throughput",
            date=DATE,
            command="scripts/derive_profiles",
            device="DeepSeek production serving, per GPU",
            model=title,
            notes="MTP-1's layer is taken out of its steps and drafters are put in by layers. With the "
            f"output head, {shape.share(1):.1%} of a pass for MTP's and "
            f"{shape.share(drafters['dspark']['layers']):.1%} for DSpark's (by active parameters)",
        ),
        step=parts.step,
        drafters=parts.drafters,
        replica_gpus=1,  # figure 8 counts requests per GPU: one with its share of experts and traffic
        acceptance={"mtp1": mtp1_acceptance(), **acceptance},
        published=claims(lines, source),
    )


def claims(lines: Mapping[str, Any], source: str) -> PublishedClaims:
    """Return the published results that predictions are set beside."""
    load, speeds, headline = lines["load"], lines["throughput_vs_tps"], lines["headline_claims"]
    over_load = {"mtp1": "mtp1_throughput", "dspark-async": "dspark5_throughput"}
    over_speed = {"mtp1": "mtp1", "dspark-async": "dspark5"}
    return PublishedClaims(
        source=source,
        throughput={policy: load[key] for policy, key in over_load.items() if key in load},
        budget={"dspark-async": load["dspark5_budget"]} if "dspark5_budget" in load else {},
        throughput_vs_tps={policy: speeds[key] for policy, key in over_speed.items() if key in speeds},
        throughput_gain_at_sla=headline["throughput_gain_at_sla"],
        tps_gain_at_matched_throughput=headline["tps_gain_at_matched_throughput"],
    )


def production() -> dict[str, Any]:
    """Return the contents of traces/production.json: acceptance by name, for any profile."""
    _, published = sources()
    models = {
        f"deepseek-v4/{drafter}/{traffic}": spec.model_dump(mode="json", exclude_none=True)
        for traffic in published["accepted_length"]
        for drafter, spec in acceptance_of(traffic).items()
    }
    return {"schema": "dspark-simulator/production-acceptance", "version": 1, "models": models}


def main() -> None:
    """Write the profiles of both models, and the acceptance of both kinds of traffic."""
    write_json(data_directory("traces") / "production.json", production())
    acceptance = acceptance_of(TRAFFIC)
    for title in ("DeepSeek-V4-Flash", "DeepSeek-V4-Pro"):
        for alone in (False, True):
            written = profile(title, acceptance, alone)
            written.save(data_directory("profiles") / f"{written.name}.json")
            print(f"wrote {written.name}.json, level {acceptance['dspark'].level:+.2f}")


if __name__ == "__main__":
    main()
