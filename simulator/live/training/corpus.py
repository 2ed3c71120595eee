"""Text to train and trace on, split by file into train, calibration and test.

The default corpus is what every Python installation has: the standard library's sources without their
docstrings (``code``), those docstrings and the language reference that ``help()`` prints (``prose``),
and generated arithmetic (``arithmetic``). Any folder of text files can take its place.

A file goes to one split as a whole, with everything drawn from it: lines of one file resemble one
another, so holding out by line would let the test see what was trained on. For the same reason a file
whose text occurs under an earlier name too is left out.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import platform
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from simulator.core.errors import BadInputError
from simulator.live.training.arithmetic import worked_problems

Split = Literal["train", "calibration", "test"]

SPLITS: tuple[Split, ...] = ("train", "calibration", "test")

HELD_OUT_SHARE = 0.1
"""Share of each group's files that goes to calibration, and again to test; at least one file each."""

_ARITHMETIC_FILES, _PROBLEMS_PER_FILE = 200, 60

_ARITHMETIC_SEED = 2607

# Tests and third-party packages are not in every installation; encodings are tables, not code.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "encodings"}

_HELP_TOPICS = "pydoc_data/topics.py"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file: its path below the corpus's root, and its text, by domain.

    group: files of one group are divided among the splits together.
    """

    name: str
    group: str
    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Source files by split, in a fixed order."""

    name: str
    splits: Mapping[Split, tuple[SourceFile, ...]]

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, sorted."""
        return tuple(sorted({domain for file in self.splits["train"] for domain in file.texts}))

    def texts(self, split: Split, domain: str) -> list[str]:
        """Return what the files of a split say in one domain, file after file."""
        return [file.texts[domain] for file in self.splits[split] if domain in file.texts]

    @property
    def digest(self) -> str:
        """SHA-256 over all names, splits and texts: equal digests are equal corpora."""
        state = hashlib.sha256()
        for split in SPLITS:
            for file in self.splits[split]:
                for part in (split, file.name, *(x for item in sorted(file.texts.items()) for x in item)):
                    state.update(part.encode("utf-8", "surrogatepass") + b"\0")
        return state.hexdigest()


def load_corpus(folder: Path | str | None = None) -> Corpus:
    """Load the corpus of a folder, or the default one."""
    if folder is None:
        files = [*library_files(Path(sysconfig.get_paths()["stdlib"])), *arithmetic_files()]
        return split_by_file(files, f"Python {platform.python_version()} standard library and arithmetic")
    return split_by_file(folder_files(Path(folder)), Path(folder).name)


def split_by_file(files: Iterable[SourceFile], name: str) -> Corpus:
    """Give each file to one split, in an order that depends on the names alone.

    Raises ``BadInputError`` where a group has fewer than three different files, too few to hold any out.
    """
    groups: dict[str, list[SourceFile]] = defaultdict(list)
    for file in _without_copies(files):
        groups[file.group].append(file)
    if not groups:
        raise BadInputError("holds no text files", source=name, remedy="pass a folder with UTF-8 text files")
    splits: dict[Split, list[SourceFile]] = {split: [] for split in SPLITS}
    for group, members in sorted(groups.items()):
        if len(members) < len(SPLITS):
            raise BadInputError(
                f"{len(members)} different files cannot be split into {', '.join(SPLITS)}",
                source=name,
                field=group,
                remedy="give each domain at least 3 text files",
            )
        shuffled = sorted(members, key=lambda file: _digest(file.name))
        held_out = max(1, int(HELD_OUT_SHARE * len(shuffled)))
        splits["test"] += shuffled[:held_out]
        splits["calibration"] += shuffled[held_out : 2 * held_out]
        splits["train"] += shuffled[2 * held_out :]
    return Corpus(name, {split: tuple(members) for split, members in splits.items()})


def folder_files(folder: Path) -> Iterator[SourceFile]:
    """Every UTF-8 text file below a folder; other files and hidden ones are passed over.

    The domain is the first sub-folder's name; of a file beside the sub-folders it is the extension
    without its dot, or ``text`` without one.
    """
    if not folder.is_dir():
        raise BadInputError("is not a folder", source=str(folder), remedy="pass a folder of text files")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            continue
        text = _utf8_text(path)
        if text is not None:
            domain = relative.parts[0] if len(relative.parts) > 1 else path.suffix[1:] or "text"
            yield SourceFile(relative.as_posix(), domain, {domain: text})


def library_files(root: Path) -> Iterator[SourceFile]:
    """Python sources below ``root``, each as code without docstrings and as the docstrings' prose."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        text = None if _SKIPPED_FOLDERS & set(relative.parts) else _utf8_text(path)
        if text is None:
            continue
        try:
            tree = ast.parse(text)
        except SyntaxError:  # templates and deliberately broken examples
            continue
        name = relative.as_posix()
        if name == _HELP_TOPICS:
            yield SourceFile(name, "library", {"prose": "\n\n".join(_long_strings(tree))})
            continue
        code, prose = _separate(text, tree)
        texts = {"code": code, "prose": prose}
        yield SourceFile(name, "library", {domain: said for domain, said in texts.items() if said.strip()})


def arithmetic_files() -> Iterator[SourceFile]:
    """Generate files of worked problems; no problem occurs twice, in one file or in two."""
    problems = worked_problems(_ARITHMETIC_SEED)
    for index in range(_ARITHMETIC_FILES):
        text = "\n\n".join(islice(problems, _PROBLEMS_PER_FILE)) + "\n"
        yield SourceFile(f"arithmetic/{index:03}.txt", "arithmetic", {"arithmetic": text})


def _separate(text: str, tree: ast.Module) -> tuple[str, str]:
    """Separate a module's lines without its docstrings from the docstrings."""
    lines: list[str | None] = list(text.splitlines())
    prose = []
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring is not None:
            prose.append(inspect.cleandoc(docstring))
            statement = node.body[0]
            last = statement.end_lineno or statement.lineno
            lines[statement.lineno - 1 : last] = [None] * (last - statement.lineno + 1)
    return "\n".join(line for line in lines if line is not None), "\n\n".join(prose)


def _long_strings(tree: ast.Module) -> list[str]:
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [string for string in strings if isinstance(string, str) and "\n" in string]


def _utf8_text(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise BadInputError(f"cannot be read: {error.strerror}", source=str(path)) from error
    return text if text.strip() and "\0" not in text else None


def _without_copies(files: Iterable[SourceFile]) -> list[SourceFile]:
    kept: dict[str, SourceFile] = {}
    for file in files:
        kept.setdefault(_digest(*_values(file.texts)), file)
    return list(kept.values())


def _values(texts: Mapping[str, str]) -> Sequence[str]:
    return [text for _, text in sorted(texts.items())]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
