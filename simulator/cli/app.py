"""``dspark-sim``: the command line. Heavy imports wait until a command runs."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Annotated, NoReturn

import typer

from simulator.cli.groups import Once, answering, print_error
from simulator.core.errors import BadInputError, Interrupted, SimulatorError

app = typer.Typer(
    name="dspark-sim",
    help="What confidence-scheduled speculative decoding is worth on your hardware and traffic, "
    "before you deploy it.\n\n"
    "Start with:  dspark-sim compare --profile deepseek-v4-flash --sla 80 --sla 120 --out runs/flash",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_GROUPS = {
    "acceptance": "Look at acceptance models.",
    "import": "Read an engine's file into a profile, a trace or rates.",
    "export": "Write a profile as an engine's cost table, or how an engine is launched.",
}
"""Commands with commands below them, and what they do."""

_COMMANDS = {
    "Simulate": {
        "simulator.cli.explore": {
            "compare": "compare", "frontier": "frontier", "simulate": "simulate", "list": "list_everything",
            "acceptance show": "acceptance_show", "ui": "ui",
        },
    },
    "Plan": {"simulator.cli.plan": {"plan": "plan", "fleet": "fleet", "regret": "regret"}},
    "Data": {
        "simulator.cli.files": {
            "import sglang-table": "import_sglang_table", "import sglang-rounds": "import_sglang_rounds",
            "replay": "replay", "import sglang-dump": "import_sglang_dump", "import trtllm": "import_trtllm",
            "import vllm-log": "import_vllm_log", "export sglang": "export_sglang",
            "export trtllm": "export_trtllm", "export launch": "export_launch",
        },
    },
    "Measure": {
        "simulator.cli.measure.live": {"live": "live", "validate": "validate"},
    },
    "Train": {"simulator.cli.measure.train": {"train": "train", "trace": "trace"}},
}  # fmt: skip
"""Panel of the help to module to command and its function."""

_LIVE_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


def commands() -> typer.Typer:
    """Assemble the whole command line; its modules import what is heavy only when a command runs."""
    from importlib import import_module

    if app.registered_commands:
        return app
    groups: dict[str, typer.Typer] = {}
    for panel, modules in _COMMANDS.items():
        for module, named in modules.items():
            for words, function in named.items():
                group, _, name = words.rpartition(" ")
                if group and group not in groups:
                    groups[group] = typer.Typer(help=_GROUPS[group], no_args_is_help=True)
                    app.add_typer(groups[group], name=group, rich_help_panel=panel)
                of = groups[group] if group else app
                of.command(name, cls=Once, rich_help_panel=None if group else panel)(
                    answering(getattr(import_module(module), function), words)
                )
    profiles = import_module("simulator.cli.measure.profile").profile_app
    for each in profiles.registered_commands:
        each.callback, each.cls = answering(each.callback, f"profile {each.name}"), Once
    app.add_typer(profiles, name="profile", rich_help_panel="Measure")
    return app


def _send_by_value(module: ModuleType, *, ray: bool) -> None:
    """Send what a module defines along with each cell: workers may not be able to import it."""
    from contextlib import suppress
    from importlib import import_module

    # joblib brought its own copy before 1.6, and Ray brings one; each backend pickles by its own.
    for name in ("joblib.externals.cloudpickle", "cloudpickle", *(["ray.cloudpickle"] if ray else [])):
        with suppress(ModuleNotFoundError):
            import_module(name).register_pickle_by_value(module)


def _import_asked_for(words: list[str]) -> list[str]:
    """Import the modules of ``--import NAME`` wherever it stands, and return the other words.

    Such a module registers policies of its own; the current directory is searched first.
    """
    from importlib import import_module

    kept: list[str] = []
    given = iter(words)
    for word in given:
        if word != "--import" and not word.startswith("--import="):
            kept.append(word)
            continue
        name = word.partition("=")[2] or next(given, "")
        sys.path.insert(0, str(Path.cwd()))
        try:
            _send_by_value(import_module(name), ray="ray" in words)
        except Exception as error:  # a module of the user's may fail in any way
            raise BadInputError(
                f"cannot be imported: {type(error).__name__}: {error}", source="--import", value=name,
                remedy="name a module as Python does, in the current directory or installed",
            ) from error  # fmt: skip
    return kept


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"dspark-sim {version('dspark-simulator')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    imported: Annotated[
        str | None,
        typer.Option("--import", help="Module that registers policies of your own; also after a command."),
    ] = None,
) -> None:
    pass


def main() -> None:
    """Entry point: whatever ends a command becomes one line on standard error and an exit code.

    0 done, 1 infeasible or a check failed, 2 bad input or an output that cannot be written, 70 a fault of
    this program, 130 interrupted. ``DSPARK_DEBUG=1`` shows where a fault happened.
    """
    from simulator.core.files import DISK_FAULTS
    from simulator.core.interruption import interruptible

    shown, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        with interruptible():
            sys.argv[1:] = _import_asked_for(sys.argv[1:])
            commands()(prog_name="dspark-sim")
    except (SimulatorError, Interrupted) as error:
        said = _said(error) if isinstance(error, SimulatorError) else f"interrupted by {error}"
        _end(error.exit_code, said, *_notes(error), error=error)
    except SystemExit:
        _flush()
        raise
    except ModuleNotFoundError as error:
        if error.name not in _LIVE_PACKAGES:
            _fault(error)
        _end(2, f"error: this command needs {error.name}; pip install 'dspark-simulator[live]'")
    except MemoryError as error:
        _end(2, f"error: out of memory{f' ({error})' if str(error) else ''}; ask for less at once")
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            _fault(error)
        _unwritable(error)
    except Exception as error:
        _fault(error)
    finally:
        warnings.formatwarning = shown


def _said(error: SimulatorError) -> str:
    """Say an error in the words of the command that was called."""
    from simulator.cli.wording import in_options, options_of

    return f"error: {in_options(str(error), options_of(commands(), sys.argv[1:]))}"


def _notes(error: BaseException) -> list[str]:
    notes = list(getattr(error, "__notes__", ()))
    if not notes and isinstance(error, Interrupted):
        return ["nothing is half-written: the same command starts over"]
    return notes


def _end(code: int, *lines: str, error: BaseException | None = None) -> NoReturn:
    typer.echo("; ".join(lines), err=True)
    if "--json" in sys.argv:
        print_error(code, "; ".join(lines).removeprefix("error: "), error)
    sys.exit(code)


def _fault(error: Exception) -> NoReturn:
    """One line for an error that is this program's own; the traceback goes to a file."""
    from tempfile import NamedTemporaryFile
    from traceback import format_exception

    details = "".join(format_exception(error))
    if os.environ.get("DSPARK_DEBUG"):
        typer.echo(details, err=True)
    try:
        with NamedTemporaryFile("w", prefix="dspark-sim-", suffix=".txt", delete=False) as file:
            file.write(f"{shlex.join(sys.argv)}\n{details}")
        where = f"details in {file.name}"
    except OSError:
        where = "repeat the command with DSPARK_DEBUG=1 for details"
    reason = (str(error) or "no message").splitlines()[0][:300]
    _end(
        70,
        f"error: this is a fault of dspark-sim, please report it: {type(error).__name__}: {reason}; {where}",
    )


def _flush() -> None:
    """Write what standard output still holds while it can be said that it could not be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _unwritable(error)


def _unwritable(error: OSError) -> NoReturn:
    if error.filename is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter tries again, with a traceback
    _end(2, f"error: {error.filename or 'standard output'}: cannot be written: {error.strerror}")


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {message}\n"
