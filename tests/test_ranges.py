"""What is asked for after a broken connection, and which answers may be joined to what came before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy.errors import ProtocolError
from acomfy.ranges import Received, content_range

TAGGED = {"ETag": '"1-64"', "Content-Length": "100"}
DATED = {"Last-Modified": "Wed, 25 Nov 2026 00:00:00 GMT", "Content-Length": "100"}


def part(start: int, total: int = 100, **more: str) -> dict[str, str]:
    length = str(total - start)
    return {"ETag": '"1-64"', "Content-Range": f"bytes {start}-{total - 1}/{total}", "Content-Length": length} | {
        name.replace("_", "-"): value for name, value in more.items()
    }


def received(headers: dict[str, str] = TAGGED, size: int = 40) -> Received:
    """Give what is there after the connection broke."""
    file = Received()
    assert "Range" not in file.headers()
    assert file.begin(200, headers)
    assert file.take(bytes(size)) == bytes(size)
    return file


def test_the_rest_is_asked_for_by_the_tag_or_by_the_time() -> None:
    assert received().headers() == {"Accept-Encoding": "identity", "Range": "bytes=40-", "If-Range": '"1-64"'}
    assert received(DATED).headers()["If-Range"] == DATED["Last-Modified"]
    weak = received({"ETag": 'W/"1"', **DATED})
    assert weak.headers()["If-Range"] == DATED["Last-Modified"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"ETag": 'W/"1"', "Content-Length": "100"},
        {"Last-Modified": "yesterday"},
        {**TAGGED, "Content-Encoding": "gzip"},
    ],
)
def test_what_has_no_version_is_asked_for_anew(headers: dict[str, str]) -> None:
    file = received(headers)
    assert "Range" not in file.headers()
    assert file.begin(200, headers)
    assert file.size == 0


def test_a_part_is_joined_when_it_is_of_the_same_version() -> None:
    file = received()
    file.headers()
    assert file.begin(206, part(40))
    assert not file.is_whole
    assert file.take(bytes(60)) == bytes(60)
    assert (file.size, file.is_whole) == (100, True)


@pytest.mark.parametrize(
    "headers",
    [part(40, ETag='"2-64"'), part(40, ETag=""), part(40, total=101), part(40, Content_Encoding="gzip")],
    ids=["another tag", "no tag", "another size", "compressed"],
)
def test_a_part_of_another_version_is_never_joined(headers: dict[str, str]) -> None:
    file = received()
    file.headers()
    assert not file.begin(206, headers)
    assert (file.size, "Range" in file.headers()) == (0, False)


def test_without_tags_time_and_size_tell_the_version() -> None:
    file = received(DATED)
    file.headers()
    headers = part(40) | DATED | {"Content-Length": "60"}
    del headers["ETag"]
    assert file.begin(206, headers)
    file = received(DATED)
    file.headers()
    assert not file.begin(206, headers | {"Last-Modified": "Wed, 25 Nov 2026 00:00:01 GMT"})


def test_a_server_without_ranges_sends_the_file_again_and_what_is_here_is_passed_over() -> None:
    file = received()
    file.headers()
    assert file.begin(200, TAGGED)
    assert not file.is_whole
    assert file.take(bytes(30)) == b""
    assert file.take(b"\0" * 10 + b"new") == b"new"
    assert file.size == 43


def test_another_version_that_comes_whole_is_taken_from_the_beginning() -> None:
    file = received()
    file.headers()
    assert file.begin(200, {"ETag": '"2-64"', "Content-Length": "7"})
    assert file.size == 0
    assert file.take(b"changed") == b"changed"
    assert file.is_whole


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Range": "bytes */100"},
        {"Content-Range": "bytes 40-99"},
        {"Content-Range": "bytes 40-100/100"},
        {"Content-Range": "bytes 99-40/100"},
        {"Content-Range": "bytes 40-99/100, 0-1/100"},
        {"Content-Range": f"bytes 40-{'9' * 5000}/100"},
        part(0),
        part(41),
        part(40, Content_Length="61"),
    ],
)
def test_a_part_that_is_not_the_one_that_was_asked_for_is_nonsense(headers: dict[str, str]) -> None:
    file = received()
    file.headers()
    with pytest.raises(ProtocolError):
        file.begin(206, headers)


def test_a_part_that_nobody_asked_for_is_nonsense() -> None:
    file = Received()
    file.headers()
    with pytest.raises(ProtocolError, match="the whole was asked for"):
        file.begin(206, part(0))


def test_more_bytes_than_the_file_has_are_nonsense() -> None:
    file = received()
    file.headers()
    headers = part(40)
    del headers["Content-Length"]
    file.begin(206, headers)
    with pytest.raises(ProtocolError, match="101 bytes came of a file of 100"):
        file.take(bytes(61))


def test_a_file_without_a_length_is_whole_when_it_ends() -> None:
    file = received({})
    assert file.is_whole


@given(st.text(max_size=40) | st.from_regex(r"bytes \d{0,25}-\d{0,25}/(\d{0,25}|\*)", fullmatch=True))
def test_any_content_range_is_understood_or_refused(said: str) -> None:
    try:
        start, end, total = content_range({"Content-Range": said})
    except ProtocolError:
        return
    assert 0 <= start <= end
    assert total is None or end < total


answers = st.fixed_dictionaries(
    {},
    optional={
        "ETag": st.sampled_from(['"a"', '"b"', 'W/"a"', ""]),
        "Last-Modified": st.sampled_from(["one", "two"]),
        "Content-Length": st.sampled_from(["6", "10", "x"]),
        "Content-Encoding": st.sampled_from(["gzip", "identity"]),
        "Content-Range": st.sampled_from(["bytes 4-9/10", "bytes 4-9/*", "bytes 4-5/10", "bytes 0-9/10", "nonsense"]),
    },
)


@given(st.lists(st.tuples(st.sampled_from([200, 206]), answers, st.integers(1, 12)), max_size=8))
def test_bytes_of_two_versions_are_never_joined(steps: list[tuple[int, dict[str, str], int]]) -> None:
    """A file of version "a" is all "a": what is kept must be of one letter, whatever the server says."""
    file, kept = Received(), b""
    for status, headers, count in steps:
        asked = file.headers()
        letter = headers.get("ETag", headers.get("Last-Modified", "?")).strip('W/"')[:1] or "?"
        try:
            if not file.begin(status, headers):
                continue
            at = file.size
            fresh = file.take(letter.encode() * count)
            kept = kept[:at] + fresh
        except ProtocolError:
            return
        assert len(kept) == file.size
        if "If-Range" in asked and status == 206:
            assert len(set(kept)) <= 1
