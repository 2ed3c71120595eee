"""Policies from text: every form, every option by its name, and the whole of every complaint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from typing import Any

import pytest

from simulator.core.errors import BadInputError
from simulator.cost.models import LengthByRequests
from simulator.schedulers.batch_table import BatchTable
from simulator.schedulers.beyond.averages import Goodput, MovingAverage
from simulator.schedulers.beyond.fixed_budget import FixedBudget
from simulator.schedulers.beyond.gate import OffGate
from simulator.schedulers.beyond.slo import Balanced, SloFirst
from simulator.schedulers.beyond.trials import Bandit, Utility
from simulator.schedulers.engines.sglang import SGLang
from simulator.schedulers.engines.trtllm import TensorRTLLM
from simulator.schedulers.engines.vllm import VLLM
from simulator.schedulers.parse import NamedPolicy, as_policy, parse_policy, policy_help, register_policy
from simulator.schedulers.policies import MOST_LAG, DSpark, DSparkAsync, Fixed, Oracle, Threshold, Tiered
from simulator.schedulers.protocol import Scheduler


@pytest.mark.parametrize(
    ("text", "scheduler", "drafter"),
    [
        ("autoregressive", Fixed(0), "none"),
        ("mtp1", Fixed(1), "mtp1"),
        ("fixed:3", Fixed(3), None),
        ("fixed-budget:64", FixedBudget(64), None),
        ("threshold:0.7", Threshold(0.7), None),
        ("dspark", DSpark(), None),
        ("dspark-async", DSparkAsync(2), None),
        ("dspark-async:0", DSparkAsync(0), None),
        ("tiered:1,3,7", Tiered((1, 3, 7)), None),
        ("tiered:1,3:1", Tiered((1, 3), 1), None),
        ("batch-table:1-16=5,17-64=3,65-=1", BatchTable(LengthByRequests((1, 17, 65), (5, 3, 1))), None),
        ("batch-table:1-4=2@eagle3", BatchTable(LengthByRequests((1,), (2,))), "eagle3"),
        ("oracle", Oracle(), None),
        ("slo:12ms", SloFirst((("all", 0.012),)), None),
        ("slo:chat=20ms, code=10ms, extend", SloFirst((("chat", 0.02), ("code", 0.01)), True), None),
        ("balanced", Balanced(), None),
        ("balanced:power=1,chat=20ms", Balanced(1.0, (("chat", 0.02),)), None),
        (" fixed:5@eagle3 ", Fixed(5), "eagle3"),
        ("mtp1@other", Fixed(1), "other"),
    ],
)
def test_policies_as_written(text: str, scheduler: Scheduler, drafter: str | None) -> None:
    policy = parse_policy(text)
    assert (policy.name, policy.scheduler, policy.drafter) == (text.strip(), scheduler, drafter)
    assert scheduler.reason


def test_a_module_that_runs_for_each_draft_is_a_drafter_of_its_own() -> None:
    assert parse_policy("mtp3") == NamedPolicy("mtp3", Fixed(3), "mtp")
    assert parse_policy("mtp1").drafter == "mtp1"
    assert parse_policy("mtp3@dspark").drafter == "dspark"
    for text in ("mtp0", "mtp", "mtp3:2"):
        with pytest.raises(BadInputError, match="is not a policy"):
            parse_policy(text)


def test_help_covers_every_form_and_every_form_parses() -> None:
    fill: Callable[[str], str] = lambda form: (  # noqa: E731  # one expression
        form.replace(":K", ":3")
        .replace("mtpK", "mtp3")
        .replace(":P", ":0.5")
        .replace("N,N,...", "1,3")
        .replace(":LAG]", ":1")
        .replace("[", "")
        .replace("]", "")
    )
    for form, meaning in policy_help().items():
        assert parse_policy(fill(form)).scheduler
        assert meaning
    assert {form.split(":")[0].split("[")[0] for form in policy_help()} == {
        "autoregressive", "mtp1", "mtpK", "fixed", "threshold", "dspark", "dspark-async", "tiered", "oracle",
        "batch-table", "sglang", "vllm", "trtllm", "off-gate", "slo", "balanced", "goodput", "moving-average",
        "fixed-budget", "utility", "bandit",
    }  # fmt: skip


# ---------------------------------------------------------------- options

OPTIONS: dict[str, tuple[Any, dict[str, str], Any]] = {
    "sglang": (
        SGLang(2, (), (), False, 0.0, False, 1),
        {"lag": "1", "probes": "8/16", "tiers": "8/32", "reinflate": "yes", "min-gain": "0.05",
         "prefill": "", "ranks": "4"},
        SGLang(1, (8, 16), (8, 32), True, 0.05, True, 4),
    ),
    "vllm": (
        VLLM(1, (), True), {"lag": "2", "captured": "8/16", "prefill": "no"}, VLLM(2, (8, 16), False)
    ),
    "trtllm": (
        TensorRTLLM(1, (), False), {"lag": "3", "tiers": "1/3/7", "prefill": "yes"},
        TensorRTLLM(3, (1, 3, 7), True),
    ),
    "off-gate": (OffGate(0.02, 16), {"weight": "0.2", "probe": "8"}, OffGate(0.2, 8)),
    "goodput": (Goodput(0.1, 32), {"weight": "0.05", "probe": "7"}, Goodput(0.05, 7)),
    "moving-average": (
        MovingAverage((1, 3, 7), 0.2, 5, 10, 0.0, -0.25),
        {"tiers": "1/2", "weight": "0.3", "interval": "4", "warmup": "9", "up": "0.5", "down": "-1"},
        MovingAverage((1, 2), 0.3, 4, 9, 0.5, -1.0),
    ),
    "utility": (Utility(4, 32, 3), {"test": "2", "keep": "16", "first": "1"}, Utility(2, 16, 1)),
    "bandit": (Bandit(0.0, 0), {"patience": "0.1", "seed": "3"}, Bandit(0.1, 3)),
}  # fmt: skip
"""By name: the policy without options, an option of each name, and the policy with all of them."""


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_read_by_its_name_and_has_its_default(name: str) -> None:
    plain, options, whole = OPTIONS[name]
    assert parse_policy(name).scheduler == plain
    text = ",".join(f"{key}={value}" if value else key for key, value in options.items())
    assert parse_policy(f"{name}:{text}").scheduler == whole
    assert parse_policy(f"{name}: {text.replace(',', ' , ')}").scheduler == whole
    names = {each.name: each.name.replace("_", "-") for each in fields(plain)}
    assert set(names.values()) == set(options)
    assert all(each.default is not MISSING for each in fields(plain))
    for field, key in names.items():
        if (name, key) == ("sglang", "reinflate"):
            continue  # alone it has no graph to fill
        alone = f"{key}={options[key]}" if options[key] else key
        assert parse_policy(f"{name}:{alone}").scheduler == replace(plain, **{field: getattr(whole, field)})
    assert whole.reason


# ---------------------------------------------------------------- what is refused

TABLE = "as in batch-table:1-16=5,17-64=3,65-=1"
KNOWN = ", ".join(policy_help())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dsparc", f"dsparc: is not a policy; one of {KNOWN}"),
        ("fixed", "fixed: needs a number after the colon; as in fixed:3 or threshold:0.7"),
        ("fixed:two", "fixed:two: needs a number after the colon; as in fixed:3 or threshold:0.7"),
        ("fixed:1.5", "fixed:1.5: needs a number after the colon; as in fixed:3 or threshold:0.7"),
        ("fixed:-1", "fixed:-1: length: must not be negative (got -1)"),
        ("fixed-budget:-1", "fixed-budget:-1: budget: must lie in 0..2147483648 (got -1); "
         "as in fixed-budget:64"),
        ("fixed-budget:2147483649", "fixed-budget:2147483649: budget: must lie in 0..2147483648 "
         "(got 2147483649); as in fixed-budget:64"),
        ("threshold:1.1", "threshold:1.1: threshold: must be between 0 and 1 (got 1.1)"),
        ("threshold:nan", "threshold:nan: threshold: must be between 0 and 1 (got nan)"),
        ("mtp1:2", "mtp1:2: takes no argument; write mtp1"),
        ("dspark:2@x", "dspark:2@x: takes no argument; write dspark"),
        ("dspark-async:-1", f"dspark-async:-1: lag: must lie in 0..{MOST_LAG} (got -1); usually 2"),
        ("tiered:3,1", "tiered:3,1: tiers: must be increasing lengths of 0 or more (got (3, 1))"),
        ("tiered:-1,1", "tiered:-1,1: tiers: must be increasing lengths of 0 or more (got (-1, 1))"),
        ("tiered:1,1", "tiered:1,1: tiers: must be increasing lengths of 0 or more (got (1, 1))"),
        ("tiered:1,3:0", "tiered:1,3:0: lag: must be at least 1 to be lossless (got 0)"),
        ("batch-table", f"batch-table: needs ranges FIRST-LAST=LENGTH; {TABLE}"),
        ("batch-table:1-8=-1", f"batch-table:1-8=-1: needs ranges FIRST-LAST=LENGTH; {TABLE}"),
        ("batch-table:2-8=1", f"batch-table:2-8=1: must begin at 1 request; {TABLE}"),
        ("batch-table:1-8=2, 8-9=1",
         f"batch-table:1-8=2, 8-9=1: ranges must rise and not overlap, which 8-9=1 breaks; {TABLE}"),
        ("sglang:lag=0", f"sglang:lag=0: lag: must lie in 1..{MOST_LAG} (got 0); SGLang uses 2"),
        ("sglang:tier=8", "sglang:tier=8: tier: is not an option of this policy; "
         "one of lag, probes, tiers, reinflate, min-gain, prefill, ranks"),
        ("sglang:lag=soon", "sglang:lag=soon: lag: must be a whole number (got 'soon'); as in lag=2"),
        ("sglang:lag=1,lag=2", "sglang:lag=1,lag=2: lag: is given twice (got '2'); leave one out"),
        ("sglang:reinflate", "sglang:reinflate: reinflate: needs tiers to fill; "
         "as in tiers=8/16/32,reinflate"),
        ("sglang:reinflate=on", "sglang:reinflate=on: reinflate: must be yes or no (got 'on'); "
         "as in reinflate=yes"),
        ("sglang:tiers=8/8", "sglang:tiers=8/8: tiers: must rise strictly, each at least 1 (got (8, 8)); "
         "as in 8/16/32"),
        ("sglang:probes=0/8", "sglang:probes=0/8: probes: must rise strictly, each at least 1 (got (0, 8)); "
         "as in 8/16/32"),
        ("sglang:tiers=8/x", "sglang:tiers=8/x: tiers: must be whole numbers (got '8/x'); "
         "as in tiers=8/16/32"),
        ("sglang:min-gain=x", "sglang:min-gain=x: min-gain: must be a number (got 'x'); as in min-gain=0.05"),
        ("sglang:min-gain=-1", "sglang:min-gain=-1: min-gain: must be finite and not negative (got -1.0); "
         "as in min-gain=0.05"),
        ("sglang:min-gain=inf", "sglang:min-gain=inf: min-gain: must be finite and not negative (got inf); "
         "as in min-gain=0.05"),
        ("sglang:ranks=0", "sglang:ranks=0: ranks: must be at least 1 (got 0); as in ranks=8"),
        ("vllm:lag=0", f"vllm:lag=0: lag: must lie in 1..{MOST_LAG} (got 0); vLLM uses 1"),
        ("vllm:captured=9/8", "vllm:captured=9/8: captured: must rise strictly, each at least 1 "
         "(got (9, 8)); as in 8/16/32"),
        ("trtllm:lag=0", f"trtllm:lag=0: lag: must lie in 1..{MOST_LAG} (got 0); usually 1"),
        ("trtllm:tiers=0/3", "trtllm:tiers=0/3: tiers: must rise strictly, each at least 1 (got (0, 3)); "
         "as in 8/16/32"),
        ("moving-average:tiers=3/1", "moving-average:tiers=3/1: tiers: must rise strictly, each at least 1 "
         "(got (3, 1)); as in 8/16/32"),
        ("slo", "slo: needs time per output token; as in slo:12ms or slo:chat=20ms,code=10ms"),
        ("slo:12", "slo:12: all: has no unit of time (got '12'); write for example 12s or 12h"),
        ("slo:chat=12", "slo:chat=12: chat: has no unit of time (got '12'); write for example 12s or 12h"),
        ("slo:a=1ms,a=2ms", "slo:a=1ms,a=2ms: names a class twice; leave one out"),
        ("slo:0ms", "slo:0ms: targets[all]: must be positive (got 0.0); as in 10ms"),
        ("balanced:speed=2", "balanced:speed=2: speed: has no unit of time (got '2'); "
         "write for example 2s or 2h"),
        ("balanced:power=1,power=2", "balanced:power=1,power=2: power: is given twice (got '2'); "
         "leave one out"),
    ],
)  # fmt: skip
def test_a_complaint_names_the_policy_the_option_the_value_and_the_remedy(text: str, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_policy(text)
    assert str(caught.value) == f"policy: {message}"


@pytest.mark.parametrize("name", ["sglang", "vllm", "trtllm"])
def test_the_longest_lag_of_an_engine_is_the_longest_of_all(name: str) -> None:
    assert parse_policy(f"{name}:lag={MOST_LAG}").scheduler.lag == MOST_LAG
    with pytest.raises(BadInputError, match=f"lag: must lie in 1..{MOST_LAG} "):
        parse_policy(f"{name}:lag={MOST_LAG + 1}")


def test_the_ends_of_a_fixed_budget() -> None:
    for budget in (0, 2**31):
        assert parse_policy(f"fixed-budget:{budget}").scheduler == FixedBudget(budget)


@pytest.mark.parametrize(
    ("name", "option", "low", "high", "usual"),
    [
        ("off-gate", "weight", 1e-6, 1.0, 0.02), ("off-gate", "probe", 1, 10**6, 16),
        ("goodput", "weight", 1e-6, 1.0, 0.1), ("goodput", "probe", 1, 10**6, 32),
        ("moving-average", "weight", 1e-6, 1.0, 0.2), ("moving-average", "interval", 1, 10**6, 5),
        ("moving-average", "warmup", 0, 10**6, 10), ("moving-average", "up", -100.0, 100.0, 0.0),
        ("moving-average", "down", -100.0, 100.0, -0.25), ("utility", "test", 1, 10**6, 4),
        ("utility", "keep", 1, 10**6, 32), ("utility", "first", 1, 255, 3),
        ("bandit", "patience", 0.0, 10.0, 0.0), ("bandit", "seed", 0, 2**63 - 1, 0),
        ("balanced", "power", 0.0, 100.0, 2.0),
    ],
)  # fmt: skip
def test_both_ends_of_a_range_are_in_it_and_what_lies_beyond_is_not(
    name: str, option: str, low: float, high: float, usual: float
) -> None:
    for value in (low, high):
        assert getattr(parse_policy(f"{name}:{option}={value}").scheduler, option) == value
    whole = isinstance(low, int)
    outside: list[Any] = [low - (1 if whole else 1e-7), high + (1 if whole else 1e-6)]
    for value in outside + ([] if whole else [float("nan")]):
        with pytest.raises(BadInputError) as caught:
            parse_policy(f"{name}:{option}={value!r}")
        assert str(caught.value) == (
            f"policy: {name}:{option}={value!r}: {option}: must lie in {low:g}..{high:g} (got {value!r}); "
            f"as in {option}={usual}"
        )


def test_digits_of_other_scripts_are_refused_by_name() -> None:
    with pytest.raises(BadInputError, match=r"^policy: "):
        parse_policy("fixed:٣")


# ---------------------------------------------------------------- policies of one's own


def test_a_policy_of_ones_own_takes_its_argument_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.schedulers.parse._OWN", {})
    register_policy("half", lambda text="1": Fixed(int(text) // 2))
    assert parse_policy("half:6").scheduler == Fixed(3)
    assert parse_policy("half").scheduler == Fixed(0)
    with pytest.raises(BadInputError, match="policy: half:six: cannot be made: invalid literal"):
        parse_policy("half:six")
    assert policy_help()["half"] == "a policy of your own"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fixed", "is taken"), ("mtp4", "is taken"), ("mtp1", "is taken"), ("dspark-async", "is taken"),
        ("bandit", "is taken"), ("Half", "is not a plain name"), ("", "is not a plain name"),
        ("a:b", "is not a plain name"), ("9", "is not a plain name"),
    ],
)  # fmt: skip
def test_a_name_that_is_taken_or_not_plain_is_refused(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.schedulers.parse._OWN", {})
    before = policy_help()
    with pytest.raises(BadInputError) as caught:
        register_policy(name, Fixed)
    assert str(caught.value) == (
        f"name: {said} (got {name!r}); letters, digits and dashes, such as rising-bar"
    )
    assert policy_help() == before


def test_objects_stand_for_policies_under_the_name_of_their_class() -> None:
    named = parse_policy("fixed:3")
    assert as_policy(named) is named
    assert as_policy("fixed:3") == named
    assert as_policy(Fixed(3)) == NamedPolicy("Fixed", Fixed(3))
    with pytest.raises(BadInputError) as caught:
        as_policy(3)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "policy: is neither text nor an object with schedule(survival, batch) (got 3); "
        'as in "dspark-async", or a subclass of simulator.Policy'
    )
