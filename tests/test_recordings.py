"""Real servers' frames: read, written again, and routed to the end that the server's own history shows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from acomfy import events, verdict
from acomfy.frames import decode, encode
from acomfy.outputs import from_history
from acomfy.router import TrackedPrompt
from acomfy.verdict import JobState

from .recorded import RECORDINGS, binary_frames, history, replay, text_frames

UNHEARD = {
    "c0e1e74c": "posted while no socket was open (t_not_connected)",
    "b1b662e3": "posted while no socket was open (t_not_connected)",
    "b40056b8": "posted while no socket was open (t_not_connected of the newer server)",
    "dc5d5061": "the socket was deaf (m_reconnect)",
    "c79bb2e0": "a frame was too big for the recorder, which broke the connection (s_large_frames)",
    "d7c821ec": "the socket of this client was not recorded (y_slow_consumer)",
}
"""Prompts of which a recording holds the history but not the end: only a look at the server can tell."""

MORE_IN_HISTORY = {"abbd6334": "history holds the cached output of a node that was not asked for (d2_cached_edge)"}
CYCLES = {"graph.DependencyCycleError"}

pytestmark = pytest.mark.parametrize("recording", RECORDINGS)


def ended_prompts(recording: str) -> list[tuple[TrackedPrompt, dict[str, Any]]]:
    """Give the prompts of a recording that have a history entry; of an id that was posted twice, the last."""
    entries = history(recording)
    prompts = {prompt.prompt_id: prompt for client in replay(recording).values() for prompt in client.prompts}
    return [(prompt, entries[prompt_id]) for prompt_id, prompt in prompts.items() if prompt_id in entries]


def test_every_text_frame_is_written_again_as_it_was(recording: str) -> None:
    for frame in text_frames(recording):
        event = decode(frame)
        written = encode(event)
        assert isinstance(written, str)
        assert json.loads(written) == json.loads(frame)
        assert decode(written) == event


def test_every_binary_frame_is_written_again_as_it_was(recording: str) -> None:
    for frame in binary_frames(recording):
        assert encode(decode(frame)) == frame


def test_only_custom_nodes_send_what_is_unknown(recording: str) -> None:
    unknown = {event.type for frame in text_frames(recording) if isinstance(event := decode(frame), events.Unknown)}
    assert unknown <= {"scratch.custom_event"}


def test_every_prompt_ends_in_the_state_that_history_shows(recording: str) -> None:
    for prompt, entry in ended_prompts(recording):
        if prompt.prompt_id[:8] in UNHEARD:
            assert prompt.verdict is None
            continue
        assert prompt.verdict is not None and prompt.over
        expected = verdict.from_history(prompt.prompt_id, entry, prompt.titles())
        assert prompt.verdict.state is expected.state
        assert type(prompt.verdict.error) is type(expected.error)
        if isinstance(entry["status"]["messages"][0], list):  # the newer server's strings tell less
            assert str(prompt.verdict.error) == str(expected.error)


def test_status_str_says_otherwise_only_of_a_dependency_cycle(recording: str) -> None:
    for prompt, entry in ended_prompts(recording):
        if prompt.verdict is not None and (prompt.verdict.error is None) != (
            entry["status"]["status_str"] == "success"
        ):
            assert getattr(prompt.verdict.error, "exception_type", None) in CYCLES


def test_every_prompt_ends_with_the_outputs_that_history_shows(recording: str) -> None:
    for prompt, entry in ended_prompts(recording):
        if prompt.prompt_id[:8] in UNHEARD or prompt.run is None:
            continue
        shown = dict(from_history(entry))
        if prompt.prompt_id[:8] in MORE_IN_HISTORY:
            shown = {node_id: output for node_id, output in shown.items() if node_id in prompt.run.executed}
        assert prompt.run.executed == shown


def test_every_frame_is_readable_and_every_loss_is_known(recording: str) -> None:
    for client in replay(recording).values():
        assert client.router.unreadable == 0
        for prompt in client.prompts:
            if prompt.verdict is not None and client.router.generation == 0:
                assert prompt.intact


def test_streamed_pictures_are_png_and_previews_are_jpeg(recording: str) -> None:
    """The server makes them so (SaveImageWebsocket, latent_preview.py); the router goes by nodes alone."""
    for client in replay(recording).values():
        runs = [prompt.run for prompt in client.prompts if prompt.run is not None]
        streamed = [image.mime for run in runs for images in run.streamed.values() for image in images]
        previews = [run.preview.mime for run in runs if run.preview is not None]
        assert set(streamed) <= {"image/png"} and set(previews) <= {"image/jpeg"}
        if not client.router.unattributed:
            assert len(streamed) == client.pictures.count("image/png")


def test_pictures_are_unattributed_only_where_strangers_broadcast(recording: str) -> None:
    broadcasts = ("e_two_clients", "e2_foreign_client", "o_feature_flags")
    for client in replay(recording).values():
        assert not client.router.unattributed or any(name in recording for name in broadcasts)


def test_progress_never_goes_back_and_is_one_on_success_alone(recording: str) -> None:
    for client in replay(recording).values():
        for prompt, seen in client.progress.items():
            assert seen == sorted(seen) and seen[0] >= 0.0 and seen[-1] <= 1.0
            succeeded = prompt.verdict is not None and prompt.verdict.state is JobState.COMPLETED
            assert (prompt.progress() == 1.0) is succeeded
