"""Writing: whole or not at all, never over a device, and every fault names the file."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from pyarrow import parquet

from simulator.core.errors import BadInputError, UnwritableError
from simulator.core.files import (
    append_line,
    atomic_directory,
    atomic_path,
    check_writable_directory,
    check_writable_file,
    write_csv,
    write_json,
    write_table,
    write_text,
)

HERE = Path(__file__).parents[1]


def everything(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}


def break_off(path: Path) -> None:
    """Write a half and fail."""
    path.write_text("half")
    raise RuntimeError("broke")


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file may grow beyond 4,096 bytes, as under ``ulimit -f``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- what the output is -------------------------------------------------------------------------------------


def test_a_regular_file_is_replaced_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    inode = path.stat().st_ino
    write_text(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_ino != inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert everything(tmp_path) == {"a.txt"}


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="broke"), atomic_path(path) as temporary:
        break_off(temporary)
    assert path.read_text() == "old"
    assert everything(tmp_path) == {"a.txt"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_replaced(exists: bool, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    target, link = tmp_path / "data" / "real.txt", tmp_path / "link.txt"
    if exists:
        target.write_text("old")
    link.symlink_to("data/real.txt")
    write_text(link, "new")
    assert link.is_symlink()
    assert link.readlink() == Path("data/real.txt")
    assert target.read_text() == "new"
    assert not target.is_symlink()
    assert everything(tmp_path) == {"data", "data/real.txt", "link.txt"}


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UnwritableError, match="a: cannot be written: Too many levels"):
        write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").is_symlink()


def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path) -> None:
    """A node of our own, as /dev/null is one that others need: an old writer would have replaced it."""
    node = tmp_path / "null"
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        node.write_text("")
    except OSError:
        pytest.skip("needs the right to make and open device nodes")
    check_writable_file(node)
    write_text(node, "gone")
    assert stat.S_ISCHR(node.stat().st_mode)
    assert node.read_text() == ""
    assert everything(tmp_path) == {"null"}


def test_a_full_device_is_named_and_stays_a_device(tmp_path: Path) -> None:
    node = tmp_path / "full"
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        os.close(os.open(node, os.O_WRONLY))
    except OSError:
        pytest.skip("needs the right to make and open device nodes")
    with pytest.raises(UnwritableError, match=r"full: cannot be written: No space left on device; make room"):
        write_json(node, {"a": 1})
    assert stat.S_ISCHR(node.stat().st_mode)
    assert everything(tmp_path) == {"full"}


def test_the_full_device_of_this_machine_is_named() -> None:
    with pytest.raises(UnwritableError, match=r"/dev/full: cannot be written: No space left on device"):
        write_csv(Path("/dev/full"), pd.DataFrame({"a": [1]}))
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", b""
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_writable_file(pipe)
    text = "a,b\n" * 50_000  # more than the 64 KiB that a pipe holds
    writer = threading.Thread(target=write_text, args=(pipe, text), daemon=True)
    writer.start()
    while len(got) < len(text) and (writer.is_alive() or got):
        with suppress(BlockingIOError):
            got += os.read(reader, 1 << 16)
    writer.join(60)
    os.close(reader)
    assert got.decode() == text
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert everything(tmp_path) == {"pipe"}


def test_a_pipe_that_nobody_reads_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UnwritableError, match=r"pipe: cannot be .*; start what reads this pipe first"):
        write_text(pipe, "x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("into", ["pipe", "file"])
def test_standard_output_is_continued_and_not_replaced(name: str, into: str, tmp_path: Path) -> None:
    if name == "link":
        name = str(tmp_path / "link")
        Path(name).symlink_to("/dev/stdout")
    code = (
        "import sys; from pathlib import Path; from simulator.core.files import *; "
        "print('before', flush=True); "
        f"check_writable_file(Path({name!r})); write_text(Path({name!r}), 'a,b\\n'); print('after')"
    )
    kept = tmp_path / "out.txt"
    with kept.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=HERE.parent, timeout=120, check=True, text=True,
            stdout=file if into == "file" else subprocess.PIPE,
        )  # fmt: skip
    assert (kept.read_text() if into == "file" else done.stdout) == "before\na,b\nafter\n"


def test_a_directory_and_a_socket_are_refused(tmp_path: Path) -> None:
    import socket

    (tmp_path / "folder").mkdir()
    for refuse in (check_writable_file, lambda path: write_text(path, "x")):
        with pytest.raises(UnwritableError, match="folder: is a directory; name a file"):
            refuse(tmp_path / "folder")
        with socket.socket(socket.AF_UNIX) as server:
            name = f"/tmp/dspark-test-{os.getpid()}"
            server.bind(name)
            try:
                with pytest.raises(UnwritableError, match="is a socket; name a file"):
                    refuse(Path(name))
            finally:
                Path(name).unlink()


# --- what may go wrong --------------------------------------------------------------------------------------


def test_a_limit_on_file_sizes_is_named_and_leaves_the_old_file(tmp_path: Path, small_files: int) -> None:
    path = tmp_path / "table.csv"
    write_text(path, "old")
    with pytest.raises(UnwritableError, match=r"table\.csv: cannot be written: File too large"):
        write_text(path, "x" * (small_files + 1))
    with pytest.raises(UnwritableError, match=r"table\.csv: cannot be written: File too large"):
        write_csv(path, pd.DataFrame({"a": range(5000)}))
    assert path.read_text() == "old"
    assert everything(tmp_path) == {"table.csv"}


def test_parquet_on_a_full_disk_is_named(tmp_path: Path, small_files: int) -> None:
    path = tmp_path / "table.parquet"
    with (
        pytest.raises(UnwritableError, match=r"table\.parquet: cannot be written: "),
        atomic_path(path) as at,
    ):
        pd.DataFrame({"a": range(50_000)}).to_parquet(at, compression="none")
    assert everything(tmp_path) == set()


def test_errors_of_writers_in_rust_are_named(tmp_path: Path) -> None:
    message = f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})"
    with (
        pytest.raises(UnwritableError, match=r"model\.safetensors: cannot be written: No space left"),
        atomic_path(tmp_path / "model.safetensors"),
    ):
        raise Exception(message)


@pytest.mark.parametrize("name", ["n" * 256, "n" * 250 + ".parquet", "d" * 300 + "/a.csv", "a\0b"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    for write in (check_writable_file, lambda path: write_text(path, "x")):
        with pytest.raises(UnwritableError, match=r"(cannot be written: File name too long|is not a file's)"):
            write(tmp_path / name)
    assert everything(tmp_path) == set()


def test_the_longest_name_works(tmp_path: Path) -> None:
    longest = "n" * 251 + ".csv"
    check_writable_file(tmp_path / longest)
    write_text(tmp_path / longest, "x")
    assert everything(tmp_path) == {longest}


def test_logs_grow_line_by_line_and_name_what_stops_them(tmp_path: Path, small_files: int) -> None:
    log = tmp_path / "deep" / "log.jsonl"
    append_line(log, "a")
    append_line(log, "b")
    assert log.read_text() == "a\nb\n"
    with pytest.raises(UnwritableError, match=r"log\.jsonl: cannot be written: File too large"):
        append_line(log, "x" * small_files)
    with pytest.raises(UnwritableError, match="deep: cannot be written: Is a directory"):
        append_line(tmp_path / "deep", "a")


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broke"), atomic_directory(tmp_path / "model") as folder:
        break_off(folder / "config.json")
    assert everything(tmp_path) == set()
    with atomic_directory(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
    assert everything(tmp_path) == {"model", "model/config.json"}


# --- before the work ----------------------------------------------------------------------------------------


def test_checks_leave_nothing_behind(tmp_path: Path) -> None:
    check_writable_file(tmp_path / "a" / "b" / "c.csv", tmp_path / "a" / "d.png")
    check_writable_directory(tmp_path / "e" / "f")
    assert everything(tmp_path) == set()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.csv").write_text("old")
    check_writable_file(tmp_path / "old" / "a.csv")
    check_writable_directory(tmp_path / "old")
    assert (tmp_path / "old" / "a.csv").read_text() == "old"
    assert everything(tmp_path) == {"old", "old/a.csv"}


def test_checks_refuse_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match=r"file/a\.csv: cannot be written: Not a directory"):
        check_writable_file(tmp_path / "file" / "a.csv")
    with pytest.raises(UnwritableError, match="file: is not a directory; name a directory"):
        check_writable_directory(tmp_path / "file")
    for path in ("/proc/none/a.csv", "/proc/none/deeper/a.csv"):
        with pytest.raises(UnwritableError, match=f"{path}: cannot be written: "):
            check_writable_file(Path(path))
    with pytest.raises(UnwritableError, match="/proc/none: cannot be written: "):
        check_writable_directory(Path("/proc/none"))
    with pytest.raises(UnwritableError, match="-: writes several files; name a directory"):
        check_writable_directory(Path("-"))
    (tmp_path / "link").symlink_to("a.csv")
    with pytest.raises(UnwritableError, match=r"is also .*one would replace the other"):
        check_writable_file(tmp_path / "a.csv", tmp_path / "link")
    assert issubclass(UnwritableError, BadInputError)
    assert UnwritableError.exit_code == 2


def test_parquet_keeps_the_unit_of_each_column(tmp_path: Path) -> None:
    """As docs/reference/columns.md states them; units given go first, and words have none."""
    table = pd.DataFrame({"policy": ["mtp1"], "ttft_p99_s": [0.25], "queued_s": [3.0]})
    write_table(tmp_path / "t.parquet", table, units={"queued_s": "requests*s"})
    found = {field.name: field.metadata for field in parquet.read_schema(tmp_path / "t.parquet")}
    assert found == {
        "policy": None, "ttft_p99_s": {b"unit": b"s"}, "queued_s": {b"unit": b"requests*s"},
    }  # fmt: skip
    assert pd.read_parquet(tmp_path / "t.parquet").equals(table)
    write_table(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == "mtp1,0.25,3.0"
