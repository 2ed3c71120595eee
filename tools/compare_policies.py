"""Compare all policies on three profiles and two traffics; the tables of docs/policies.md.

Closed loops, every policy at every load with the same seeds. An answer at an SLA is read off each seed's own
line, so that differences between policies are paired: intervals are of these differences.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.acceptance.scaled import with_difficulty
from simulator.acceptance.trace import AcceptanceModel
from simulator.core.files import write_csv
from simulator.core.provenance import Provenance
from simulator.core.statistics import mean_interval
from simulator.deployment.acceptance_text import AcceptanceSpec
from simulator.deployment.deployment import Deployment, deploy
from simulator.deployment.profile import Profile, load_profile
from simulator.deployment.profile_parts import AdditiveSpec, DraftSpec
from simulator.engine.limits import EngineLimits
from simulator.engine.run import enough_requests, simulate
from simulator.parallel.cells import run_cells
from simulator.sla.terms import Term, parse_term
from simulator.sweeps.frontier import FrontierRun, run_cell
from simulator.sweeps.lines import lines
from simulator.traffic.arrivals import ClosedLoop
from simulator.traffic.lengths import as_lengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass

REFERENCE = "dspark-async"

BOUND = "oracle"

WORTH_A_WORD = 0.005
"""Lead over the reference from which on a table shows it in bold, if it is sure."""

GAMMA = 7
"""Block of the third profile's drafter, as in the paper's offline experiments."""


def llama_on_h100(drafter_price: float = 1.0) -> Profile:
    """Llama-3.1-8B on an H100 by published coefficients, with a drafter of five layers priced by layers.

    T = 5.886 ms + 21.0 us a row + 39.3 ns a KV token, and 1.21 ms of overhead a step (SpecDecode-Bench). The
    drafter's pass is 5/32 of the target's at R * 7 rows, times ``drafter_price``, its head 70 us a turn.
    """
    bias_s, row_s, layers = 5.886e-3, 21.0e-6, 5 / 32
    requests = (1.0, 512.0)
    passes = tuple(drafter_price * layers * (bias_s + row_s * GAMMA * each) for each in requests)
    published = Provenance(
        kind="published", source="SpecDecode-Bench/simulator: H100, Llama-3.1-8B", date="2026-11",
        notes="drafting priced by layers, not measured",
    )  # fmt: skip
    return Profile(
        name="h100-llama-3.1-8b", title="Llama-3.1-8B on H100", provenance=published,
        step=AdditiveSpec(
            bias_s=bias_s + 1.21e-3, request_probes=(1.0,), alpha_s=(0.0,), token_probes=(0.0, 4096.0),
            theta_s=(0.0, 4096 * row_s), context_s_per_token=39.3e-9,
        ),
        drafters={"dspark": DraftSpec(
            structure="semi-autoregressive", block_size=GAMMA, requests=requests, pass_s=passes,
            sequential_s=(70e-6, 70e-6),
        )},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A profile under a traffic: its deployment, and the policies, loads and SLAs compared on it."""

    profile: str
    traffic: str
    deployment: Deployment
    policies: tuple[str, ...]
    loads: tuple[int, ...]
    terms: tuple[Term, ...]


def cases(request_share: float | None = None, drafter_price: float = 1.0) -> list[Case]:
    """Three profiles, each with mixed domains and with chat alone, whose drafts are accepted least.

    request_share: of the spread of difficulty that lies between requests; None as the models assume, 0.3.
    drafter_price: multiple of the draft pass of the H100 profile.
    """
    made = []
    for name, slas, budget, loads in (
        ("deepseek-v4-flash", ("tps_mean>=80", "tps_p10>=60"), 300, (20, 50, 90, 130, 180, 240, 300)),
        ("deepseek-v4-pro", ("tps_mean>=35", "tps_p10>=28"), 200, (10, 30, 60, 90, 120, 160, 200, 260)),
        ("h100-llama-3.1-8b", ("tps_mean>=80", "tps_p10>=60"), 200, (8, 32, 70, 110, 160, 220, 300, 400)),
    ):
        shipped = name != "h100-llama-3.1-8b"
        level, block = 0.0, GAMMA
        if shipped:
            own = load_profile(name).acceptance["dspark"]
            level, block = own.level, own.block_size or GAMMA
        target_ms = 1000 / parse_term(slas[1]).bound
        policies = _policies(block, shipped, budget, target_ms)
        base = deploy(name if shipped else llama_on_h100(drafter_price), required=False)
        for traffic in ("mixed domains", "chat alone"):
            domains = ("math", "code", "chat") if traffic == "mixed domains" else ("chat",)
            model = "+".join(f"{1 / len(domains)!r}*qwen3-4b/dspark/{each}" for each in domains)
            given = Provenance(kind="published", source="arXiv 2607.05147", date="2026-07")
            spec = AcceptanceSpec(model=model, block_size=block, level=level, provenance=given)
            # MTP-1 gets the first position of the same drafts, so that its requests differ as the others' do.
            acceptance = {"dspark": _with_share(spec.build(), request_share)}
            deployment = Deployment(base.profile, acceptance)
            made.append(Case(name, traffic, deployment, policies, loads, tuple(map(parse_term, slas))))
    return made


def _with_share(model: AcceptanceModel, share: float | None) -> AcceptanceModel:
    return model if share is None else with_difficulty(model, share) or model


def _policies(block: int, has_mtp: bool, budget: int, target_ms: float) -> tuple[str, ...]:
    half = -(-block // 2)
    return (
        *(("mtp1",) if has_mtp else ("autoregressive",)), f"fixed:{half}", f"fixed:{block}", "threshold:0.6",
        "dspark", REFERENCE, "sglang", "vllm", "trtllm", "off-gate", f"slo:{target_ms:.4g}ms",
        "balanced:power=1", "balanced:power=2", "balanced:power=4",
        f"batch-table:1-32={block},33-128={half},129-=1", "goodput", f"moving-average:tiers=1/{half}/{block}",
        f"fixed-budget:{budget}", "utility", "bandit", BOUND,
    )  # fmt: skip


def simulated(case: Case, seeds: int, steps: int | None, workers: int) -> pd.DataFrame:
    """Run every policy at every load with every seed: a row each."""
    plans = [case.deployment.plan(policy) for policy in case.policies]
    lengths = as_lengths(None)
    cells = [
        FrontierRun(plan, case.deployment.limits(load), lengths, steps, seed)
        for seed in range(seeds) for plan in plans for load in case.loads
    ]  # fmt: skip
    return pd.DataFrame(run_cells(run_cell, cells, workers=workers, label=f"{case.profile}, {case.traffic}"))


def answers(case: Case, rows: pd.DataFrame) -> pd.DataFrame:
    """Read off what each policy gives under each SLA: means over seeds, and paired intervals."""
    found = []
    for term in case.terms:
        by_seed = [
            {policy: line.at_sla(term) for policy, line in lines(mine).items()}
            for _, mine in rows.groupby("seed")
        ]
        throughput = {p: np.array([each[p].throughput for each in by_seed]) for p in case.policies}
        reference, bound = throughput[REFERENCE], throughput[BOUND]
        for policy in case.policies:
            mine = throughput[policy]
            lead, lead_ci95 = mean_interval(mine / reference - 1)
            regret, regret_ci95 = mean_interval(1 - mine / bound)
            found.append({
                "profile": case.profile, "traffic": case.traffic, "sla": term.text, "policy": policy,
                "throughput_tok_per_s": float(mine.mean()), "throughput_ci95": mean_interval(mine)[1],
                "concurrency": float(np.mean([each[policy].concurrency for each in by_seed])),
                "tps_mean": float(np.mean([each[policy].tps_mean for each in by_seed])),
                "tps_p10": float(np.mean([each[policy].tps_p10 for each in by_seed])),
                "regret": regret, "regret_ci95": regret_ci95, "lead": lead, "lead_ci95": lead_ci95,
                "beyond_loads": any(each[policy].lower_bound for each in by_seed),
            })  # fmt: skip
    return pd.DataFrame(found)


def two_classes(seeds: int, load: int = 130) -> pd.DataFrame:
    """Serve chat and code in one batch on Flash, each with a target of its own.

    Targets: chat 16 ms a token, code 9 ms. A row for each policy and seed; chat_kept, code_kept: the share of
    the class whose requests keep theirs.
    """
    targets = {"chat": 0.016, "code": 0.009}
    known = ",".join(f"{name}={1000 * target:g}ms" for name, target in targets.items())
    given = Provenance(kind="published", source="arXiv 2607.05147", date="2026-07")
    flash = load_profile("deepseek-v4-flash")
    level = flash.acceptance["dspark"].level
    benches = {
        name: Deployment(flash, {"dspark": AcceptanceSpec(
            model=f"qwen3-4b/dspark/{name}", block_size=5, level=level, provenance=given).build()})
        for name in targets
    }  # fmt: skip
    weighted = (f"balanced:power={power},{known}" for power in (2, 6))
    policies = (REFERENCE, "balanced:power=2", *weighted, f"slo:{known}")
    traffic = SyntheticTraffic(ClosedLoop(), tuple(TrafficClass(name, as_lengths(None)) for name in targets))
    found = []
    for policy in policies:
        plans = [bench.plan(policy) for bench in benches.values()]
        for seed in range(seeds):
            run = simulate(
                traffic.workload(seed, requests=2048), [plan.replay(seed) for plan in plans],
                plans[0].scheduler, plans[0].cost, EngineLimits(load), seed=seed, steps=1500,
                finish=enough_requests(load),
            )  # fmt: skip
            row: dict[str, object] = {
                "policy": policy, "seed": seed, "throughput": run.metrics.throughput_tok_per_s
            }  # fmt: skip
            for name, target in targets.items():
                mine = run.requests[run.requests["traffic_class"] == name].iloc[load:]
                row[f"{name}_p10"] = float(mine["tps"].quantile(0.1))
                row[f"{name}_kept"] = float((mine["tpot_s"] <= target).mean())
            found.append(row)
    return pd.DataFrame(found)


def classes_markdown(rows: pd.DataFrame) -> str:
    """Write what ``two_classes`` found as a table of docs/policies.md, means over seeds."""
    text = [
        "| policy | tokens/s | p10 of chat | chat in time | p10 of code | code in time |",
        "| --- |" + " --- |" * 5,
    ]
    for policy, mine in rows.groupby("policy", sort=False):
        cells = [f"`{policy}`"]
        for name in ("throughput", "chat_p10", "chat_kept", "code_p10", "code_kept"):
            mean, half = mean_interval(mine[name].to_numpy())
            form = ".1%" if name.endswith("kept") else ",.0f" if name == "throughput" else ".1f"
            cells.append(f"{mean:{form}} ± {half:{form}}")
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def markdown(table: pd.DataFrame) -> str:
    """Write the answers of one profile and traffic as a table of docs/policies.md."""
    text = []
    for (profile, traffic), group in table.groupby(["profile", "traffic"], sort=False):
        terms = list(dict.fromkeys(group["sla"]))
        text += [f"### {profile}, {traffic}", ""]
        heads = [f"tokens/s at {term} | p10 there | against `{REFERENCE}` | regret" for term in terms]
        text += [f"| policy | {' | '.join(heads)} |", "| --- |" + " --- |" * 4 * len(terms)]
        for policy in dict.fromkeys(group["policy"]):
            mine = group[group["policy"] == policy].set_index("sla")
            text.append(f"| `{policy}` | {' | '.join(_answer(mine.loc[term]) for term in terms)} |")
        text.append("")
    return "\n".join(text)


def _answer(row: pd.Series) -> str:
    if np.isnan(row["throughput_tok_per_s"]):
        return "not met | | | "
    ahead = row["lead"] > max(row["lead_ci95"], WORTH_A_WORD) and row["policy"] != BOUND
    mark = "**" if ahead else ""
    more = "over " if row["beyond_loads"] else ""
    return (
        f"{more}{row['throughput_tok_per_s']:,.0f} ± {row['throughput_ci95']:,.0f} | {row['tps_p10']:.1f} | "
        f"{mark}{row['lead']:+.1%} ± {row['lead_ci95']:.1%}{mark} | {row['regret']:.1%}"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Run what is asked, print the tables, write ``rows.csv`` and ``answers.csv``."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--out", type=Path, required=True, help="directory for rows.csv and answers.csv")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--steps", type=int, help="engine steps of a run; by default by its load")
    options.add_argument("--workers", type=int, default=-1)
    options.add_argument("--only", default="", help="profiles whose name holds this")
    options.add_argument(
        "--policy", action="append", help="these policies alone; the reference and oracle are added"
    )
    options.add_argument("--request-share", type=float, help="share of difficulty between requests, 0 to 1")
    options.add_argument(
        "--classes", action="store_true", help="two classes with targets of their own instead"
    )
    options.add_argument(
        "--drafter-price", type=float, default=1.0, help="multiple of the draft pass of the H100 profile"
    )
    asked = options.parse_args(words)
    if asked.classes:
        table = two_classes(asked.seeds)
        asked.out.mkdir(parents=True, exist_ok=True)
        write_csv(asked.out / "classes.csv", table, "%.8g")
        print(classes_markdown(table))
        return
    rows, found = [], []
    for case in cases(asked.request_share, asked.drafter_price):
        if asked.only in case.profile:
            if asked.policy:
                case = replace(case, policies=tuple(dict.fromkeys((*asked.policy, REFERENCE, BOUND))))
            mine = simulated(case, asked.seeds, asked.steps, asked.workers)
            rows.append(mine.assign(profile=case.profile, traffic=case.traffic))
            found.append(answers(case, mine))
            print(markdown(found[-1]), flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    write_csv(asked.out / "rows.csv", pd.concat(rows), "%.8g")
    write_csv(asked.out / "answers.csv", pd.concat(found), "%.8g")
    print(f"wrote {asked.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
