"""How a prompt ended, by its last message or by its history entry."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy import events
from acomfy.errors import JobFailed, JobInterrupted, OutOfMemory
from acomfy.verdict import COMPLETED, JobState, Verdict, failed, from_history, interrupted

from . import strategies as given_by

P = "4f87c99f"
START = ["execution_start", {"prompt_id": P, "timestamp": 1}]
CACHED = ["execution_cached", {"nodes": [], "prompt_id": P, "timestamp": 2}]
SUCCESS = ["execution_success", {"prompt_id": P, "timestamp": 3}]
INTERRUPTED = ["execution_interrupted", {"prompt_id": P, "node_id": "5", "node_type": "KSampler", "executed": []}]
ERROR: list[Any] = [
    "execution_error",
    {
        "prompt_id": P,
        "node_id": "5",
        "node_type": "KSampler",
        "executed": ["1"],
        "exception_type": "RuntimeError",
        "exception_message": "no\n",
        "traceback": ["line"],
        "current_inputs": {},
        "current_outputs": [],
    },
]


def entry(status_str: str, *messages: Any) -> dict[str, Any]:
    return {"status": {"status_str": status_str, "completed": status_str == "success", "messages": list(messages)}}


def error_of(verdict: Verdict) -> JobFailed:
    assert verdict.state is JobState.FAILED and isinstance(verdict.error, JobFailed)
    return verdict.error


def test_a_history_entry_with_success_is_completed() -> None:
    assert from_history(P, entry("success", START, CACHED, SUCCESS), {}) is COMPLETED


def test_a_history_entry_with_an_error_is_failed_and_names_node_and_title() -> None:
    error = error_of(from_history(P, entry("error", START, CACHED, ERROR), {"5": "The sampler"}))
    assert (error.prompt_id, error.node_id, error.class_type, error.title) == (P, "5", "KSampler", "The sampler")
    assert (error.exception_type, error.exception_message, error.traceback) == ("RuntimeError", "no\n", ("line",))


def test_an_interrupted_prompt_is_told_from_a_failed_one_by_its_messages_alone() -> None:
    verdict = from_history(P, entry("error", START, CACHED, INTERRUPTED), {})
    assert verdict.state is JobState.CANCELLED and isinstance(verdict.error, JobInterrupted)


def test_a_dependency_cycle_is_a_failure_though_status_str_says_success() -> None:
    error_of(from_history(P, entry("success", START, CACHED, ERROR), {}))


def test_a_blocked_branch_is_no_verdict() -> None:
    blocked = ["execution_error", {**ERROR[1], "exception_type": "ExecutionBlocked"}]
    assert from_history(P, entry("success", START, blocked), {}) is COMPLETED
    assert from_history(P, entry("success", START, blocked, SUCCESS), {}) is COMPLETED


def test_without_messages_status_str_is_the_verdict() -> None:
    assert from_history(P, entry("success"), {}) is COMPLETED
    assert "no reason" in str(error_of(from_history(P, entry("error"), {})))


@pytest.mark.parametrize("old", [{}, {"status": None}, {"status": "odd"}])
def test_an_entry_of_an_old_server_without_status_is_completed(old: dict[str, Any]) -> None:
    assert from_history(P, old, {}) is COMPLETED


def test_messages_of_a_newer_server_are_strings() -> None:
    assert from_history(P, entry("success", "execution_start", "execution_success"), {}) is COMPLETED
    error = error_of(from_history(P, entry("error", "execution_start", "execution_error: no: not\n"), {}))
    assert (error.exception_message, error.node_id) == ("no: not\n", "")
    verdict = from_history(P, entry("error", "execution_start", "execution_interrupted"), {})
    assert isinstance(verdict.error, JobInterrupted)


def test_the_id_is_the_one_that_was_asked_for_whatever_the_message_says() -> None:
    odd = ["execution_error", {**ERROR[1], "prompt_id": 3}]
    assert error_of(from_history(P, entry("error", odd), {})).prompt_id == P


def test_an_error_message_that_cannot_be_read_is_a_failure_all_the_same() -> None:
    for odd in (["execution_error", {**ERROR[1], "traceback": 3}], ["execution_error", 3], ["execution_error", None]):
        error_of(from_history(P, entry("error", odd), {}))


@pytest.mark.parametrize("odd", [[], ["execution_success"], [3, {}], 3, None, {}, "", "odd", ["odd", {}]])
def test_messages_of_another_shape_are_passed_over(odd: Any) -> None:
    assert from_history(P, entry("success", SUCCESS, odd), {}) is COMPLETED
    error_of(from_history(P, entry("error", odd), {}))


@given(given_by.json_objects, st.lists(given_by.json_values))
def test_any_history_entry_gives_a_verdict(odd: dict[str, Any], messages: list[Any]) -> None:
    for any_entry in (odd, {"status": odd}, entry("error", *messages), entry("error", ["execution_error", odd])):
        assert from_history(P, any_entry, {}).state in (JobState.COMPLETED, JobState.FAILED)


def test_an_interrupt_names_its_prompt() -> None:
    verdict = interrupted(P)
    assert isinstance(verdict.error, JobInterrupted) and verdict.error.prompt_id == P


@pytest.mark.parametrize(
    ("exception_type", "message", "memory"),
    [
        ("torch.OutOfMemoryError", "Allocation on device", True),
        ("torch.cuda.OutOfMemoryError", "", True),
        ("MemoryError", "", True),
        ("OOMError", "", True),
        ("RuntimeError", "CUDA error: out of memory", True),
        ("RuntimeError", "MPS backend Out Of Memory", True),
        ("RuntimeError", "DefaultCPUAllocator: not enough memory: you tried", True),
        ("RuntimeError", "the memory of an elephant", False),
        ("OutOfMemoryErrorHandler", "", False),
    ],
)
def test_running_out_of_memory_is_known_by_type_or_words(exception_type: str, message: str, memory: bool) -> None:
    verdict = failed(events.ExecutionError(P, "5", "KSampler", exception_type, message), None)
    assert isinstance(verdict.error, OutOfMemory) is memory
    assert verdict.state is JobState.FAILED


def test_states_are_the_server_s_words() -> None:
    assert [str(state) for state in JobState] == [
        "pending",
        "in_progress",
        "completed",
        "failed",
        "cancelled",
        "lost",
    ]
