"""What a server can do, by what it says of itself. No event loop, no server."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy.capabilities import UNKNOWN, Capabilities, read_capabilities

from . import strategies as given_by
from .recorded import lines

FLAGS = {"supports_preview_metadata": True, "max_upload_size": 104857600}


def stats(version: Any) -> dict[str, Any]:
    return {"system": {"os": "posix", "comfyui_version": version}, "devices": []}


def can(version: Any, features: Any = None) -> tuple[bool, bool, bool]:
    found = read_capabilities(stats(version), features)
    return found.takes_prompt_id, found.targeted_interrupt, found.cancels_jobs


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("0.3.40", (False, False, False)),
        ("0.3.44", (False, False, False)),
        ("0.3.45", (True, False, False)),
        ("0.3.56", (True, False, False)),
        ("0.3.57", (True, True, False)),
        ("0.3.100", (True, True, False)),
        ("0.4", (True, True, False)),
        ("0.25.9", (True, True, False)),
        ("0.26.0", (True, True, True)),
        ("0.33.0", (True, True, True)),
        ("1.0.0", (True, True, True)),
    ],
)
def test_each_ability_came_with_its_version(version: str, wanted: tuple[bool, bool, bool]) -> None:
    assert can(version) == wanted
    assert can("v" + version) == wanted
    assert can(version + "-12-g0abc") == wanted


def test_versions_are_compared_as_numbers() -> None:
    assert read_capabilities(stats("0.10.2"), None).version == (0, 10, 2) > (0, 9, 9)


@pytest.mark.parametrize(
    "version", ["unknown", "", "nightly", None, 5, [], "0", "9" * 5000 + ".1.1", "0.." + "9" * 5000]
)
def test_a_server_that_does_not_tell_its_version_counts_as_old(version: Any) -> None:
    assert read_capabilities(stats(version), None) == UNKNOWN == Capabilities()


def test_a_server_with_feature_flags_takes_our_prompt_id_whatever_its_version() -> None:
    assert can("unknown", FLAGS) == (True, False, False)
    assert can("0.3.40", FLAGS) == (True, False, False)
    assert can("unknown", {}) == (False, False, False)


@pytest.mark.parametrize("answer", [None, [], "x", {}, {"system": None}, {"system": []}, {"system": {}}])
def test_answers_that_are_missing_or_odd_tell_nothing(answer: Any) -> None:
    assert read_capabilities(answer, answer) == UNKNOWN


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (104857600, 104857600),
        (1572864.5, 1572864),
        (0, None),
        (-1, None),
        (True, None),
        ("100", None),
        (None, None),
        (math.nan, None),
        (math.inf, None),
    ],
)
def test_the_upload_limit_is_a_number_of_bytes_or_none(size: Any, wanted: int | None) -> None:
    found = read_capabilities(None, {"max_upload_size": size}).max_upload_size
    assert found == wanted
    assert found is None or type(found) is int


def test_what_real_servers_say_is_read() -> None:
    answers = {
        line["path"]: line["json"]
        for line in lines("0.3.64/p_endpoints.jsonl")
        if line["ev"] == "http" and isinstance(line.get("json"), dict)
    }
    found = read_capabilities(answers["/system_stats"], answers["/features"])
    assert found == Capabilities((0, 3, 64), True, True, True, False, 104857600)


odd = given_by.json_values | st.floats()
odd_stats = odd | st.fixed_dictionaries(
    {"system": st.fixed_dictionaries({"comfyui_version": odd | st.text("v0123.٣")})}
)
odd_features = odd | st.fixed_dictionaries({"max_upload_size": odd})


@given(odd_stats, odd_features)
def test_any_answers_are_read_without_a_crash(system_stats: Any, features: Any) -> None:
    found = read_capabilities(system_stats, features)
    assert json.dumps(found.max_upload_size)
