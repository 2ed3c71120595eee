"""The folders show the architecture: imports point one way, packages stay small, tests mirror them."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "simulator"


def test_imports_keep_the_contracts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize(
    "package", sorted(path.parent.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("__init__.py"))
)
def test_packages_hold_few_rooms(package: str) -> None:
    """At most nine modules or packages in each folder, eight in ``live``, 25 at the top."""
    folder = ROOT / package
    rooms = [
        path for path in folder.iterdir()
        if (path.suffix == ".py" and not path.name.startswith("__")) or (path / "__init__.py").is_file()
    ]  # fmt: skip
    most = {PACKAGE: 25, PACKAGE / "live": 8}.get(folder, 9)
    assert 2 <= len(rooms) <= most, [path.name for path in rooms]


def test_tests_mirror_the_packages() -> None:
    tests = ROOT / "tests"
    own = {"benchmarks", "fuzz", "notebooks", "support", "tools"}
    for folder in tests.iterdir():
        if folder.is_dir() and not folder.name.startswith(("__", ".")):
            assert folder.name in own or (PACKAGE / folder.name).is_dir(), folder.name
    for package in PACKAGE.rglob("__init__.py"):
        inside = package.parent.relative_to(PACKAGE)
        assert list((tests / inside).rglob("test_*.py")), f"tests/{inside} tests nothing"


def definitions(path: Path) -> set[str]:
    """Names of a module's functions and classes, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def test_every_stop_of_the_walks_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    stops = re.findall(r"`([a-z_/]+\.py):([\w.]+)`", text)
    assert len(stops) > 25
    missing = [f"{file}:{name}" for file, name in stops if name not in definitions(PACKAGE / file)]
    assert not missing


def pages() -> list[Path]:
    """What people read: every page of the docs, and the two at the top."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


def module_of(dotted: str) -> tuple[Path, list[str]]:
    """Return the file or folder that a dotted name lies in, and what of the name comes behind it."""
    place, names = PACKAGE, dotted.removeprefix("simulator.").split(".")
    while names and (place / names[0]).is_dir():
        place /= names.pop(0)
    if names and (place / f"{names[0]}.py").is_file():
        place /= f"{names.pop(0)}.py"
    return place, names


def test_pages_name_modules_that_are_there() -> None:
    """In backticks: ``cost.fit``, ``simulator.live.checks.agreement.draw``."""
    rooms = "|".join(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    found, missing = 0, []
    for page in pages():
        for dotted in re.findall(
            rf"`((?:simulator\.)?(?:{rooms})(?:\.\w+)+)", page.read_text(encoding="utf-8")
        ):
            if dotted.endswith((".csv", ".html", ".json", ".md", ".parquet", ".png", ".py")):
                continue  # a file's name
            place, names = module_of(dotted)
            text = place.read_text(encoding="utf-8") if place.is_file() else ""
            found += 1
            if not all(re.search(rf"\b{name}\b", text) for name in names):
                missing.append(f"{page.relative_to(ROOT)}: {dotted}")
    assert found > 10
    assert not missing


def test_pages_name_files_that_are_there() -> None:
    found, missing = 0, []
    for page in pages():
        for named in re.findall(
            r"(?<![\w/.])((?:simulator|tests|tools|scripts)/[\w/]+(?:\.\w+)?)",
            page.read_text(encoding="utf-8"),
        ):
            found += 1
            if not (ROOT / named).exists():
                missing.append(f"{page.relative_to(ROOT)}: {named}")
    assert found > 100
    assert not missing


def test_an_ignored_lint_rule_has_its_reason() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("simulator", "tests", "tools")
        for path in (ROOT / folder).rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"# noqa(?!: [A-Z0-9, ]+  # \w)", line) and path != Path(__file__)
    ]
    assert not bare


def test_the_map_names_every_room() -> None:
    """Modules and folders of each package, as docs/architecture.md draws them."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = re.search(r"^simulator/ .*?^tools/", text, re.M | re.S)
    assert drawn is not None
    top = PACKAGE
    seen = set()
    for line in drawn.group().splitlines():
        parts = re.split(r" {2,}", line.strip())
        if line.startswith("simulator/live/"):
            top = PACKAGE / "live"
        if (
            not line.startswith("  ")
            or not parts[0].endswith("/")
            or parts[1:2] == ["torch only here (below)"]
        ):
            continue
        folder = top / parts[0]
        rooms = {
            path.stem if path.is_file() else f"{path.name}/" for path in folder.iterdir()
            if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
        }  # fmt: skip
        named = re.split(r"[ ,]+", re.sub(r"\([^)]*\)", "", parts[1]).strip())
        for room in rooms:
            assert any(fnmatch(room, name) for name in named), f"{folder.name}: {room} is not on the map"
        for name in named:
            assert any(fnmatch(room, name) for room in rooms), f"{folder.name}: there is no {name}"
        seen.add(folder)
    assert {path.parent for path in PACKAGE.glob("*/__init__.py")} - seen == {PACKAGE / "live"}
