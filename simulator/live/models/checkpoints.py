"""Model folders (config.json and safetensors) read with clear errors, and the memory they will need.

Weights come only from safetensors files: a pickle from outside can run code, so none is ever opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from simulator.core.errors import BadInputError
from simulator.core.files import atomic_path, write_json
from simulator.core.reading import read_json

CONFIG_FILE = "config.json"

WEIGHTS_FILE = "model.safetensors"

_INDEX_FILE = "model.safetensors.index.json"

_GIB = 2**30

MOST = 2**31 - 1
"""Largest whole number that a field of a config.json may hold: no size of a model comes near it."""


class Fields:
    """The fields of one config.json; every complaint names the file, the field and the value."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw, self.source = raw, source

    def integer(self, name: str, default: int | None = None, *, minimum: int = 0) -> int:
        """Read a whole number of at least ``minimum``; required unless there is a default."""
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= MOST:
            raise self.error(name, f"must be a whole number in {minimum}..{MOST:,}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Read a positive number; required unless there is a default."""
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise self.error(name, "must be a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Read true or false."""
        value = self._present(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Read a required list of whole numbers."""
        value = self._present(name, None)
        if not isinstance(value, (list, tuple)) or any(type(item) is not int for item in value):
            raise self.error(name, "must be a list of whole numbers")
        return tuple(value)

    def expect(self, name: str, supported: object) -> None:
        """Refuse a field that, where present, is not the one value supported."""
        if self.raw.get(name, supported) not in (supported, None):
            raise self.error(name, f"only {supported!r} is supported")

    def error(
        self, name: str, problem: str, remedy: str = "check that this is a draft's config.json"
    ) -> BadInputError:
        """Return the error to raise for field ``name``."""
        return BadInputError(problem, source=self.source, field=name, value=self.raw.get(name), remedy=remedy)

    def _present(self, name: str, default: Any) -> Any:
        value = self.raw.get(name)
        if value is not None:
            return value
        if default is None:
            raise self.error(name, "is missing")
        return default


def model_folder(path_or_name: str | Path) -> Path:
    """Find a model's local folder: a folder as given, or a hub repository, downloaded without any pickle."""
    folder = Path(path_or_name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise BadInputError(
            "is not a model folder", source=str(folder), remedy=f"pass the folder with {CONFIG_FILE}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path_or_name), allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:  # the hub client raises a dozen unrelated types for "cannot get it"
        raise BadInputError(
            f"is neither a folder here nor a repository the hub gives us: {error}",
            source=str(path_or_name),
            remedy="check the spelling and the network, or pass a local folder",
        ) from error


def read_fields(folder: Path) -> Fields:
    """config.json of a model folder."""
    path = folder / CONFIG_FILE
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise BadInputError("must hold a JSON object", source=str(path), remedy="re-export the model")
    if "auto_map" in raw and raw.get("model_type") not in CONFIG_MAPPING:
        raise BadInputError(
            "asks for Python code of its own, which is never run here", source=str(path), field="auto_map",
            value=raw["auto_map"], remedy="choose a model that transformers knows by itself",
        )  # fmt: skip
    return Fields(raw, str(path))


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a model folder, whole or sharded, each with a readable header."""
    if (folder / WEIGHTS_FILE).is_file():
        files = [folder / WEIGHTS_FILE]
    elif (folder / _INDEX_FILE).is_file():
        index = read_json(folder / _INDEX_FILE)
        files = [folder / name for name in _shards(index, folder / _INDEX_FILE)]
    else:
        raise BadInputError(
            f"holds no {WEIGHTS_FILE}",
            source=str(folder),
            remedy="convert the weights to safetensors; pickled weights are never opened",
        )
    for file in files:
        _tensor_names(file)
    return files


def _shards(index: object, path: Path) -> list[str]:
    """Return the names of the shards that an index lists: files of the same folder, and nothing else."""
    listed = index.get("weight_map") if isinstance(index, dict) else None
    names = set(listed.values()) if isinstance(listed, dict) else set()
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise BadInputError(
            "must map each tensor to a file of this folder", source=str(path), field="weight_map",
            value=listed, remedy="fetch the model again",
        )  # fmt: skip
    return sorted(names)


def read_named(folder: Path, device: torch.device, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Read those tensors of a model folder whose names are wanted; the other shards are not read."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt", device=str(device)) as opened:
                names = [name for name in list(opened.keys()) if wanted(name)]
                tensors |= {name: opened.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise _corrupt(file, error) from error
    return tensors


def read_tensors(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """All tensors of a model folder on ``device``, after checking that they fit there.

    Raises ``BadInputError`` for a missing, corrupt or pickled checkpoint and for too little memory.
    """
    files = weight_files(folder)
    require_memory(sum(file.stat().st_size for file in files), device, str(folder))
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file, device=str(device))
        except (SafetensorError, OSError) as error:
            raise _corrupt(file, error) from error
    return tensors


_WRITERS_FIELDS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Fields of a config.json that say who wrote it and how wide its weights are, not what the model is."""


def content_digest(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a model's config and weights: equal for equal models, wherever they lie.

    Names, types, shapes and bytes of the tensors count, in the order of their names. Tensors that share
    their memory (a head tied to the embedding) are read once. Each tensor is copied to the host by itself.
    """
    told = {name: value for name, value in config.items() if name not in _WRITERS_FIELDS}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    seen: dict[tuple[int, torch.Size], str] = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        first = seen.setdefault((tensor.data_ptr(), tensor.shape), name)
        digest.update(f"\n{name} {first} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if first == name:
            digest.update(tensor.reshape(-1).cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def one_dtype(tensors: Mapping[str, Tensor], source: str) -> torch.dtype:
    """Return the dtype that all tensors share; a mixture is refused: it would be computed inconsistently."""
    seen = {tensor.dtype: name for name, tensor in tensors.items()}
    if len(seen) != 1:
        shown = ", ".join(f"{name} is {str(dtype).removeprefix('torch.')}" for dtype, name in seen.items())
        raise BadInputError(
            f"weights have mixed dtypes: {shown}",
            source=source,
            field="dtype",
            remedy="pass dtype= to convert them",
        )
    return next(iter(seen))


def require_same_tensors(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Refuse a checkpoint whose keys or shapes are not exactly the model's."""
    for problem, names in (
        ("misses", wanted.keys() - given.keys()),
        ("has unexpected", given.keys() - wanted.keys()),
    ):
        if names:
            raise BadInputError(
                f"{problem} {len(names)} tensors",
                source=source,
                field=sorted(names)[0],
                value=sorted(names),
                remedy=f"the weights and {CONFIG_FILE} describe different models: take both from one export",
            )
    for name, tensor in wanted.items():
        if given[name].shape != tensor.shape:
            raise BadInputError(
                f"has the wrong shape, {CONFIG_FILE} implies {list(tensor.shape)}",
                source=source,
                field=name,
                value=list(given[name].shape),
                remedy=f"the weights and {CONFIG_FILE} describe different models: take both from one export",
            )


def save_model(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write weights, then config.json, each atomically; a folder with a new config.json is thus complete."""
    with atomic_path(Path(folder) / WEIGHTS_FILE) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": "pt"})
    write_json(Path(folder) / CONFIG_FILE, dict(config))


def require_memory(needed_bytes: int, device: torch.device, source: str) -> None:
    """Refuse to start loading ``needed_bytes`` of weights where they cannot fit; says how much there is."""
    available = available_bytes(device)
    if available is not None and needed_bytes > available:
        raise BadInputError(
            f"weights need {needed_bytes / _GIB:.2f} GiB and {device} has {available / _GIB:.2f} GiB free",
            source=source,
            field="memory",
            remedy="choose a smaller model, a narrower dtype or another device, or free memory",
        )


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be allocated on ``device``, or None where the system does not say.

    On a CPU that is the kernel's estimate, lowered to what the control group leaves (containers).
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    meminfo = _text("/proc/meminfo")
    kilobytes = [line.split()[1] for line in meminfo.splitlines() if line.startswith("MemAvailable:")]
    limit, used = _text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory.current")
    candidates = [int(value) * 1024 for value in kilobytes]
    if limit.isdigit() and used.isdigit():
        candidates.append(int(limit) - int(used))
    return min(candidates, default=None)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _tensor_names(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except FileNotFoundError as error:
        raise BadInputError(
            "no such file, though the index lists it", source=str(file), remedy="fetch the model again"
        ) from error
    except (SafetensorError, OSError) as error:
        raise _corrupt(file, error) from error


def _corrupt(file: Path, error: Exception) -> BadInputError:
    return BadInputError(
        f"is not a readable safetensors file: {error}",
        source=str(file),
        remedy="it is truncated, corrupt or of another kind: fetch or export it again",
    )
