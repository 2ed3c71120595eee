"""A workload: requests as arrays, in the order in which they arrive.

Generators (``traffic``) and file readers (``traffic.recorded``) make workloads; the engine serves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.core.errors import BadInputError

_Integer = TypeVar("_Integer", bound=np.signedinteger[Any])

MAX_TOKENS = 10**9
"""Longest prompt or output, a thousand times the longest context of any model. A choice."""

MAX_REQUESTS = 10**8
"""Most requests of one workload: a day at 1,000 a second, 3 GB of arrays. A choice."""

MAX_CLASSES = 2**15
"""Most classes of a workload: their indices have 16 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class PrefixBlocks:
    """The blocks of ``block_tokens`` tokens of each prompt; equal ids mean equal prefixes.

    Ragged: request ``i`` has ``ids[offsets[i]:offsets[i + 1]]``, first block first. An id stands for a
    block *and everything before it*, so two prompts share exactly their common leading ids.
    """

    block_tokens: int
    ids: NDArray[np.int64]  # [sum of blocks]
    offsets: NDArray[np.int64]  # [n + 1], from 0, non-decreasing

    def __post_init__(self) -> None:
        if self.block_tokens < 1:
            raise BadInputError("must be at least 1", field="block_tokens", value=self.block_tokens)
        _freeze(self, "ids", _integers(self.ids, "prefix ids", np.int64))
        _freeze(self, "offsets", _integers(self.offsets, "prefix offsets", np.int64))
        edges_fit = self.offsets.size > 0 and self.offsets[0] == 0 and self.offsets[-1] == self.ids.size
        if not edges_fit or (np.diff(self.offsets) < 0).any():
            raise BadInputError(
                f"must rise from 0 to the number of ids, {self.ids.size}", field="prefix offsets"
            )

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]], block_tokens: int) -> Self:
        """Pack one list of block ids per request."""
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        each = (block for row in rows for block in row)
        try:
            ids = np.fromiter(each, dtype=np.int64, count=int(offsets[-1]))
        except OverflowError as error:
            raise BadInputError("must fit 64 bits, sign included", field="prefix ids") from error
        return cls(block_tokens, ids, offsets)

    def __len__(self) -> int:
        return self.offsets.size - 1

    def row(self, request: int) -> NDArray[np.int64]:
        """Block ids of one request, [blocks], without copying."""
        return self.ids[self.offsets[request] : self.offsets[request + 1]]

    def take(self, requests: NDArray[np.intp]) -> PrefixBlocks:
        """Return the rows of the chosen requests, in the order given."""
        counts = np.diff(self.offsets)[requests]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        # Position of every kept id: its row's start in the old array, plus its rank within the row.
        ranks = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return PrefixBlocks(
            self.block_tokens, self.ids[np.repeat(self.offsets[requests], counts) + ranks], offsets
        )


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Requests in arrival order, as read-only arrays over n requests.

    ``arrival_s`` is ``None`` in a closed loop: a request arrives when a slot frees.

    ``clock_tick_s`` is the step of the clock that recorded the arrivals, where requests share a time. An
    arrival at t happened within [t, t + clock_tick_s), and the order within the tick is unknown. 0 means that
    no times coincide, or that the clock is unknown. Times are kept as recorded, with ties; thinning and
    multiplying spread the requests of one time within one tick.

    Raises ``BadInputError`` for arrays of different lengths, negative or decreasing times, lengths below 1
    and class indices without a class.
    """

    arrival_s: NDArray[np.float64] | None  # [n], non-decreasing, >= 0
    prompt_tokens: NDArray[np.int64]  # [n], >= 1
    output_tokens: NDArray[np.int64]  # [n], >= 1
    class_index: NDArray[np.int16]  # [n], into classes
    classes: tuple[str, ...] = ("default",)
    prefix: PrefixBlocks | None = None
    clock_tick_s: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.clock_tick_s) and self.clock_tick_s >= 0):
            raise BadInputError(
                "must be finite and not negative", field="clock_tick_s", value=self.clock_tick_s
            )
        for name in ("prompt_tokens", "output_tokens"):
            tokens = _integers(getattr(self, name), name, np.int64)
            _require(tokens >= 1, tokens, name, "must be at least 1")
            _freeze(self, name, tokens)
        _freeze(self, "class_index", _integers(self.class_index, "class_index", np.int16))
        _freeze(self, "classes", tuple(self.classes))
        self._check_classes()
        if self.arrival_s is not None:
            _freeze(self, "arrival_s", _arrival_times(self.arrival_s))
        self._check_lengths()

    @classmethod
    def single_class(
        cls,
        arrival_s: ArrayLike | None,
        prompt_tokens: ArrayLike,
        output_tokens: ArrayLike,
        *,
        name: str = "default",
        prefix: PrefixBlocks | None = None,
    ) -> Self:
        """Return a workload whose requests all belong to one class.

        Parameters
        ----------
        arrival_s
            float64 [N] seconds, non-decreasing; None for a closed loop.
        prompt_tokens
            int64 [N].
        output_tokens
            int64 [N], at least 1.
        name
            Of the class.
        prefix
            Hashed blocks of the prompts, when known.

        Returns
        -------
        Workload
            The requests, checked.

        Raises
        ------
        BadInputError
            If lengths of the arrays differ, or a value is not valid.
        """
        prompts, outputs = np.asarray(prompt_tokens), np.asarray(output_tokens)
        times = None if arrival_s is None else np.asarray(arrival_s)
        return cls(times, prompts, outputs, np.zeros(prompts.shape, np.int16), (name,), prefix)

    def __len__(self) -> int:
        return self.prompt_tokens.size

    @property
    def is_closed_loop(self) -> bool:
        """Whether requests arrive when a slot frees rather than at given times."""
        return self.arrival_s is None

    @property
    def span_s(self) -> float:
        """Seconds from the first to the last arrival."""
        arrival_s = self._times("span_s")
        return float(arrival_s[-1] - arrival_s[0]) if arrival_s.size else 0.0

    @property
    def rate_per_s(self) -> float:
        """Mean arrival rate, (n - 1) / span; infinite when all arrive at once, NaN below two requests."""
        span_s = self.span_s
        if len(self) < 2:
            return float("nan")
        return (len(self) - 1) / span_s if span_s > 0 else float("inf")

    def take(self, requests: NDArray[np.integer[Any]] | NDArray[np.bool_] | slice) -> Workload:
        """Select requests, keeping their arrival times and the class list.

        Parameters
        ----------
        requests
            Indices, a mask or a slice.

        Returns
        -------
        Workload
            Those requests, in the order given.
        """
        chosen = np.arange(len(self))[requests]
        return replace(
            self,
            arrival_s=None if self.arrival_s is None else self.arrival_s[chosen],
            prompt_tokens=self.prompt_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            class_index=self.class_index[chosen],
            prefix=None if self.prefix is None else self.prefix.take(chosen),
        )

    def head(self, requests: int) -> Workload:
        """Return the first requests.

        Parameters
        ----------
        requests
            How many; all when there are fewer.

        Returns
        -------
        Workload
            The first ``requests``.
        """
        return self.take(slice(max(requests, 0)))

    def before(self, time_s: float) -> Workload:
        """Return the requests that arrive before a time.

        Parameters
        ----------
        time_s
            Seconds on the workload's own clock.

        Returns
        -------
        Workload
            Those requests.

        Raises
        ------
        BadInputError
            If the loop is closed.
        """
        return self.head(int(np.searchsorted(self._times("before"), time_s, side="left")))

    def of_class(self, name: str) -> Workload:
        """Return the requests of one class.

        Parameters
        ----------
        name
            One of ``classes``.

        Returns
        -------
        Workload
            Those requests.

        Raises
        ------
        BadInputError
            If there is no such class.
        """
        if name not in self.classes:
            raise BadInputError("no such class", field="class", value=name, remedy=f"one of {self.classes}")
        return self.take(self.class_index == self.classes.index(name))

    def shard(self, index: int, of: int) -> Workload:
        """Return one share of the requests, as round robin spreads them over replicas.

        Parameters
        ----------
        index
            First request of the share.
        of
            Number of shares.

        Returns
        -------
        Workload
            Every ``of``-th request from ``index`` on.

        Raises
        ------
        BadInputError
            If ``index`` is not one of the shares.
        """
        if not 0 <= index < of:
            raise BadInputError(f"must lie in 0..{of - 1}", field="shard", value=index)
        return self.take(slice(index, None, of))

    def at_rate(self, factor: float) -> Workload:
        """Speed up arrivals.

        Parameters
        ----------
        factor
            Times are divided by it; lengths and order stay.

        Returns
        -------
        Workload
            The same requests, ``factor`` times as dense.

        Raises
        ------
        BadInputError
            If the factor is not positive and finite, or the loop is closed.
        """
        if not (np.isfinite(factor) and factor > 0):
            raise BadInputError("must be positive and finite", field="rate factor", value=factor)
        return replace(
            self, arrival_s=self._times("at_rate") / factor, clock_tick_s=self.clock_tick_s / factor
        )

    def _times(self, wanted_by: str) -> NDArray[np.float64]:
        if self.arrival_s is None:
            raise BadInputError(
                f"a closed loop has no arrival times, which {wanted_by} needs", field="arrival_s"
            )
        return self.arrival_s

    def _check_classes(self) -> None:
        named = all(isinstance(name, str) and name for name in self.classes)
        if not named or not self.classes or len(set(self.classes)) != len(self.classes):
            raise BadInputError("must be distinct, non-empty names", field="classes", value=self.classes)
        _require_few_classes(len(self.classes))
        known = (self.class_index >= 0) & (self.class_index < len(self.classes))
        _require(known, self.class_index, "class_index", f"must lie in 0..{len(self.classes) - 1}")

    def _check_lengths(self) -> None:
        sizes = {"output_tokens": self.output_tokens.size, "class_index": self.class_index.size}
        if self.arrival_s is not None:
            sizes["arrival_s"] = self.arrival_s.size
        if self.prefix is not None:
            sizes["prefix"] = len(self.prefix)
        for name, size in sizes.items():
            if size != len(self):
                raise BadInputError(f"has {size} entries where prompt_tokens has {len(self)}", field=name)


def merge(workloads: Sequence[Workload]) -> Workload:
    """All requests of several workloads in one stream, classes of the same name becoming one class.

    Open loops interleave by arrival time (ties: earlier workload first); closed loops follow one another.
    Prefix blocks survive only when every part has them with one block size, their ids kept as they are.
    """
    if not workloads:
        raise BadInputError("needs at least one workload", field="merge")
    times = [part.arrival_s for part in workloads if part.arrival_s is not None]
    if len(times) not in (0, len(workloads)):
        raise BadInputError("cannot mix closed loops with timed arrivals", field="merge")
    classes = tuple(dict.fromkeys(name for part in workloads for name in part.classes))
    _require_few_classes(len(classes))
    renumbered = [
        np.array([classes.index(name) for name in part.classes], np.int16)[part.class_index]
        for part in workloads
    ]
    together = Workload(
        None,
        np.concatenate([part.prompt_tokens for part in workloads]),
        np.concatenate([part.output_tokens for part in workloads]),
        np.concatenate(renumbered),
        classes,
        _merged_prefix([part.prefix for part in workloads]),
        max(part.clock_tick_s for part in workloads),
    )
    if not times:
        return together
    arrival_s = np.concatenate(times)
    order = np.argsort(arrival_s, kind="stable")
    return replace(together.take(order), arrival_s=arrival_s[order])


def _merged_prefix(parts: Sequence[PrefixBlocks | None]) -> PrefixBlocks | None:
    present = [part for part in parts if part is not None]
    if len(present) != len(parts) or len({part.block_tokens for part in present}) != 1:
        return None
    counts = np.concatenate([np.diff(part.offsets) for part in present])
    offsets = np.concatenate(([0], np.cumsum(counts)))
    return PrefixBlocks(present[0].block_tokens, np.concatenate([part.ids for part in present]), offsets)


def _arrival_times(values: ArrayLike) -> NDArray[np.float64]:
    arrival_s = np.asarray(values, dtype=np.float64)
    _require_one_dimension(arrival_s, "arrival_s")
    _require(np.isfinite(arrival_s), arrival_s, "arrival_s", "must be finite")
    _require(arrival_s >= 0, arrival_s, "arrival_s", "must not be negative")
    _require(np.diff(arrival_s, prepend=0.0) >= 0, arrival_s, "arrival_s", "goes back in time")
    return arrival_s


def _integers(values: ArrayLike, name: str, kind: type[_Integer]) -> NDArray[_Integer]:
    given = np.asarray(values)
    _require_one_dimension(given, name)
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise BadInputError("must be integers", field=name, value=given[:3].tolist())
    fits = (given >= np.iinfo(kind).min) & (given <= np.iinfo(kind).max)
    _require(fits, given, name, f"does not fit {kind.__name__}")
    return given.astype(kind, copy=False)


def _require_few_classes(count: int) -> None:
    if count > MAX_CLASSES:
        raise BadInputError(
            f"must be at most {MAX_CLASSES:,}", field="classes", value=count, remedy="group them into fewer"
        )


def _require_one_dimension(values: NDArray[Any], name: str) -> None:
    if values.ndim != 1:
        raise BadInputError("must have one dimension", field=name, value=values.shape)


def _require(holds: NDArray[np.bool_], values: NDArray[Any], name: str, rule: str) -> None:
    if not holds.all():
        first = int(np.argmin(holds))
        raise BadInputError(f"{rule} (request {first})", field=name, value=values[first].item())


def _freeze(owner: object, name: str, value: object) -> None:
    """Store a validated field of a frozen dataclass; arrays as read-only views."""
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    object.__setattr__(owner, name, value)
