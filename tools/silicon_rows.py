"""Rows of the published end-to-end table, as they are simulated, or why they are not.

The table is aiconfigurator-core's ``systems/silicon_sample.csv``: runs of InferenceX and of NVIDIA. What it
leaves out of InferenceX's runs stands in that project's launch scripts (SemiAnalysisAI/InferenceX,
benchmarks/, read at 843c6254 of 2026-08-21 and, for Llama-70B, before 2582bce4 of 2025-10-29): caches in
8 bits, rows of a step with prompts, lengths drawn from 80% of the nominal one up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from simulator.core.errors import BadInputError
from simulator.hardware import gpus
from simulator.hardware.memory import MOST_GPUS
from simulator.hardware.models import ModelShape, Precision, load_model
from simulator.hardware.steps.kernel_modes import ENGINES, Engine, Scales, Setting

MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen3-235B-A22B-FP8": "Qwen/Qwen3-235B-A22B",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-R1",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-ai/DeepSeek-V3",
    "moonshotai/Kimi-K2.5": "moonshotai/Kimi-K2-Instruct",
}
"""Packagings of one shape under other names; the language part of Kimi K2.5 is shaped as K2."""

NODE = 8
"""GPUs of a node: what InferenceX's single-node scripts run on."""

SPECULATED_FROM = "2026-01-14"
"""Day on which InferenceX's scripts for DeepSeek with MTP first ran (its git history). From then on the table
holds both kinds without saying which is which: rows that InferenceX-app's fixture
(cypress/fixtures/api/benchmarks.json) marks ``mtp`` stand in it, with the same times. Of the rows that were
looked up, those of the database dump of 2026-04-27 are plain ones."""

_PLAIN_SOURCE = "db-dump"

BLOCKING = "vllm before 0.14"
"""vLLM whose GPU waits while the next step is scheduled; from 0.14 on it schedules ahead by default."""

SCHEDULES_AHEAD_FROM = "2026-01-17"
"""Day on which vLLM 0.14.0 was released (github.com/deepjavalibrary/djl/issues/3833 tells both)."""

STEP_TOKENS: Mapping[tuple[str, Engine], int] = {
    ("meta-llama/Llama-3.1-70B", "trtllm"): 16384,
    ("openai/gpt-oss-120b", "trtllm"): 20000,
}
"""Rows of a step with prompts where the launch scripts ask for other than ``USUAL_STEP_TOKENS``."""

USUAL_STEP_TOKENS = 8192

PROMPTS_EACH = 10
"""Prompts that InferenceX's scripts send for each client (``--num-prompts``), all clients at once."""

_SCHEDULES_AHEAD_ALWAYS = "openai/gpt-oss-120b"
"""Model whose launch scripts have asked vLLM to schedule ahead since 2025-09-23 (``async-scheduling``)."""

_WITHOUT_EXPERT_PARALLELISM = "moonshotai/Kimi-K2-Instruct"
"""Model whose launch scripts for vLLM heeded no width of experts until 2026-08-07: experts were split as the
rest, whatever the table says."""

_TWO_PROMPTS = ("MiniMaxAI/MiniMax-M2.5", "moonshotai/Kimi-K2-Instruct")
"""Models whose launch scripts for vLLM on B200 and B300 give a step room for two nominal prompts."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: what ran, and what came out, ms.

    gpus, concurrency: of the replica. ranged: InferenceX's, whose lengths are drawn and whose clients send
    ``PROMPTS_EACH``. elsewhere: prompts are prefilled on other GPUs; it is a replica that decodes, with its
    share of the clients. host: the engine, or ``BLOCKING``: rows to which the same is added.
    """

    id: str
    model: str
    gpu: str
    engine: Engine
    precision: Precision
    gpus: int
    setting: Setting
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    ranged: bool
    ttft_ms: float
    tpot_ms: float
    host: str
    elsewhere: bool = False

    @property
    def curve(self) -> tuple[str, str, Engine, Precision, int, Setting]:
        """What its step cost depends on."""
        return self.model, self.gpu, self.engine, self.precision, self.gpus, self.setting

    @property
    def bucket(self) -> int:
        """A number from 0 to 2^24 - 1 that only its id decides: for samples."""
        return int(sha256(self.id.encode()).hexdigest()[2:8], 16)

    @property
    def reported(self) -> bool:
        """Whether it is reported; the other half is fitted on."""
        return sha256(self.id.encode()).digest()[0] % 2 == 0

    @property
    def step_tokens(self) -> int:
        """Rows of a step with prompts."""
        if self.model in _TWO_PROMPTS and self.gpu in ("b200", "b300") and self.ranged:
            return 2 * self.prompt_tokens
        if "DeepSeek" in self.model and self.engine == "sglang" and self.ranged:
            return _deepseek_step_tokens(self.gpus, self.precision)
        return STEP_TOKENS.get((self.model, self.engine), USUAL_STEP_TOKENS)


def judge(table: Iterable[Mapping[str, str]]) -> list[Row | str]:
    """Return each row as it is simulated, or why it is not; a row that stands there twice counts once."""
    rows = list(table)
    plain = {_measured(row) for row in rows if row["silicon_data_source"].startswith(_PLAIN_SOURCE)}
    seen: set[tuple[str, ...]] = set()
    judged: list[Row | str] = []
    for row in sorted(rows, key=lambda row: not row["silicon_data_source"].startswith(_PLAIN_SOURCE)):
        key = _measured(row)
        if key in seen:
            judged.append("the same measurement as another row")
        elif _perhaps_speculated(row) and key not in plain:
            judged.append("MTP may have run: the table does not say")
        else:
            judged.append(usable(row))
        seen.add(key)
    return judged


def usable(row: Mapping[str, str]) -> Row | str:
    """Return a row as it is simulated, or why it is not."""
    elsewhere = row["mode"] != "agg"
    if elsewhere and not row["decode_num_workers"]:
        return "prefill and decode on GPUs of their own, and the table does not say how many"
    try:
        model = load_model(MODELS.get(row["model_path"], row["model_path"]))
    except BadInputError:
        return f"{row['model_path']}: a shape that is not described"
    weights = _weights(row, model)
    if weights is None:
        return f"weights in {row['gemm_quant_mode'] or row['precision']}"
    widths = _decoding_widths(row) if elsewhere else _widths(row)
    if widths is None:
        return "widths that no node has"
    count, groups, experts = widths
    if model.name == _WITHOUT_EXPERT_PARALLELISM and row["backend"] == "vllm" and _is_inferencex(row):
        groups, experts = _kimi_groups(row, count) if elsewhere else (1, 1)
    known = {gpu.kernel_tables: name for name, gpu in gpus.catalogue().items() if gpu.kernel_tables}
    gpu, engine = known[row["system"]], next(each for each in ENGINES if each == row["backend"])
    ranged = _is_inferencex(row)
    small = _small_cache(model.name, gpu, engine) if ranged else None
    return Row(
        row["id"], model.name, gpu, engine, weights[0], count, Setting(groups, experts, small, weights[1]),
        int(row["isl"]), int(row["osl"]), _concurrency(row, groups), ranged, float(row["silicon_ttft_ms"]),
        float(row["silicon_tpot_ms"]), BLOCKING if engine == "vllm" and _is_blocking(row) else engine,
        elsewhere,
    )  # fmt: skip


def _measured(row: Mapping[str, str]) -> tuple[str, ...]:
    """Identify a measurement: two runs hardly agree in both times to 10 us; one source states no more."""
    times = (f"{float(row[name]):.2f}" for name in ("silicon_ttft_ms", "silicon_tpot_ms"))
    return row["system"], row["backend"], row["isl"], row["osl"], *times


def _is_inferencex(row: Mapping[str, str]) -> bool:
    """Whether InferenceX measured it; other dated runs are of files with a path; one list has no dates."""
    source = row["silicon_data_source"]
    return ("measured=" in source and "/" not in source.split(";")[0].removeprefix(_PLAIN_SOURCE + "/")) or (
        "kimi-k2.5-gap-analysis" in source
    )


def _concurrency(row: Mapping[str, str], groups: int) -> int:
    """Clients of a replica: InferenceX states them; elsewhere those stated may share several replicas."""
    said = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
    if row["mode"] != "agg":
        return (
            -(-int(said[1]) // int(row["decode_num_workers"]))
            if said
            else int(row["decode_batch_size"]) * groups
        )
    return int(said[1]) if said and _is_inferencex(row) else int(row["batch_size"]) * groups


def _deepseek_step_tokens(gpus: int, precision: Precision) -> int:
    """Rows of a step with prompts of DeepSeek on SGLang: InferenceX's ``--chunked-prefill-size``."""
    if precision == "fp4":
        return 16384
    return 32768 if gpus == NODE else 8192


def _is_blocking(row: Mapping[str, str]) -> bool:
    """Whether a row of vLLM waits for its host: before 0.14, by its day or the version in its file's name."""
    if _is_inferencex(row) and row["model_path"] == _SCHEDULES_AHEAD_ALWAYS:
        return False
    version = re.search(r"/vllm/0\.(\d+)", row["silicon_data_source"])
    if version is not None:
        return int(version[1]) < 14
    day = _day(row)
    return day is not None and day < SCHEDULES_AHEAD_FROM


def _day(row: Mapping[str, str]) -> str | None:
    said = re.search(r"measured=(\d{4}-\d\d-\d\d)", row["silicon_data_source"])
    return None if said is None else said[1]


def _perhaps_speculated(row: Mapping[str, str]) -> bool:
    day = _day(row)
    return "DeepSeek" in row["model_path"] and day is not None and day >= SPECULATED_FROM


def _weights(row: Mapping[str, str], model: ModelShape) -> tuple[Precision, Scales | None] | None:
    """How weights are kept; None for a scheme that the curves do not describe.

    InferenceX's 8-bit checkpoints bring scales along (its launch scripts); a run of NVIDIA's that names a
    checkpoint in 16 bits computes them.
    """
    matrices = row["gemm_quant_mode"]
    if model.native == "fp4":
        return ("fp4", None) if row["precision"] == "fp4" else None
    if matrices == "nvfp4":
        return "fp4", None
    if matrices == "fp8_block" or row["model_path"].endswith("A22B-FP8"):
        return "fp8", "block"
    if matrices == "fp8":
        has_scales = "FP8" in row["model_path"] or _is_inferencex(row)
        return "fp8", None if has_scales or model.native == "fp8" else "computed"
    if not matrices and row["precision"] in ("", "bf16"):
        return "bf16", None
    return None


def _widths(row: Mapping[str, str]) -> tuple[int, int, int] | None:
    """GPUs, groups with attention of their own and GPUs that experts are dealt over; None for no such node.

    The table multiplies widths of InferenceX's that are the same GPUs: ``tp 8, ep 8`` is one node there and
    64 GPUs here.
    """
    tensor, groups, experts_tensor, experts = (
        max(int(row[name] or 1), 1) for name in ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    )
    if row["pp_size"] not in ("", "1"):
        return None
    count = tensor * groups
    if experts > 1 and experts_tensor == experts and count == experts**2:
        return experts, (experts if groups > 1 else 1), experts
    if tensor == groups > 1 and experts == count:
        return tensor, 1, tensor
    return (count, groups, experts) if count <= NODE and count % experts == 0 else None


def _decoding_widths(row: Mapping[str, str]) -> tuple[int, int, int] | None:
    """GPUs, groups and GPUs that experts are dealt over, of a replica that decodes."""
    tensor, groups, experts = (
        max(int(row[f"decode_{name}"] or 1), 1) for name in ("tp_size", "attention_dp_size", "moe_ep_size")
    )
    count = tensor * groups
    return (count, groups, experts) if count <= MOST_GPUS and count % experts == 0 else None


def _kimi_groups(row: Mapping[str, str], count: int) -> tuple[int, int]:
    """Return groups and dealt experts of Kimi on vLLM's decoding GPUs.

    InferenceX's recipes (``srt-slurm-recipes/vllm/kimi-k2.5-fp4``) run one decoding replica as ``dep``,
    groups of one GPU, and several as ``tep`` or ``tp``; the table names all of them tensor-parallel.
    """
    alone = int(row["decode_num_workers"]) == 1
    return (count, count) if alone else (1, max(int(row["decode_moe_ep_size"] or 1), 1))


def _small_cache(model: str, gpu: str, engine: Engine) -> bool:
    """Whether InferenceX's scripts ask for keys and values in 8 bits."""
    hopper = gpu in ("h100", "h200")
    if "gpt-oss" in model:
        return not hopper
    if "DeepSeek" in model:
        return engine == "trtllm" or not hopper
    if "MiniMax" in model:
        return gpu != "h100"
    return "Llama-3.1-70B" in model or "Kimi" in model
