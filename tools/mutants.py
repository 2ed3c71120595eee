"""Break the source on purpose and see whether the tests notice: ``scripts/mutants [NAME ...]``.

Each mutant is a fault that once survived the tests, or one of its kind. It is put into a copy of the project;
the tests meant to find it must fail there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]

COPIED = ("simulator", "tests", "tools", "docs", "profiles", "traces", "pyproject.toml", "README.md")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault: the text ``old``, which stands once in ``file``, becomes ``new``. tests: what must find it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def put_into(self, root: Path) -> None:
        """Break the copy; ``ValueError`` where the source has moved on."""
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.file} has {self.old!r} {text.count(self.old)} times, not once"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


_SAMPLING = ("tests/live/engine/test_sampling.py",)

_EXECUTOR = ("tests/live/engine/test_sampling.py", "tests/live/engine/test_executor.py")

_PASSES = "simulator/live/engine/passes.py"

_RELEASED = ("tests/live/models/drafts/test_released.py",)

_V4 = ("tests/live/models/drafts/test_dspark_v4.py",)

_PAIR_RUN = ("tests/live/tracing/test_pair_run.py",)

MUTANTS = (
    Mutant(
        "draft-probabilities-not-stored", _PASSES,
        "            state.q_draft[:requests] = proposal.q_draft", "            pass", _SAMPLING,
    ),
    Mutant(
        "acceptance-reuses-the-drafts-uniforms", "simulator/live/engine/batch_state.py",
        '"accept_uniforms": mine[:, w : 2 * w]', '"accept_uniforms": mine[:, :w]', _SAMPLING,
    ),
    Mutant(
        "wrong-feature-rows", _PASSES,
        "kept = ragged.first_rows[:, None] + torch.minimum(k, accepted[:, None])",
        "kept = ragged.first_rows[:, None] + torch.minimum(k + 1, accepted[:, None])", _EXECUTOR,
    ),
    Mutant(
        "draft-cache-shifted-by-one", _PASSES,
        "torch.where(valid, (cached - counts)[request] + rank, 0)",
        "torch.where(valid, (cached - counts)[request] + rank + 1, 0)", _EXECUTOR,
    ),
    Mutant(
        "move-forgets-the-draft-cache", "simulator/live/engine/executor.py",
        "                    cache[:, after, :, :used] = cache[:, before, :, :used]",
        "                    pass", _EXECUTOR,
    ),
    Mutant(
        "survival-of-this-step-as-the-lagged-one", "simulator/live/tracing/generate.py",
        "past = self.survivals[-1 - lag] if seen > lag", "past = self.survivals[-1] if seen > lag",
        ("tests/live/tracing/test_lossless.py", *_SAMPLING),
    ),
    Mutant(
        "acceptance-lenient-by-2%", "simulator/live/models/sampling.py",
        "(accept_uniforms < ratio)", "(accept_uniforms < 1.02 * ratio)",
        (*_SAMPLING, "tests/live/models/test_sampling.py"),
    ),
    Mutant(
        "chained-steps-shifted-by-one", "simulator/live/models/drafts/chain.py",
        "positions = cache.lengths.to(inputs.device)[:, None] + k",
        "positions = 1 + cache.lengths.to(inputs.device)[:, None] + k", _RELEASED,
    ),
    Mutant(
        "packed-steps-shifted-by-one", "simulator/live/models/drafts/chain.py",
        "rope = self.rotary(anchors + k, inputs.dtype)", "rope = self.rotary(anchors + k + 1, inputs.dtype)",
        _RELEASED,
    ),
    Mutant(
        "values-of-gemma-4-not-normed", "simulator/live/models/drafts/blocks/gemma4.py",
        "rms_norm(values, (self.head_dim,), eps=self.eps)", "values", _RELEASED,
    ),
    Mutant(
        "mtp-joins-in-the-other-order", "simulator/live/models/drafts/mtp.py",
        "(self.enorm(self.embed_tokens(tokens)), self.hnorm(states))",
        "(self.hnorm(states), self.enorm(self.embed_tokens(tokens)))",
        ("tests/live/models/drafts/test_deepseek.py",),
    ),
    Mutant(
        "deepseeks-pairs-not-put-apart", "simulator/live/models/drafts/blocks/latent.py",
        "if self.sizes.interleaved else x", "if not self.sizes.interleaved else x",
        ("tests/live/models/drafts/test_deepseek.py",),
    ),
    Mutant(
        "window-of-v4s-draft-one-longer", "simulator/live/models/layers.py",
        "torch.arange(-window, beyond", "torch.arange(-window - 1, beyond", _V4,
    ),
    Mutant(
        "window-of-packed-blocks-one-longer", "simulator/live/models/drafts/dspark.py",
        "context &= position >= anchors[..., None] - window",
        "context &= position >= anchors[..., None] - (window + 1)", _V4,
    ),
    Mutant(
        "confidence-behind-the-norm", "simulator/live/models/drafts/dspark_v4.py",
        "state: Tensor = self.last_hc(hidden)", "state: Tensor = self.norm(self.last_hc(hidden))", _V4,
    ),
    Mutant(
        "streams-mixed-the-other-way", "simulator/live/models/drafts/blocks/streams.py",
        "shares.to(streams.dtype).transpose(-1, -2) @ streams", "shares.to(streams.dtype) @ streams", _V4,
    ),
    Mutant(
        "fused-rotation-turns-back", "simulator/live/families/fused/kernels.py",
        "-second.to(tl.float32)", "second.to(tl.float32)", ("tests/live/families/fused/test_kernels.py",),
    ),
    Mutant(
        "a-fused-sum-forgets-the-residual", "simulator/live/families/fused/kernels.py",
        "(one.to(tl.float32) + other.to(tl.float32))", "(one.to(tl.float32))",
        ("tests/live/families/fused/test_kernels.py",),
    ),
    Mutant(
        "a-layers-sums-are-not-tried", "simulator/live/families/fused/residual.py",
        "if _close(forward(trial), own):", "if forward is not None:",
        ("tests/live/families/fused/test_replace.py",),
    ),
    Mutant(
        "a-fused-piece-is-not-tried", "simulator/live/families/fused/replace.py",
        "verdicts[kind] = _equal(module, forward, _drawn(like, 1, 3, width))", "verdicts[kind] = True",
        ("tests/live/families/fused/test_replace.py",),
    ),
    Mutant(
        "the-largest-graph-is-kept-beyond-the-limit", "simulator/live/engine/graphs.py",
        "while self.held_bytes > self.limit_bytes and", "while self.held_bytes > 2 * self.limit_bytes and",
        ("tests/live/engine/test_graphs.py",),
    ),
    Mutant(
        "latents-off-by-1%", "simulator/live/families/latent.py",
        "latents[index] = normed[0]", "latents[index] = 1.01 * normed[0]",
        ("tests/live/engine/attention/test_ragged.py",),
    ),
    Mutant(
        "traced-at-temperature-1-whatever-is-asked", "simulator/live/tracing/record.py",
        "p_target = sampling.distribution(reading.logits_at(slots), temperature)",
        "p_target = sampling.distribution(reading.logits_at(slots), 1.0)", _PAIR_RUN,
    ),
    Mutant(
        "anchors-behind-the-stop-token", "simulator/live/tracing/prompt_trace.py",
        "range(len(prompt_ids), min(limit, end) if stopped else limit)", "range(len(prompt_ids), limit)",
        _PAIR_RUN,
    ),
    Mutant(
        "router-spills-late", "simulator/fleet/routers.py", "SPILL = 1.25", "SPILL = 5.0",
        ("tests/fleet",),
    ),
    Mutant(
        "fleet-saturated-late", "simulator/fleet/fleet.py",
        "saturated > 0.01 * sum(", "saturated > 0.9 * sum(", ("tests/fleet",),
    ),
    Mutant(
        "a-class-without-requests-fails", "simulator/sla/verdict.py",
        "if of.sum() else True", "if of.sum() else False", ("tests/sla", "tests/fleet"),
    ),
    Mutant(
        "half-an-interval-in-load-bands", "simulator/sweeps/leads.py",
        "(half + other_half) / other)", "half / other)", ("tests/sweeps",),
    ),
    Mutant(
        "simulate-without-the-prefill-rate", "simulator/cli/options.py",
        '"prefill_tokens_per_s": self.prefill_tokens_per_s', '"prefill_tokens_per_s": None',
        ("tests/api/test_workbench.py",),
    ),
    Mutant(
        "profile-without-its-prefill-rate", "simulator/deployment/deployment.py",
        "prefill_tokens_per_s = profile.prefill_tokens_per_s", "pass", ("tests/deployment",),
    ),
)  # fmt: skip


def survivors(mutants: tuple[Mutant, ...]) -> list[str]:
    """Run each mutant's tests against it; returns the names of those that no test noticed.

    Raises ``RuntimeError`` where the tests fail, or cannot be run, without any mutant.
    """
    survived = []
    tests = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    with TemporaryDirectory(prefix="mutant-") as folder:
        copy_project(Path(folder))
        if _tests_fail(Path(folder), tests):
            raise RuntimeError(f"tests fail without any mutant: {' '.join(tests)}")
    for mutant in mutants:
        with TemporaryDirectory(prefix="mutant-") as folder:
            root = Path(folder)
            copy_project(root)
            mutant.put_into(root)
            noticed = _tests_fail(root, mutant.tests)
        print(f"{'killed  ' if noticed else 'SURVIVED'} {mutant.name}", flush=True)
        if not noticed:
            survived.append(mutant.name)
    return survived


def copy_project(root: Path) -> None:
    """Copy to ``root`` what the tests need of the project."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)


def _tests_fail(root: Path, tests: tuple[str, ...]) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # not a verdict on the code
        raise RuntimeError(f"the tests could not be run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main() -> int:
    """Run the mutants named, or all; 1 where one survived."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="\n".join(known))
    asked = parser.parse_args().names or list(known)
    unknown = [name for name in asked if name not in known]
    if unknown:
        parser.error(f"no mutant is called {', '.join(unknown)}")
    survived = survivors(tuple(known[name] for name in asked))
    print(f"{len(asked) - len(survived)} of {len(asked)} killed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
