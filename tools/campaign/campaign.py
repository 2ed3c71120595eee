"""Measuring a device part by part: ceilings, profiles, models, live runs, agreement, speed and a report.

The logic behind ``scripts/gpu_campaign``. Parts are independent: each finds what earlier ones left in the
campaign's folder or says which to run first, checks its own results, and fails alone. Each continues where
it was interrupted, so that a campaign fits into commands of limited length.
"""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import simulator
from simulator.core.errors import BadInputError
from simulator.core.files import atomic_directory, write_json, write_text
from simulator.core.reading import read_json

SIZES = ("4b", "8b", "14b")
"""Qwen3 shapes that are measured with random weights and replayed acceptance."""

REPORT = "report"

SMALL = "small"
"""The pair that is trained in the campaign and decides for itself what it accepts."""

GAMMAS = {"4b": (7, 5), "8b": (7, 5), "14b": (7, 5), SMALL: (7,)}

PROMPT_TOKENS, OUTPUT_TOKENS = 48, 192
"""Of a trace of the small pair, and so of the requests that it serves."""

Status = Literal["done", "failed", "unfinished"]


@dataclass(frozen=True, slots=True)
class Campaign:
    """Where results go, on what device, and how large everything is.

    device: of torch. tiny: very small models in place of the real ones, to try the machinery on any CPU.
    workers: processes for what runs on the host.
    """

    out: Path
    device: str = "cuda"
    tiny: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise BadInputError("must be at least 1", field="workers", value=self.workers)

    def command(self, part: str) -> str:
        """Return what repeats a part, wherever the results go."""
        device = "" if self.device == "cuda" else f" --device {self.device}"
        return f"scripts/gpu_campaign {part}{device}{' --tiny' if self.tiny else ''}"

    def pair(self, size: str, gamma: int) -> tuple[str, list[str]]:
        """Load the target and the drafts, as the commands that run on a device take them."""
        if size == SMALL:
            folder = self.small
            return str(folder / "target"), [
                f"dspark={folder / 'dspark'}", f"mtp1={folder / 'mtp'}", f"dflash={folder / 'dflash'}",
            ]  # fmt: skip
        target = str(_tiny_target(self.out)) if self.tiny else f"qwen3-{size}"
        return target, [f"dspark=new:{gamma}", "mtp1=new"]

    @property
    def small(self) -> Path:
        """Run directory of the trained pair; raises ``BadInputError`` where it is not finished."""
        folder = self.out / SMALL
        if not (folder / "mtp" / "config.json").is_file():
            raise BadInputError("no trained pair yet", source=str(folder), remedy="run train-small first")
        return folder

    @property
    def text(self) -> Path | None:
        """What the small pair learns: the default corpus, and a few files of it in a tiny campaign."""
        return _tiny_text(self.out) if self.tiny else None

    def profile_of(self, size: str, gamma: int) -> Path:
        """Load a finished profile; raises ``BadInputError`` where there is none."""
        folder = self.out / f"profiles-{size}-gamma{gamma}"
        found = sorted(folder.rglob("*.json"))
        if not found:
            raise BadInputError(
                f"no profile of {size} at gamma {gamma} yet", source=str(folder),
                remedy=f"run profile-{size} first",
            )  # fmt: skip
        return found[0]

    def acceptance_of(self, size: str) -> list[str]:
        """Return acceptance models of a size's drafts: fitted to publications, or traced in this campaign."""
        if size != SMALL:
            return [f"qwen3-{size}/dspark/mt-bench"]
        traces = self.out / f"traces-{SMALL}"
        named = {name: traces / f"{SMALL}-{file}-code-greedy.parquet" for name, file in _TRACED.items()}
        if missing := [path for path in named.values() if not path.is_file()]:
            raise BadInputError("no trace yet", source=str(missing[0]), remedy="run trace-small first")
        return [f"{name}={path}" for name, path in named.items()]


_TRACED = {"dspark": "dspark", "mtp1": "mtp", "dflash": "dflash"}
"""Drafters and what their traces are called."""


# ------------------------------------------------------------------------------------------------ running


class OutOfTime(BaseException):
    """The command's minutes are over. Not an ``Exception``: no part takes it for a failure of its own."""


Part = Callable[[Campaign], None]


def run(
    campaign: Campaign,
    known: Mapping[str, Part],
    parts: Sequence[str] = (),
    *,
    minutes: float | None = None,
    say: Callable[[str], None],
) -> bool:
    """Run some of the known parts, all that are not done where none is named; whether each is done then.

    minutes: when they are over, the part under way stops and is continued by the same command. What
    became of each part is kept in ``OUT/parts`` with its command, date, device and time.
    Raises ``BadInputError`` for unknown parts and for a folder with another device's results.
    """
    if unknown := [part for part in parts if part not in known]:
        raise BadInputError("is not a part", field="part", value=unknown[0], remedy=", ".join(known))
    if list(parts) != [REPORT]:  # which is written on any machine
        _begin(campaign)
    chosen = list(parts) or [name for name in known if not _is_done(campaign, name)]
    if not parts and campaign.device == "cpu" and "gpu-tests" in chosen:
        chosen.remove("gpu-tests")
    end_s = None if minutes is None else time.monotonic() + 60 * minutes
    outcome: dict[str, Status | None] = dict.fromkeys(chosen)
    for name in chosen:
        left_s = None if end_s is None else end_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            break
        outcome[name] = _attempt(name, partial(known[name], campaign), campaign, left_s, say)
    for name, status in outcome.items():
        say(f"{name}: {status or 'not begun'}")
    if any(status in (None, "unfinished") for status in outcome.values()):
        say("the minutes are over; continue with the same command")
    return all(status == "done" for status in outcome.values())


def _attempt(
    name: str, part: Callable[[], None], campaign: Campaign, left_s: float | None, say: Callable[[str], None]
) -> Status:
    """Run one part; whatever it raises ends that part only."""
    say(f"== {name}")
    start_s, reason = time.monotonic(), ""
    status: Status = "done"
    try:
        with _alarm(left_s):
            part()
    except OutOfTime:
        status = "unfinished"
    except Exception as error:  # the next part may well work
        status, reason = "failed", f"{type(error).__name__}: {error}"
    gc.collect()
    seconds = time.monotonic() - start_s
    say(f"{name}: {status} after {seconds:.0f} s{f': {reason}' if reason else ''}")
    _keep(campaign, name, status, reason, seconds)
    return status


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raise ``OutOfTime`` inside the block once so many seconds have passed; None is never."""
    if seconds is None:
        yield
        return

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def origin(campaign: Campaign, part: str) -> dict[str, Any]:
    """Return what every number of a part is kept with: command, date, device and software."""
    import torch

    from simulator.live.device import device_name, software

    return {
        "command": campaign.command(part),
        "date": datetime.now(UTC).date().isoformat(),
        "device": device_name(torch.device(campaign.device)),
        "software": software(),
    }


def _begin(campaign: Campaign) -> None:
    """Say whose results the folder holds, or refuse to mix another device's into them."""
    import torch

    if campaign.device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInputError(
            "no CUDA device is here", field="--device", value=campaign.device, remedy="use cpu"
        )
    path = campaign.out / "campaign.json"
    mine = {"device": origin(campaign, "")["device"], "tiny": campaign.tiny}
    if not path.is_file():
        write_json(path, mine)
        return
    found: Any = read_json(path)
    for field, value in mine.items():
        if found.get(field) != value:
            raise BadInputError(
                f"holds a campaign of another {field}, not {value!r}", source=str(path), field=field,
                value=found.get(field), remedy="choose another --out",
            )  # fmt: skip


def _keep(campaign: Campaign, part: str, status: Status, reason: str, seconds: float) -> None:
    if part == REPORT:
        return
    path = campaign.out / "parts" / f"{part}.json"
    earlier: Any = read_json(path) if path.is_file() else {}
    before_s = earlier.get("seconds", 0.0) if earlier.get("status") == "unfinished" else 0.0
    described = {"part": part, "status": status, "reason": reason, "seconds": before_s + seconds}
    write_json(path, described | origin(campaign, part))


def _is_done(campaign: Campaign, part: str) -> bool:
    path = campaign.out / "parts" / f"{part}.json"
    found: Any = read_json(path) if path.is_file() else {}
    return bool(found.get("status") == "done")


# ------------------------------------------------------------------------------------------- tiny stand-ins


def _tiny_target(out: Path) -> Path:
    """Save a random target as a user's would be."""
    folder = out / "tiny-target"
    if not folder.is_dir():
        import transformers

        config = transformers.AutoConfig.for_model(
            "qwen3", hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, vocab_size=512, max_position_embeddings=512,
        )  # fmt: skip
        auto: Any = transformers.AutoModelForCausalLM
        logging: Any = transformers.logging
        logging.disable_progress_bar()
        with atomic_directory(folder) as temporary:
            auto.from_config(config).save_pretrained(temporary)
    return folder


def _tiny_text(out: Path) -> Path:
    """Write a dozen files of code, this package's own, and a dozen of arithmetic."""
    folder = out / "tiny-text"
    if not folder.is_dir():
        from simulator.live.training.corpus import arithmetic_files

        sources = sorted(Path(simulator.__file__).parent.glob("live/*/*.py"))
        with atomic_directory(folder) as temporary:
            for path in sources[:12]:
                write_text(temporary / "code" / path.name, path.read_text(encoding="utf-8"))
            for file in islice(arithmetic_files(), 12):
                write_text(temporary / file.name, file.texts["arithmetic"])
    return folder
