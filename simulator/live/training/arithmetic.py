"""The easy domain: sums and products worked digit by digit, generated from a seed.

Every token but the operands follows from what stands before it, so a small target becomes sure of its
output and a draft can follow it for long stretches, as in the structured parts of real traffic.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

_PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands")

_DIGITS = 4  # operands have two to four digits


def worked_problems(seed: int) -> Iterator[str]:
    """Worked problems without end, no problem twice, swapped operands included."""
    stream = random.Random(seed)
    seen: set[tuple[str, int, int]] = set()
    while True:
        left = stream.randrange(10, 10 ** stream.randint(2, _DIGITS))
        is_sum = stream.random() < 0.5
        right = stream.randrange(10, 10 ** stream.randint(2, _DIGITS)) if is_sum else stream.randint(2, 9)
        key = ("+" if is_sum else "*", min(left, right), max(left, right))
        if key not in seen:
            seen.add(key)
            yield worked_sum(left, right) if is_sum else worked_product(left, right)


def worked_sum(left: int, right: int) -> str:
    """Column addition, one line per place, the answer last."""
    lines, carry = [f"Add {left} and {right}."], 0
    for place, a, b in zip(_PLACES, _low_digits(left), _low_digits(right), strict=False):
        if max(left, right) < 10 ** _PLACES.index(place):
            break
        total = a + b + carry
        terms = f"{a} + {b}" + (f" + {carry}" if carry else "")
        carry = total // 10
        lines.append(_step(place, terms, total, carry))
    return "\n".join([*lines, f"{left} + {right} = {left + right}"])


def worked_product(left: int, digit: int) -> str:
    """Multiplication by one digit, one line per place, the answer last."""
    lines, carry = [f"Multiply {left} by {digit}."], 0
    for place, a in zip(_PLACES, _low_digits(left), strict=False):
        if left < 10 ** _PLACES.index(place):
            break
        total = a * digit + carry
        terms = f"{a} * {digit}" + (f" + {carry}" if carry else "")
        carry = total // 10
        lines.append(_step(place, terms, total, carry))
    return "\n".join([*lines, f"{left} * {digit} = {left * digit}"])


def _step(place: str, terms: str, total: int, carry: int) -> str:
    carried = f", carry {carry}" if carry else ""
    return f"{place}: {terms} = {total}, write {total % 10}{carried}"


def _low_digits(number: int) -> Iterator[int]:
    """Digits from the ones up, then zeros."""
    while True:
        number, digit = divmod(number, 10)
        yield digit
