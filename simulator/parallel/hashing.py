"""Keys of cells, derived from their content."""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import hashlib
import platform
import site
import sys
import sysconfig
import types
from collections.abc import Mapping
from functools import cached_property, lru_cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from simulator.core.files import data_directory

PACKAGE = __name__.partition(".")[0]

_LIBRARIES = ("numpy", "scipy", "pandas", "simpy")
"""Installed packages that simulated numbers depend on."""

_BOOKKEEPING = frozenset(
    {"__module__", "__dict__", "__weakref__", "__doc__", "__qualname__", "__firstlineno__", "__annotations__",
     "__annotate__", "__annotate_func__", "__annotations_cache__", "__static_attributes__", "__slots__",
     "__match_args__", "__orig_bases__", "__parameters__", "__abstractmethods__", "_abc_impl",
     "__dataclass_params__", "__dataclass_fields__", "__hash__", "__protocol_attrs__",
     "__slotnames__"}
)  # fmt: skip
"""Entries of a class that Python adds. The fields of a dataclass are read separately."""


def content_hash(*parts: object, arrays: Arrays | None = None) -> str:
    """Return 32 hex digits that depend on the values and the code within and on nothing else.

    Dataclasses count by their compared fields, so that caches within them change nothing. arrays: what
    earlier calls have read of large arrays that have not changed since; this one adds to it. Raises
    ``TypeError`` for a value whose content cannot be read.
    """
    reader = _Reader({} if arrays is None else arrays)
    reader.read(parts)
    return reader.digest.hexdigest()[:32]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return 16 hex digits of the code that every cell can reach: package with data, libraries, Python.

    The digest is computed once a process: it describes the loaded code, also after a file has changed.
    """
    package = Path(str(import_module(PACKAGE).__file__)).parent
    sources = [
        *package.rglob("*.py"),
        *(p for kind in ("profiles", "traces") for p in data_directory(kind).glob("*.json")),
    ]
    digest = hashlib.sha256()
    for path in sorted(sources):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    versions = {name: _installed(name) for name in _LIBRARIES}
    digest.update(f"{package_version()} {platform.python_version()} {versions}".encode())
    return digest.hexdigest()[:16]


def package_version() -> str:
    """Return the version of this package, as installed."""
    return _installed("dspark-simulator")


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


Arrays = dict[int, tuple[bytes, NDArray[Any]]]
"""Digests of arrays by identity, which is theirs as long as the array is here."""

_LARGE = 2**16
"""Bytes of an array from which on its digest is read instead. A choice."""

Origin = Literal["package", "library", "user"]


@lru_cache(maxsize=4096)
def _origin(module: str) -> Origin:
    """Return the kind of code that a module is: a library's has a version, a user's must be read."""
    top = module.partition(".")[0]
    if top == PACKAGE:
        return "package"
    if top in sys.stdlib_module_names and top != "__main__":
        return "library"
    file = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" or file is None:
        return "user"
    folders = {*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()}
    installed = any(Path(file).is_relative_to(folder) for folder in folders if folder not in ("", "/"))
    return "library" if installed else "user"


def _named(value: Any, module: str) -> bytes:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    top = module.partition(".")[0]
    version = getattr(sys.modules.get(top), "__version__", "") if _origin(module) == "library" else ""
    return f"name {module}.{name} {version}".encode()


class _Reader:
    """Reads a value into a digest, in pieces. A repeated object becomes a number, so that circles end."""

    def __init__(self, arrays: Arrays) -> None:
        self.met: dict[int, tuple[int, Any]] = {}
        self.arrays = arrays
        self.digest = hashlib.sha256()

    def _put(self, piece: bytes) -> None:
        """Digest a piece with its length in front, so that no two sequences of pieces are alike."""
        self.digest.update(len(piece).to_bytes(8, "little") + piece)

    def read(self, value: Any) -> None:
        """Digest the content of any value, piece by piece."""
        if isinstance(value, enum.Enum):
            self._once(value)
        elif value is None or value is ... or isinstance(value, bool | int | float | complex | str | bytes):
            self._put(f"{type(value).__name__} {value!r}".encode())
        elif isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            if array.dtype.hasobject:
                raise TypeError("an array of objects has no content to hash")
            self._put(f"array {array.dtype.str} {array.shape}".encode())
            self._put(self._content(array))
        elif isinstance(value, Path | np.dtype | range | types.GenericAlias | types.UnionType):
            self._put(f"{type(value).__name__} {value}".encode())
        elif isinstance(value, Mapping):
            self._put(f"mapping {len(value)}".encode())
            for key in sorted(value, key=str):
                self.read((key, value[key]))
        elif isinstance(value, list | tuple):
            self._put(f"sequence {len(value)}".encode())
            for item in value:
                self.read(item)
        elif isinstance(value, set | frozenset):
            self._put(f"set {len(value)}".encode())
            for digest in sorted(content_hash(item) for item in value):
                self._put(digest.encode())
        else:
            self._once(value)

    def _content(self, array: NDArray[Any]) -> bytes:
        if array.nbytes < _LARGE:
            return np.ascontiguousarray(array).tobytes()
        if id(array) not in self.arrays:
            self.arrays[id(array)] = hashlib.sha256(np.ascontiguousarray(array)).digest(), array
        return self.arrays[id(array)][0]

    def _once(self, value: Any) -> None:
        """Digest what may contain itself: the second time, its number."""
        if id(value) in self.met:
            self._put(f"again {self.met[id(value)][0]}".encode())
            return
        self.met[id(value)] = (len(self.met), value)  # kept alive, so that no other object gets the same id
        if isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.ModuleType):
            self._module(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, enum.Enum):
            self.read((type(value), value.name))
        elif isinstance(value, BaseModel):
            self.read((type(value), dict(value)))
        elif dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}
            self.read((type(value), fields))
        elif type(value).__module__ in ("typing", "typing_extensions"):
            self._put(f"typing {value!r}".encode())
        elif callable(value) and not self._is_plain(value):
            self._callable(value)
        elif self._is_plain(value):
            slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
            state = {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})
            self.read((type(value), state))
        else:
            raise TypeError(f"a cell may not hold a {type(value).__qualname__}: its content cannot be hashed")

    def _callable(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.read(("method", value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self.read(("partial", value.func, value.args, value.keywords))
        elif hasattr(value, "__wrapped__"):
            self.read(("wrapped", value.__wrapped__))
        elif isinstance(value, np.ufunc):
            self._put(f"ufunc {value.__name__} {np.__version__}".encode())
        elif isinstance(value, types.BuiltinFunctionType) and (
            value.__self__ is None or isinstance(value.__self__, types.ModuleType)
        ):
            self._put(_named(value, value.__module__ or "builtins"))
        else:
            raise TypeError(f"a cell may not hold a {type(value).__qualname__}: its content cannot be hashed")

    def _function(self, function: types.FunctionType) -> None:
        module = function.__module__ or "__main__"
        self._put(_named(function, module))
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # an empty closure cell
                self._put(b"empty")
            else:
                self.read(content)
        if _origin(module) != "user":
            return
        self.read((function.__code__, function.__defaults__, function.__kwdefaults__))
        for name in sorted(_globals_of(function.__code__)):
            if name in function.__globals__:
                self.read((name, function.__globals__[name]))

    def _code(self, code: types.CodeType) -> None:
        self._put(code.co_code)
        signature = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        self.read((code.co_names, code.co_freevars, code.co_cellvars, signature))
        self._put(code.co_exceptiontable)
        self.read(code.co_consts)

    def _class(self, kind: type) -> None:
        self._put(_named(kind, kind.__module__))
        if _origin(kind.__module__) != "user":
            return
        self.read(kind.__bases__)
        if issubclass(kind, BaseModel):
            self._put(repr(kind.model_fields).encode())
        elif dataclasses.is_dataclass(kind):
            for field in dataclasses.fields(kind):
                made = [x for x in (field.default, field.default_factory) if x is not dataclasses.MISSING]
                self.read((field.name, str(field.type), field.compare, made))
        for name, member in sorted(vars(kind).items()):
            if (
                name not in _BOOKKEEPING
                and not name.startswith("__pydantic")
                and not _is_generated(name, member)
            ):
                self.read((name, _underneath(member)))

    def _module(self, module: types.ModuleType) -> None:
        self._put(_named(module, module.__name__))
        if _origin(module.__name__) != "user":
            return
        file = getattr(module, "__file__", None)
        if file is None or not file.endswith(".py"):
            raise TypeError(f"the module {module.__name__} has no source to hash")
        self._put(Path(file).read_bytes())
        for name, value in sorted(vars(module).items()):
            other = (
                value
                if isinstance(value, types.ModuleType)
                else sys.modules.get(getattr(value, "__module__", None) or "builtins")
            )
            if other is not None and _origin(other.__name__) == "user":
                self.read((name, other))

    def _is_plain(self, value: Any) -> bool:
        """Whether an object's attributes are its whole state: all of its classes are written in Python."""
        kinds = [kind for kind in type(value).__mro__ if kind is not object]
        written = all(
            _origin(kind.__module__) in ("package", "user") or kind.__module__ in ("typing", "abc")
            for kind in kinds
        )
        return (
            bool(kinds) and written and not isinstance(value, types.FunctionType | types.BuiltinFunctionType)
        )


def _globals_of(code: types.CodeType) -> set[str]:
    """Return the names that a function, or a function inside it, reads from outside."""
    names = {
        each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals_of(constant)
    return names


def _underneath(member: Any) -> Any:
    """Return the function or value behind a class attribute."""
    if isinstance(member, staticmethod | classmethod):
        return (type(member).__name__, member.__func__)
    if isinstance(member, property):
        return ("property", member.fget, member.fset, member.fdel)
    if isinstance(member, cached_property):
        return ("cached_property", member.func)
    return member


def _is_generated(name: str, member: Any) -> bool:
    """Whether an attribute is a slot, or a method that ``dataclass`` generated."""
    if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
        return True
    code = getattr(member, "__code__", None)
    special = name.startswith("__") and name != "__post_init__"
    return special and isinstance(code, types.CodeType) and code.co_filename == "<string>"


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(name for name in slots if name != "__dict__")
