"""Every public function says what it takes, what it returns and what it raises."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator

import pytest

import simulator as sim


def _public() -> Iterator[tuple[str, Callable[..., object]]]:
    for name in sim.__all__:
        value = getattr(sim, name)
        if inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value):
            for method, written in vars(value).items():
                function = getattr(written, "__func__", written)
                if inspect.isfunction(function) and not method.startswith("_") and function.__doc__:
                    yield f"{name}.{method}", function


PUBLIC = dict(_public())


def section(text: str, title: str) -> str:
    """Return what stands below a title of numpy's style, up to the next one."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\w+\n---|\Z)", text, re.M | re.S)
    return found.group(1) if found else ""


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_function_documents_what_goes_in_and_comes_out(name: str) -> None:
    function = PUBLIC[name]
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    described = {
        each.strip("* ")
        for line in re.findall(r"^(\S.*)$", section(text, "Parameters"), re.M)
        for each in line.split(",")
    }
    assert described == set(signature.parameters) - {"self", "cls"}
    returns_nothing = signature.return_annotation in (None, "None")
    assert bool(section(text, "Returns")) != returns_nothing


def test_the_check_sees_what_is_left_out() -> None:
    text = "One line.\n\nParameters\n----------\na\n    First.\n\nReturns\n-------\nint\n    Sum."
    assert section(text, "Parameters").split() == ["a", "First."]
    assert section(text, "Returns").split() == ["int", "Sum."]
    assert section(text, "Raises") == ""
    assert len(PUBLIC) > 50
