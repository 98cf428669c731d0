"""Files under names that a server chose: whole or not at all, never over another, never outside."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy.files import PartialFile, destination, distinct

from . import strategies as given_by

HOSTILE = [
    "..",
    ".",
    "",
    " ",
    "...",
    "../../etc/passwd",
    "..\\..\\windows\\system32\\evil.dll",
    "/etc/passwd",
    "//server/share/x.png",
    "C:\\x.png",
    "C:x.png",
    "a/../../b.png",
    "x.png/",
    "x.png\x00.exe",
    "\x00",
    "a\nb.png",
    "CON",
    "con.png",
    "LPT1.txt",
    "com¹.png",
    "x.png. . ",
    "x.png:stream",
    ".bashrc",
    "~",
    "~root/x.png",
    "$HOME",
    "-rf",
    "a" * 5000,
    "ü" * 5000 + ".png",
    "🦊" * 5000,
    "x." + "y" * 5000,
    "\ud800.png",
    "\u202egnp.exe",
    "\uff0e\uff0e\uff0fx",
]


def written(path: Path, data: bytes = b"data", *, overwrite: bool = False) -> Path:
    part = PartialFile(path, overwrite=overwrite)
    part.write(data)
    return part.finish()


def everything(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- Where a file goes ---------------------------------------------------------------------------------------------


def test_a_directory_is_one_that_exists_or_ends_in_a_separator_or_has_no_extension(tmp_path: Path) -> None:
    (tmp_path / "made.d").mkdir()
    assert destination(tmp_path / "made.d", "a.png") == tmp_path / "made.d" / "a.png"
    assert destination(f"{tmp_path}/new.d/", "a.png") == tmp_path / "new.d" / "a.png"
    assert destination(os.path.join(tmp_path, "new.d", ""), "a.png") == tmp_path / "new.d" / "a.png"
    assert destination(tmp_path / "new", "a.png") == tmp_path / "new" / "a.png"
    assert destination("", "a.png") == Path("a.png")
    assert destination(".", "a.png") == Path("a.png")


def test_what_has_an_extension_and_is_no_directory_is_the_file_itself(tmp_path: Path) -> None:
    assert destination(tmp_path / "mine.png", "a.png") == tmp_path / "mine.png"
    assert destination(str(tmp_path / "mine.png"), "../a.png") == tmp_path / "mine.png"


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_no_name_leaves_the_directory_or_names_anything_but_a_file_in_it(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "out"
    path = written(destination(directory, name))
    assert path.parent == directory
    assert list(directory.iterdir()) == [path]
    assert path.resolve().parent == directory.resolve()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@given(given_by.texts | st.text(st.sampled_from("./\\:\x00aC~ü "), max_size=8))
def test_any_name_stays_in_the_directory(name: str) -> None:
    path = destination("out/", name)
    assert path.parent == Path("out")
    assert path.name not in ("", ".", "..") and not path.name.startswith(".")
    assert len(os.fsencode(path.name)) <= 200
    assert not set(path.name) & set('/\\:\x00<>"|?*') and path.name == path.name.rstrip(". ")


# --- Whole or not at all -------------------------------------------------------------------------------------------


def test_a_file_stands_under_its_name_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.png"
    part = PartialFile(path, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    part.write(b"da")
    part.write(memoryview(b"ta"))
    assert not path.exists()
    assert part.finish() == path
    assert everything(path.parent) == {"a.png": b"data"}


def test_a_file_of_no_bytes_is_written(tmp_path: Path) -> None:
    assert PartialFile(tmp_path / "a.png", overwrite=False).finish() == tmp_path / "a.png"
    assert everything(tmp_path) == {"a.png": b""}


def test_a_discarded_file_leaves_nothing_and_cannot_be_written_any_more(tmp_path: Path) -> None:
    part = PartialFile(tmp_path / "a.png", overwrite=False)
    part.discard()
    for begin in (lambda: part.write(b"x"), part.finish):
        with pytest.raises(ValueError, match="was discarded"):
            begin()
    assert everything(tmp_path) == {}
    begun = PartialFile(tmp_path / "a.png", overwrite=False)
    begun.write(b"data")
    begun.discard()
    begun.discard(wait=True)
    assert everything(tmp_path) == {}


def test_a_finished_file_is_discarded_but_not_the_next_one_of_that_name(tmp_path: Path) -> None:
    part = PartialFile(tmp_path / "a.png", overwrite=False)
    path = part.finish()
    part.discard()
    assert everything(tmp_path) == {}
    assert written(path, b"another's") == path
    part.discard(wait=True)
    assert everything(tmp_path) == {"a.png": b"another's"}


def test_a_finished_file_that_replaced_another_stays(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    part = PartialFile(tmp_path / "a.png", overwrite=True)
    part.write(b"new")
    part.finish()
    part.discard()
    assert everything(tmp_path) == {"a.png": b"new"}


class Gate:
    """Something that a thread passes when it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(10)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


@pytest.mark.parametrize("method", ["write", "finish"])
def test_what_is_discarded_while_a_thread_works_on_it_is_gone_when_that_ends(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    gate, real_link, real_mkdir = Gate(), os.link, Path.mkdir

    def slow_link(*args: str) -> None:
        gate.pass_through()
        real_link(*args)

    def slow_mkdir(path: Path, **options: bool) -> None:
        gate.pass_through()
        real_mkdir(path, **options)

    work: Future[Any]
    part = PartialFile(tmp_path / "out" / "a.png", overwrite=False)
    if method == "write":
        monkeypatch.setattr(Path, "mkdir", slow_mkdir)
        work = threads.submit(part.write, b"data")
    else:
        part.write(b"data")
        monkeypatch.setattr(os, "link", slow_link)
        work = threads.submit(part.finish)
    assert gate.reached.wait(10)
    part.discard()  # does not wait
    waiting = threads.submit(part.discard, wait=True)
    gate.opened.set()
    waiting.result(10)
    work.result(10)
    assert everything(tmp_path / "out") == {}


def test_discarding_at_any_moment_leaves_nothing(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    def work(part: PartialFile, reached: list[threading.Event]) -> None:
        reached[0].set()
        part.write(b"x" * 100_000)
        reached[1].set()
        part.finish()
        reached[2].set()

    for number in range(300):
        part = PartialFile(tmp_path / f"{number % 3}.png", overwrite=False)
        reached = [threading.Event() for _ in range(3)]
        working = threads.submit(work, part, reached)
        assert reached[number % 3].wait(10)
        part.discard(wait=bool(number % 2))
        assert isinstance(working.exception(10), ValueError | None)
    assert everything(tmp_path) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
@pytest.mark.parametrize("finish", [True, False])
def test_a_full_disk_leaves_nothing(tmp_path: Path, finish: bool) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    part = PartialFile(tmp_path / "a.png", overwrite=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        part.write(b"x" * 99_000)
        part.write(b"x" * 2000)  # still in the buffer
        if finish:
            with pytest.raises(OSError, match="too large"):
                part.finish()
        part.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything(tmp_path) == {}


def test_a_directory_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    part = PartialFile(tmp_path / "file" / "a.png", overwrite=False)
    with pytest.raises(OSError):
        part.write(b"data")
    part.discard()
    assert everything(tmp_path) == {"file": b""}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0])
def test_a_file_gets_the_mode_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        path = written(tmp_path / "a.png")
    finally:
        os.umask(old)
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_the_umask_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(mask: int) -> int:
        raise AssertionError("it belongs to the whole process")

    monkeypatch.setattr(os, "umask", refuse)
    written(tmp_path / "a.png")


# --- Never over another --------------------------------------------------------------------------------------------


def test_files_of_one_name_are_numbered(tmp_path: Path) -> None:
    names = [written(tmp_path / "a.b.png", b"%d" % number).name for number in range(4)]
    assert names == ["a.b.png", "a.b (1).png", "a.b (2).png", "a.b (3).png"]
    assert written(tmp_path / "bare").name == "bare"
    assert written(tmp_path / "bare").name == "bare (1)"
    assert everything(tmp_path)["a.b (2).png"] == b"2"


def test_a_number_that_was_freed_is_taken_again(tmp_path: Path) -> None:
    for _ in range(3):
        written(tmp_path / "a.png")
    (tmp_path / "a (1).png").unlink()
    assert written(tmp_path / "a.png").name == "a (1).png"


def test_overwriting_replaces_the_file_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    part = PartialFile(tmp_path / "a.png", overwrite=True)
    part.write(b"new")
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert part.finish() == tmp_path / "a.png"
    assert everything(tmp_path) == {"a.png": b"new"}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_in_the_files_place_is_not_followed(tmp_path: Path, exists: bool) -> None:
    outside, directory = tmp_path / "outside.txt", tmp_path / "out"
    directory.mkdir()
    if exists:
        outside.write_bytes(b"precious")
    (directory / "a.png").symlink_to(outside)
    assert written(directory / "a.png").name == "a (1).png"
    assert (directory / "a.png").is_symlink()
    assert written(directory / "a.png", b"new", overwrite=True) == directory / "a.png"
    assert not (directory / "a.png").is_symlink()
    assert outside.exists() is exists and (not exists or outside.read_bytes() == b"precious")


def test_a_directory_in_the_files_place_stays(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    assert written(tmp_path / "a.png").name == "a (1).png"
    part = PartialFile(tmp_path / "a.png", overwrite=True)
    with pytest.raises(OSError):
        part.finish()
    part.discard()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a (1).png", "a.png"]


def no_links(*args: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


def test_no_two_names_of_a_server_become_one() -> None:
    names = distinct(["a.png", "A.PNG", "../a.png", "a:b", "a?b", "a (1).png", "", "."])
    assert names == ["a.png", "A (2).PNG", "a (3).png", "a_b", "a_b (1)", "a (1).png", "_", "_ (1)"]


@given(st.lists(st.sampled_from(["a", "A", "a.b", "a (1)", "ß", "SS", "a:", "a?"]) | given_by.texts, max_size=9))
def test_any_names_become_distinct_ones_and_stay_so(filenames: list[str]) -> None:
    names = distinct(filenames)
    assert len({name.casefold() for name in names}) == len(filenames)
    assert distinct(names) == names


@pytest.mark.parametrize("links", [True, False])
def test_threads_that_save_one_name_all_get_a_file(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    contents = [b"%d" % number * 1000 for number in range(200)]
    paths = list(threads.map(lambda data: written(tmp_path / "new" / "a.png", data), contents))
    assert len(set(paths)) == 200
    assert [path.read_bytes() for path in paths] == contents
    assert Counter(everything(tmp_path / "new").values()) == Counter(contents)


def test_a_file_system_without_links_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a.png").write_bytes(b"old")
    assert written(tmp_path / "a.png", b"new").name == "a (1).png"
    assert everything(tmp_path) == {"a.png": b"old", "a (1).png": b"new"}


def test_a_part_that_somebody_removed_leaves_nothing_under_its_name_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    part = PartialFile(path, overwrite=False)
    part.write(b"data")
    next(tmp_path.glob("*.part")).unlink()
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("a file is made under the name"))
    with pytest.raises(FileNotFoundError):
        part.finish()
    assert everything(tmp_path) == {}


def test_a_rename_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "replace", no_links)
    part = PartialFile(tmp_path / "a.png", overwrite=False)
    part.write(b"data")
    with pytest.raises(OSError, match="no hard links"):
        part.finish()
    part.discard()
    assert everything(tmp_path) == {}


def test_a_name_that_the_disk_refuses_is_an_os_error_that_leaves_nothing(tmp_path: Path) -> None:
    part = PartialFile(tmp_path / ("a" * 250 + ".extension"), overwrite=False)
    part.write(b"data")
    with pytest.raises(OSError):
        part.finish()
    part.discard()
    assert everything(tmp_path) == {}
