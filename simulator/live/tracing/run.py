"""Tracing a whole pair: prompts from held-out text, every draft, calibration and files.

The product behind ``dspark-sim trace``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simulator.acceptance.calibration import REFERENCE, SGLANG, TemperatureFit
from simulator.acceptance.trace_file import save_trace
from simulator.core.errors import BadInputError
from simulator.core.files import data_directory
from simulator.core.provenance import Provenance
from simulator.live.device import device_name, software
from simulator.live.models.checkpoints import CONFIG_FILE
from simulator.live.models.draft import Draft
from simulator.live.models.pairs import load_draft
from simulator.live.models.targets import Target, load_target
from simulator.live.tracing.generate import stop_ids
from simulator.live.tracing.record import Kind, Outputs, record, write_outputs
from simulator.live.tracing.report import Recorded, fit_on
from simulator.live.training.corpus import Corpus, Split, load_corpus
from simulator.live.training.tokens import TokenStreams, load_tokenizer, step_generator
from simulator.live.training.train import DRAFTS

_FILE_KINDS: Mapping[Kind, str] = {"greedy": "greedy", "expected": "sampled"}
"""Kinds that are written to files, and what the file's name calls them."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How much is traced: sequences per domain and split, tokens of each prompt and of each output."""

    sequences: int = 32
    prompt_tokens: int = 48
    output_tokens: int = 192
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in (("sequences", 2), ("prompt_tokens", 1), ("output_tokens", 1)):
            if getattr(self, field) < least:
                raise BadInputError(
                    f"must be at least {least}",
                    field=field,
                    value=getattr(self, field),
                    remedy="ask for more",
                )

    @property
    def command(self) -> str:
        """The command that repeats this, but for the pair and the text."""
        return (
            f"dspark-sim trace --sequences {self.sequences} --prompt-tokens {self.prompt_tokens} "
            f"--output-tokens {self.output_tokens} --seed {self.seed}"
        )


def shipped_pair() -> Path:
    """Return the run directory of the tiny models that come with the package."""
    return data_directory("traces") / "models" / "tiny"


@dataclass(frozen=True, slots=True, eq=False)
class TraceRun:
    """What was recorded: the files, every trace of the test split, and the temperatures by kind."""

    files: Sequence[Path]
    recorded: Sequence[Recorded]
    fits: Mapping[str, Sequence[TemperatureFit]]


def trace_run(
    run: Path | str | None,
    text: Path | str | None,
    out: Path | str,
    *,
    sampling: Sampling | None = None,
    device: str = "cpu",
    on_step: Callable[[str], None] = lambda _: None,
) -> TraceRun:
    """Trace every draft of a run directory (None: the shipped tiny pair) and write the traces into ``out``.

    One file for each draft, domain and kind, ``NAME-DRAFT-DOMAIN-greedy.parquet`` and ``...-sampled``,
    NAME being the run directory's. Temperatures come from the calibration split, everything else from
    the test split. on_step: told what comes next.
    Models run in float32, so that argmax ties do not depend on how rows are batched.
    """
    folder, sampling = Path(run) if run else shipped_pair(), sampling or Sampling()
    pair = _Pair.load(folder, device)
    corpus = load_corpus(text)
    tracer = _Tracer(pair, corpus, sampling, on_step)
    fits: dict[str, list[TemperatureFit]] = {}
    if pair.confident:
        for kind in _FILE_KINDS:
            held_out = tracer.traces("calibration", kind, pair.confident)
            fits[kind] = [fit_on(held_out, convention) for convention in (REFERENCE, SGLANG)]
    recorded: list[Recorded] = []
    for kind in ("greedy", "expected", "coupled"):
        recorded += tracer.traces("test", kind, pair.drafts)
    recorded = [_calibrated(item, fits) for item in recorded]
    written = [_save(item, pair.name, Path(out)) for item in recorded if item.kind in _FILE_KINDS]
    return TraceRun(written, recorded, fits)


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """A target and its drafts, by name."""

    name: str
    folder: Path
    target: Target
    drafts: Mapping[str, Draft]

    @classmethod
    def load(cls, folder: Path, device: str) -> _Pair:
        target = load_target(folder / "target", dtype=torch.float32, device=device)
        drafts = {
            name: load_draft(folder / name, dtype=torch.float32, device=device)
            for name in DRAFTS
            if (folder / name / CONFIG_FILE).is_file()
        }
        if not drafts:
            raise BadInputError(
                f"holds none of the drafts {', '.join(DRAFTS)}",
                source=str(folder),
                remedy="pass a run directory that `dspark-sim train` finished",
            )
        return cls(folder.name, folder, target, drafts)

    @property
    def confident(self) -> Mapping[str, Draft]:
        """Drafts with a confidence head."""
        return {name: draft for name, draft in self.drafts.items() if draft.has_confidence}

    @property
    def margin(self) -> int:
        """Tokens needed behind the last anchor so that every draft's block is judged whole."""
        return max(draft.gamma for draft in self.drafts.values())


@dataclass(frozen=True, slots=True, eq=False)
class _Tracer:
    pair: _Pair
    corpus: Corpus
    sampling: Sampling
    on_step: Callable[[str], None]

    def traces(self, split: Split, kind: Kind, drafts: Mapping[str, Draft]) -> list[Recorded]:
        """Traces of some drafts over every domain of a split; all of them see the same outputs."""
        streams = TokenStreams.of(self.corpus, split, load_tokenizer(self.pair.folder / "target"))
        recorded = []
        for domain in self.corpus.domains:
            self.on_step(f"{split}: {domain}, {kind}")
            outputs = self._outputs(streams, split, domain, 0.0 if kind == "greedy" else 1.0)
            for name, draft in drafts.items():
                trace = record(
                    self.pair.target,
                    draft,
                    outputs,
                    kind,
                    name=f"{self.pair.name}-{name}-{domain}-{_FILE_KINDS.get(kind, kind)}",
                    provenance=self._provenance(name, kind, split),
                )
                recorded.append(Recorded(name, domain, kind, trace))
        return recorded

    def _outputs(self, streams: TokenStreams, split: Split, domain: str, temperature: float) -> Outputs:
        plan, target = self.sampling, self.pair.target
        prompts: Tensor = streams.windows(
            domain, plan.sequences, plan.prompt_tokens, step_generator(plan.seed, f"{split}/{domain}", 0)
        )
        return write_outputs(
            target,
            prompts,
            plan.output_tokens,
            margin=self.pair.margin,
            temperature=temperature,
            seed=plan.seed,
            stop_token_ids=stop_ids(target),
        )

    def _provenance(self, draft: str, kind: Kind, split: Split) -> Provenance:
        return Provenance(
            kind="measured",
            source=f"the target's own output after prompts from the {split} split of: {self.corpus.name}",
            date=date.today().isoformat(),
            command=self.sampling.command,
            device=device_name(self.pair.target.device),
            software=software(),
            model=f"{self.pair.name}/target",
            draft=f"{self.pair.name}/{draft}",
            notes=f"float32; acceptance at temperature {0 if kind == 'greedy' else 1}, {kind}",
        )


def _calibrated(item: Recorded, fits: Mapping[str, Sequence[TemperatureFit]]) -> Recorded:
    """Attach the reference convention's temperatures to the trace, where its draft has confidences."""
    if not item.trace.has_confidence or item.kind not in fits:
        return item
    fit = next(fit for fit in fits[item.kind] if fit.convention is REFERENCE)
    return replace(item, trace=replace(item.trace, temperatures=np.asarray(fit.temperatures)))


def _save(item: Recorded, pair: str, out: Path) -> Path:
    path = out / f"{pair}-{item.draft}-{item.domain}-{_FILE_KINDS[item.kind]}.parquet"
    save_trace(item.trace, path)
    return path
