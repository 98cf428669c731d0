"""History entries and jobs, read off the answers of servers old and new, and off nonsense."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import acomfy
from acomfy import listings, server_info
from acomfy.look import read_queue
from acomfy.verdict import JobState

from . import strategies as given_by
from .conftest import FUZZ
from .recorded import RECORDINGS, history, lines

ENTRY: dict[str, Any] = {
    "prompt": [
        3,
        "a",
        {"1": {"class_type": "X", "inputs": {}}},
        {"client_id": "me", "create_time": 1_700_000_000_000},
        ["1"],
    ],
    "outputs": {"1": {"images": [{"filename": "x.png", "subfolder": "", "type": "output"}], "animated": [False]}},
    "status": {
        "status_str": "success",
        "completed": True,
        "messages": [
            ["execution_start", {"prompt_id": "a", "timestamp": 1_700_000_001_000}],
            ["execution_cached", {"nodes": [], "prompt_id": "a", "timestamp": 1_700_000_001_100}],
            ["execution_success", {"prompt_id": "a", "timestamp": 1_700_000_003_500}],
        ],
    },
}


def ended(state: str, **changes: Any) -> dict[str, Any]:
    """Make an entry of a prompt that ended with this message."""
    last = [state, {"prompt_id": "a", "timestamp": 1_700_000_002_000, "node_id": "1", "exception_message": "no"}]
    status = {"status_str": "error", "completed": False, "messages": [*ENTRY["status"]["messages"][:1], last]}
    return {**ENTRY, "status": status, **changes}


def test_an_entry_tells_how_it_ended_when_and_what_was_run() -> None:
    entry = listings.read_history_entry("a", ENTRY)
    assert (entry.state, entry.error, entry.number, entry.targets) == (JobState.COMPLETED, None, 3.0, ("1",))
    assert (entry.started_at, entry.ended_at, entry.duration) == (1_700_000_001.0, 1_700_000_003.5, 2.5)
    assert entry.prompt["1"]["class_type"] == "X" and entry.extra_data["client_id"] == "me"
    assert entry.outputs["1"]["images"][0]["filename"] == "x.png" and entry.raw is ENTRY


def test_failures_and_interruptions_are_told_apart_though_both_are_errors() -> None:
    failed = listings.read_history_entry("a", ended("execution_error"))
    stopped = listings.read_history_entry("a", ended("execution_interrupted"))
    assert (failed.state, stopped.state) == (JobState.FAILED, JobState.CANCELLED)
    assert isinstance(failed.error, acomfy.JobFailed) and isinstance(stopped.error, acomfy.JobInterrupted)
    assert listings.ended_job(failed).execution_error is not None
    assert listings.ended_job(stopped).execution_error is None


def test_an_entry_of_the_fork_is_read_as_far_as_it_tells() -> None:
    prompt = {"priority": 2, "prompt_id": "a", "prompt": {}, "extra_data": {}, "outputs_to_execute": ["1"]}
    status = {"status_str": "success", "completed": True, "messages": ["execution_start", "execution_success"]}
    entry = listings.read_history_entry("a", {**ENTRY, "prompt": prompt, "status": status})
    assert (entry.state, entry.number, entry.started_at, entry.duration) == (JobState.COMPLETED, 2.0, None, None)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_every_recorded_entry_is_read(recording: str) -> None:
    for entry in listings.read_history(history(recording)):
        assert entry.state in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)
        assert (entry.error is None) == (entry.state is JobState.COMPLETED)


def test_the_jobs_of_the_recorded_server_are_read_or_it_said_no() -> None:
    read = [
        listings.read_jobs(line["json"])
        for line in lines("fork-0.10.0/jobs_api.jsonl")
        if line["ev"] == "http" and line["path"].partition("?")[0] == "/api/jobs" and line["status"] == 200
    ]
    assert read and all(job.prompt_id and job.state for page in read for job in page)


def test_a_job_that_is_listed_twice_is_given_once_and_as_ended() -> None:
    listed = [{"id": "a", "status": "in_progress"}, {"id": "a", "status": "completed", "execution_end_time": 2_000}]
    page = listings.read_jobs(
        {"jobs": listed, "pagination": {"total": 2, "offset": 0, "limit": None, "has_more": False}}
    )
    assert [(job.prompt_id, job.state) for job in page] == [("a", "completed")]


def test_times_in_seconds_and_in_milliseconds_are_told_apart() -> None:
    seconds = listings.read_job({"id": "a", "status": "pending", "create_time": 1_700_000_000})
    milliseconds = listings.read_job({"id": "a", "status": "pending", "create_time": 1_700_000_000_000})
    assert seconds.created_at == milliseconds.created_at == 1_700_000_000.0


def test_a_state_that_is_not_known_yet_is_given_as_it_is() -> None:
    assert listings.read_job({"id": "a", "status": "queued_limited", "more": [1]}).state == "queued_limited"


# --- The list that is made where there is no jobs API -----------------------------------------------------------------


def queue_item(number: float, prompt_id: str, **extra_data: Any) -> list[Any]:
    return [number, prompt_id, {}, extra_data, []]


QUEUE = read_queue({"queue_running": [queue_item(5, "r")], "queue_pending": [queue_item(9, "z"), queue_item(7, "y")]})
HISTORY = listings.read_history({"a": ENTRY, "f": ended("execution_error"), "s": ended("execution_interrupted")})


def ids(page: listings.JobPage) -> str:
    return "".join(job.prompt_id for job in page)


def test_queue_and_history_make_one_list_newest_first() -> None:
    page = listings.list_jobs(QUEUE, HISTORY)
    assert (ids(page), page.total, page.has_more) == ("zyrsfa", 6, False)
    assert ids(listings.list_jobs(QUEUE, HISTORY, descending=False)) == "afsryz"


def test_the_list_is_filtered_and_cut_as_the_server_would() -> None:
    assert ids(listings.list_jobs(QUEUE, HISTORY, states=["pending"])) == "zy"
    assert ids(listings.list_jobs(QUEUE, HISTORY, states=["failed", "cancelled"])) == "sf"
    part = listings.list_jobs(QUEUE, HISTORY, limit=2, offset=1)
    assert (ids(part), part.total, part.offset, part.has_more) == ("yr", 6, 1, True)
    assert ids(listings.list_jobs(QUEUE, HISTORY, limit=2, offset=4)) == "fa"
    assert not listings.list_jobs(QUEUE, HISTORY, limit=2, offset=4).has_more


def test_the_list_is_sorted_by_duration_when_that_is_asked_for() -> None:
    page = listings.list_jobs(QUEUE, HISTORY, sort_by="execution_duration", limit=1)
    assert ids(page) == "a"


def test_a_prompt_that_ended_between_the_two_reads_is_given_as_ended() -> None:
    queue = read_queue({"queue_running": [queue_item(3, "a")], "queue_pending": []})
    page = listings.list_jobs(queue, HISTORY)
    assert [job.state for job in page if job.prompt_id == "a"] == [JobState.COMPLETED]


def test_jobs_are_found_by_the_id_of_their_workflow() -> None:
    item = queue_item(1, "w", extra_pnginfo={"workflow": {"id": "fox"}})
    queue = read_queue({"queue_running": [], "queue_pending": [item, queue_item(2, "x", extra_pnginfo=None)]})
    assert ids(listings.list_jobs(queue, (), workflow_id="fox")) == "w"


def test_what_is_made_of_an_entry_is_what_the_jobs_api_would_tell() -> None:
    job = listings.ended_job(listings.read_history_entry("a", ENTRY))
    assert (job.outputs_count, job.created_at, job.number) == (1, 1_700_000_000.0, 3.0)
    assert job.preview_output is not None
    assert (job.preview_output["filename"], job.preview_output["nodeId"], job.preview_output["mediaType"]) == (
        "x.png",
        "1",
        "images",
    )


# --- The server about itself -----------------------------------------------------------------------------------------


def test_what_a_real_server_tells_about_itself_is_read() -> None:
    recorded = {line["path"]: line.get("json") for line in lines("0.3.64/p_endpoints.jsonl") if line["ev"] == "http"}
    stats = server_info.read_system_stats(recorded["/system_stats"])
    assert (stats.comfyui_version, stats.os, len(stats.devices)) == ("0.3.64", "posix", 1)
    assert stats.devices[0].index is None and stats.devices[0].vram_total > 0 and stats.ram_total > 0
    assert stats.raw is recorded["/system_stats"]


def test_several_devices_and_new_fields_are_kept() -> None:
    device = {
        "name": "cuda:0 NVIDIA",
        "type": "cuda",
        "index": 0,
        "vram_total": 24 * 2**30,
        "vram_free": 2.5e9,
        "new": 1,
    }
    body = {"system": {"os": "linux", "new": 1}, "devices": [device, {**device, "index": 1}, "nonsense"]}
    stats = server_info.read_system_stats(body)
    assert [found.index for found in stats.devices] == [0, 1]
    assert stats.devices[0].vram_free == 2_500_000_000 and stats.devices[0].raw["new"] == 1
    assert stats.comfyui_version is None


@pytest.mark.parametrize("body", [None, [], {}, {"system": []}, {"system": {}, "devices": {}}, "<html>"])
def test_nonsense_instead_of_system_stats_is_refused(body: Any) -> None:
    with pytest.raises(acomfy.ProtocolError, match="GET /system_stats"):
        server_info.read_system_stats(body)


def test_users_files_are_read_and_their_directories_left_out() -> None:
    entries = [
        {"name": "workflows", "path": "workflows", "type": "directory"},
        {"name": "a.json", "path": "workflows/a.json", "type": "file", "size": 3, "modified": 1.7e9},
        {"name": "b.json", "path": "workflows/b.json", "type": "file"},
        7,
    ]
    first, second = server_info.read_user_files(entries)
    assert (first.path, first.size, first.modified_at) == ("workflows/a.json", 3, 1.7e9)
    assert (second.size, second.modified_at) == (None, None)


def test_an_asset_is_read_and_one_without_an_id_refused() -> None:
    asset = server_info.read_asset({"id": "i", "name": "n", "tags": ["input", 3], "size": 0, "new": 1})
    assert (asset.id, asset.name, asset.hash, asset.size, asset.tags) == ("i", "n", None, 0, ("input",))
    with pytest.raises(acomfy.ProtocolError):
        server_info.read_asset({"name": "n"})


# --- Anything --------------------------------------------------------------------------------------------------------

anything = given_by.json_values | st.floats()
odd_entry = st.dictionaries(
    st.sampled_from(["prompt", "outputs", "status", "meta"]),
    anything | st.fixed_dictionaries({"messages": st.lists(st.tuples(st.just("execution_start"), anything).map(list))}),
)
odd_job = st.fixed_dictionaries({"id": anything, "status": anything | st.sampled_from(list(JobState))}) | anything


@settings(max_examples=30 * FUZZ)
@given(anything | st.dictionaries(st.text(), odd_entry))
def test_any_history_is_read_or_refused(body: Any) -> None:
    try:
        entries = listings.read_history(body)
    except acomfy.ProtocolError:
        return
    for entry in entries:
        assert entry.state in tuple(JobState)
        listings.ended_job(entry)


@settings(max_examples=30 * FUZZ)
@given(anything | st.fixed_dictionaries({"jobs": st.lists(odd_job) | anything, "pagination": anything}))
def test_any_list_of_jobs_is_read_or_refused(body: Any) -> None:
    try:
        page = listings.read_jobs(body)
    except acomfy.ProtocolError:
        return
    assert page.total >= 0 and all(isinstance(job.state, str) for job in page)


@settings(max_examples=30 * FUZZ)
@given(anything | st.fixed_dictionaries({"system": anything, "devices": anything | st.lists(anything)}))
def test_any_system_stats_are_read_or_refused(body: Any) -> None:
    with suppress(acomfy.ProtocolError):
        assert server_info.read_system_stats(body).raw is body


@settings(max_examples=30 * FUZZ)
@given(st.lists(anything | st.dictionaries(st.sampled_from(["path", "type", "size", "modified", "t", "m"]), anything)))
def test_any_files_and_log_entries_are_read(body: list[Any]) -> None:
    assert len(server_info.read_user_files(body)) <= len(body)
    assert len(server_info.read_log_entries(body)) <= len(body)
