"""An engine's recorded steps, decided again: text in, tables out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simulator.api.workbench import AnyPolicy
from simulator.core.errors import refuse_repeats
from simulator.deployment.beliefs import table_of
from simulator.dumps.outcomes import Replayed
from simulator.dumps.outcomes import replay as decide_again
from simulator.dumps.steps import load_recording
from simulator.schedulers.parse import as_policy


def replay(
    dump: str | Path,
    policies: AnyPolicy | Sequence[AnyPolicy] = "sglang",
    tables: str | Path | Sequence[str | Path] = (),
) -> Replayed:
    """Decide every step of SGLang's record again under each policy with each cost table.

    Parameters
    ----------
    dump
        The engine's record of its steps.
    policies
        One or several; the first stands for the engine.
    tables
        SGLang's or TensorRT-LLM's files, or profiles; the first is the engine's own and the clock. Without
        one it is read out of the times that the dump predicted.

    Returns
    -------
    Replayed
        Decisions by step and policy, and how far they agree.

    Raises
    ------
    BadInputError
        If something cannot be read, or no step can be decided.
    """
    listed = (
        list(policies) if isinstance(policies, Sequence) and not isinstance(policies, str) else [policies]
    )
    asked = [as_policy(each) for each in listed]
    names = [str(each) for each in ([tables] if isinstance(tables, str | Path) else tables)]
    refuse_repeats((each.name for each in asked), "policies")
    refuse_repeats(names, "tables")
    recording = load_recording(dump)
    known = [(name, table_of(name)) for name in names]
    return decide_again(recording, asked, known or [("the dump's own times", recording.own_table())])
