"""What workers do for the page Check: predictions beside results, and a dropped file replayed or read."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs

import pandas as pd

from simulator.acceptance.trace import AcceptanceModel
from simulator.api.replaying import replay
from simulator.core.errors import BadInputError
from simulator.core.files import data_directory
from simulator.core.reading import read_json
from simulator.deployment.profile import load_profile, shipped_profiles
from simulator.dumps.outcomes import Replayed
from simulator.interop.acceptance_files import load_acceptance
from simulator.interop.forms import SGLANG_DUMP, known_form
from simulator.paper.acceptance_check import published_comparison
from simulator.paper.claims_check import HEADLINE, check_against
from simulator.paper.held_out import held_out_gains
from simulator.ui.explore.asked import Deployed
from simulator.ui.explore.work import Line, LineTask, conditional_rates
from simulator.ui.running.jobs import Say, Task

ACCEPTANCE = "acceptance"
"""The subject that is no profile: what the paper publishes of its drafters."""

HELD_OUT = "held-out"
"""The subject that is no profile: measured gains of drafters that nothing was fitted to."""

CLAIMED = ("mtp1", HEADLINE)
"""Policies that the published lines are about."""

MOST_UPLOADS = 8
"""Files that are kept for their pages, the oldest goes first."""


def subjects() -> list[str]:
    """Return what predictions can be held against: profiles with published results first."""
    named = (name for name in shipped_profiles() if not name.startswith("kernels/"))
    claimed = [name for name in named if load_profile(name).published is not None]
    return [*sorted(claimed, key=lambda name: name != Deployed().profile), *WHOLE]


def claim_lines(profile: str) -> list[LineTask]:
    """Return the lines that the published results of a profile are compared with."""
    return [LineTask(Deployed(profile), policy, "usual") for policy in CLAIMED]


def claims(profile: str, lines: list[Line]) -> pd.DataFrame:
    """Return predictions beside published results, the largest miss first.

    Columns of ``paper.claims_check.check_against``, name, and miss: the error as a share of what was
    published.
    """
    published = load_profile(profile).published
    if published is None:
        raise BadInputError("has nothing published beside it", source="profile", value=profile)
    table = check_against(pd.concat([each.table for each in lines], ignore_index=True), published)
    return _misses_first(table.assign(name=table["quantity"]))


def measured() -> pd.DataFrame:
    """Return live validations that are shipped: predicted beside measured, the largest miss first."""
    frames = [
        pd.read_csv(path).assign(validation=path.parent.name)
        for path in sorted((data_directory("traces") / "validation").glob("*/errors.csv"))
    ]
    table = pd.concat(frames, ignore_index=True)
    return table.assign(miss=table["error"].abs()).sort_values("miss", ascending=False, ignore_index=True)


@dataclass(frozen=True, slots=True)
class AcceptanceTask:
    """Hold the fitted acceptance models against all that the paper publishes of acceptance."""

    def run(self, say: Say) -> pd.DataFrame:
        """Draw once for each figure; the largest miss is first."""
        say("accepted lengths of every drafter")
        table = published_comparison((1,)).rename(columns={"simulated": "predicted"})
        return _misses_first(table.assign(name=table["model"] + ", " + table["quantity"]))


@dataclass(frozen=True, slots=True)
class HeldOutTask:
    """Hold curves of kernels against measured gains of drafters."""

    def run(self, say: Say) -> pd.DataFrame:
        """Compose the curves, which takes seconds each; the largest miss is first."""
        say("gains of chain drafters")
        table = held_out_gains(1).rename(columns={"measured": "published"})
        drafted = table["drafter"] + " with " + table["drafts"].astype(str) + " drafts, "
        return _misses_first(table.assign(name=drafted + table["where"]))


WHOLE: Mapping[str, Task] = {ACCEPTANCE: AcceptanceTask(), HELD_OUT: HeldOutTask()}
"""Subjects that are no profile: each is answered by one task."""


def _misses_first(table: pd.DataFrame) -> pd.DataFrame:
    """Add miss, the error as a share of what was published, and sort by it."""
    miss = (table["predicted"] / table["published"] - 1).abs()
    return table.assign(miss=miss).sort_values("miss", ascending=False, ignore_index=True)


@dataclass(frozen=True, slots=True)
class Read:
    """A file that tells acceptance: the model, and P(draft k accepted | those before)."""

    model: AcceptanceModel
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FileTask:
    """Replay an engine's recorded steps, or read the acceptance that its log tells.

    path: of the copy that this server keeps. name: what the user calls it.
    """

    path: str
    name: str
    policies: tuple[str, ...]

    def run(self, say: Say) -> Replayed | Read:
        """Replay recorded steps, read acceptance out of all else; errors say the user's name of the file."""
        say(self.name)
        try:
            if _holds_steps(Path(self.path)):
                return replay(self.path, self.policies)
            model = load_acceptance(self.path)
        except BadInputError as error:
            source = (error.source or "").replace(self.path, self.name)
            raise BadInputError(
                error.problem, source=source, field=error.field, value=error.value, remedy=error.remedy
            ) from error
        return Read(model, conditional_rates(model))


def _holds_steps(path: Path) -> bool:
    """Whether a file is a record of SGLang's decode steps; what is no JSON is left to the reader of logs."""
    try:
        return known_form(read_json(path)) is SGLANG_DUMP
    except BadInputError:
        return False


class Uploads:
    """Files that were dropped into pages, kept by content in a folder of this server's own.

    Pages know a file by the digest of its content, so that no word of a page names a path.
    """

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="dspark-sim-ui-")
        self._paths: OrderedDict[str, Path] = OrderedDict()

    def keep(self, content: bytes) -> str:
        """Keep a file; returns its digest."""
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._paths:
            self._paths[digest] = Path(self._folder.name) / f"{digest}.json"
            self._paths[digest].write_bytes(content)
        self._paths.move_to_end(digest)
        if len(self._paths) > MOST_UPLOADS:
            self._paths.popitem(last=False)[1].unlink()
        return digest

    def task(self, asked: str) -> FileTask:
        """Return the work that a query names: ``dump`` (a digest), ``name`` and ``policy``.

        Raises ``BadInputError`` for a file that is not kept, or no more.
        """
        given = parse_qs(asked)
        path = self._paths.get(given.get("dump", [""])[-1])
        if path is None:
            raise BadInputError("is not kept any more", source="file", remedy="drop it again")
        return FileTask(str(path), given.get("name", ["the file"])[-1], tuple(given.get("policy", ())))

    def close(self) -> None:
        """Delete every file."""
        self._folder.cleanup()


def tasks_of(subject: str) -> list[Task]:
    """Return what a subject needs."""
    return [WHOLE[subject]] if subject in WHOLE else list(claim_lines(subject))
