"""GPUs: memory, bandwidth, peak rates, links, prices, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache

from pydantic import Field, ValidationError

from simulator.core.errors import BadInputError
from simulator.core.files import data_directory
from simulator.core.reading import Strict, complain, read_json, strictly
from simulator.hardware.models import Precision


class Gpu(Strict):
    """One GPU. Rates are peaks of the data sheet: no kernel reaches them.

    memory_bytes; bandwidth_bytes_per_s of that memory; flop_per_s: dense matrix rate by precision, which is
    absent where the GPU has none; link_bytes_per_s: to the other GPUs of its node, one direction;
    network_bytes_per_s: to other nodes, an adapter for each GPU as in the makers' servers (200 Gb/s beside
    A100, 800 beside B300, else 400); None where a rack is linked as a node is.
    price_per_hour: a typical cloud price in USD, with where and when it was seen; None where nobody said.
    kernel_tables: what the tables of measured kernels call it; None where there are none.
    """

    name: str
    title: str
    memory_bytes: float = Field(gt=0)
    bandwidth_bytes_per_s: float = Field(gt=0)
    flop_per_s: Mapping[Precision, float]
    link_bytes_per_s: float = Field(gt=0)
    network_bytes_per_s: float | None = Field(default=None, gt=0)
    gpus_per_node: int = Field(gt=0)
    kernel_tables: str | None = None
    source: str
    price_per_hour: float | None = Field(default=None, gt=0)
    price_source: str | None = None


def load_gpu(name: str) -> Gpu:
    """Load a GPU of the catalogue by name; ``BadInputError`` with the nearest names."""
    known = catalogue()
    found = known.get(name.strip().lower())
    if found is None:
        near = get_close_matches(name.lower(), known, n=3, cutoff=0.3) or list(known)
        raise BadInputError(
            "is not a GPU of the catalogue", source="gpu", value=name,
            remedy=f"did you mean {', '.join(near)}? `dspark-sim list --gpus` shows all",
        )  # fmt: skip
    return found


@cache
def catalogue() -> dict[str, Gpu]:
    """Name to record of every GPU that comes with the package."""
    path = data_directory("profiles") / "catalogue" / "gpus.json"
    content = read_json(path)
    if not isinstance(content, list):
        raise BadInputError("is not a list of GPUs", source=str(path))
    try:
        gpus = [strictly(Gpu, entry) for entry in content]
    except ValidationError as error:
        raise complain(error, str(path)) from error
    return {gpu.name: gpu for gpu in gpus}
