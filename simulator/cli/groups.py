"""Groups of options, and ``--json``: what a command's signature and its answer have in common with others."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from io import StringIO
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from simulator.core.errors import BadInputError

if TYPE_CHECKING:
    import pandas as pd

Answer = Mapping[str, object] | None
"""What a command says to a program; None where it has nothing but its exit code."""


def grouped(command: Callable[..., Answer]) -> Callable[..., Answer]:
    """Let a command take groups: a parameter whose type is a dataclass becomes one option for each field.

    A field is annotated as an option of typer is; one without a default is required. The command receives
    the dataclass, made of what was given.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _options(groups[name])
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name]))

    @wraps(command)
    def call(**given: Any) -> Answer:
        made = {
            name: group(
                **{field.name: given.pop(field.name) for field in fields(group) if field.name in given}
            )
            for name, group in groups.items()
        }
        return command(**given, **made)

    return _described(call, parameters)


class Once(TyperCommand):
    """A command whose ``--gpu`` may be given once, with commas: of two the first would be lost silently."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as ever. Raises ``BadInputError`` where GPUs are named one by one."""
        if not ctx.resilient_parsing:  # a shell completes what is not finished
            named, _, given = self.make_parser(ctx).parse_args(args=list(args))
            if [option.name for option in given].count("gpu") > 1:
                raise BadInputError(
                    "is given more than once", source="gpu", value=named["gpu"],
                    remedy="give it once, several GPUs with commas: h100,h200",
                )  # fmt: skip
        return super().parse_args(ctx, args)


AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document in place of tables and lines, for programs.")
]


def answering(command: Callable[..., Answer], name: str) -> Callable[..., None]:
    """Give a command ``--json``: its answer as one document on standard output, and nothing else there.

    Without it the answer is dropped: the command has printed what people read. What goes to standard error,
    files and exit codes are the same; an error becomes a document, too (``print_error``). ``name``: the
    command's words.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters = [
        parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[key])
        for key, parameter in inspect.signature(command).parameters.items()
    ]
    asked = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)

    @wraps(command)
    def call(as_json: bool = False, **given: Any) -> None:
        if not as_json:
            command(**given)
            return
        with redirect_stdout(StringIO()):
            answer = command(**given)
        print_document({"schema": 1, "command": name, "exit_code": 0, **(answer or {})})

    return _described(call, [*parameters, asked])


def print_error(code: int, message: str, error: BaseException | None) -> None:
    """Print a command's error as its document; an infeasible question says what binds and what is nearest."""
    named = {"binds": "binds", "nearest_sla": "nearest", "changes": "changes", "attained": "attained"}
    more = {key: getattr(error, field) for key, field in named.items() if getattr(error, field, ())}
    print_document({"schema": 1, "exit_code": code, "error": message, **more})


def print_document(document: Mapping[str, object]) -> None:
    """Print one JSON document; tables become lists of rows, and what JSON has no number for becomes null."""
    from simulator.core.files import without_nan

    typer.echo(json.dumps(without_nan(_plain(document)), allow_nan=False, ensure_ascii=False, default=str))


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        frame: pd.DataFrame = value
        return frame.to_dict(orient="records")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _described(call: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """Give a wrapper the signature that typer reads."""
    call.__dict__["__signature__"] = inspect.Signature(parameters)
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call


def _options(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        if field.init:
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(field),
                annotation=hints[field.name],
            )


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default
