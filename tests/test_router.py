"""The router, rule by rule; no event loop, no socket, no clock."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy import events
from acomfy.errors import JobFailed, JobInterrupted, OutOfMemory
from acomfy.frames import encode
from acomfy.router import Delivery, Router, TrackedPrompt
from acomfy.verdict import JobState, Verdict

from . import strategies as given_by
from .strategies import JPEG, KNOWN_TYPES, PNG, metadata_frame, text_frame

GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {}, "_meta": {"title": "Load"}},
    "5": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "steps": 4}, "_meta": {"title": "The sampler"}},
    "8": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["5", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["5", 0]}},
}
A, B, FOREIGN = "aaaa", "bbbb", "ffff"
UI = {"images": [{"filename": "a_00001_.png", "subfolder": "", "type": "output"}]}
RULED = (
    "execution_start",
    "execution_cached",
    "executing",
    "executed",
    "execution_success",
    "execution_error",
    "execution_interrupted",
)


class Told:
    """A router with prompts, and the frames of a server as one-line calls."""

    def __init__(self, *prompt_ids: str, streams: tuple[str, ...] = ("8",), listeners: int = 1) -> None:
        self.router = Router()
        self.prompts: dict[str, TrackedPrompt] = {}
        for prompt_id in prompt_ids or (A,):
            self.register(prompt_id, streams, listeners)

    def register(self, prompt_id: str, streams: tuple[str, ...] = ("8",), listeners: int = 1) -> TrackedPrompt:
        prompt = TrackedPrompt(prompt_id, json.dumps(GRAPH).encode(), frozenset(streams))
        prompt.listeners = listeners
        self.prompts[prompt_id] = prompt
        self.router.register(prompt)
        return prompt

    def says(self, kind: str, **data: Any) -> Delivery | None:
        return self.router.receive_text(text_frame(kind, data))

    def start(self, prompt_id: str = A) -> Delivery | None:
        return self.says("execution_start", prompt_id=prompt_id, timestamp=1)

    def cached(self, *nodes: str, prompt_id: str = A) -> Delivery | None:
        return self.says("execution_cached", nodes=list(nodes), prompt_id=prompt_id, timestamp=2)

    def executing(self, node: str | None, prompt_id: str = A) -> Delivery | None:
        if node is None:
            return self.says("executing", node=None, prompt_id=prompt_id)
        return self.says("executing", node=node, display_node=node.partition(".")[0], prompt_id=prompt_id)

    def progress(self, value: float, maximum: float, node: str = "5", prompt_id: str = A) -> Delivery | None:
        return self.says("progress", value=value, max=maximum, prompt_id=prompt_id, node=node)

    def state(self, *nodes: tuple[str, float, float, str], prompt_id: str = A) -> Delivery | None:
        by_id = {node: events.NodeProgress(node, value, top, state, node) for node, value, top, state in nodes}
        return self.router.receive(encode(events.ProgressState(prompt_id, by_id)))

    def executed(self, node: str, output: Any = UI, prompt_id: str = A) -> Delivery | None:
        return self.says("executed", node=node, display_node=node, output=output, prompt_id=prompt_id)

    def success(self, prompt_id: str = A) -> Delivery | None:
        return self.says("execution_success", prompt_id=prompt_id, timestamp=9)

    def error(self, exception_type: str = "RuntimeError", prompt_id: str = A, **more: Any) -> Delivery | None:
        data = {"prompt_id": prompt_id, "node_id": "5", "node_type": "KSampler", "exception_type": exception_type}
        return self.says("execution_error", **{**data, "exception_message": "no\n", "traceback": ["tb"], **more})

    def interrupted(self, prompt_id: str = A) -> Delivery | None:
        return self.says("execution_interrupted", prompt_id=prompt_id, node_id="5", node_type="KSampler", executed=[])

    def picture(self, image: bytes = JPEG) -> Delivery | None:
        """Send a picture without metadata (event 1)."""
        return self.router.receive_binary(struct.pack(">II", 1, 2 if image.startswith(PNG) else 1) + image)

    def picture_of(self, node: str, image: bytes = JPEG, prompt_id: str | None = A) -> Delivery | None:
        """Send a picture with metadata (event 4)."""
        return self.router.receive_binary(metadata_frame({"node_id": node, "prompt_id": prompt_id}, image))

    def text(self, text: str) -> Delivery | None:
        """Send a text of a node (event 3)."""
        return self.router.receive(encode(events.Text("5", text)))

    def outcome(self, prompt_id: str = A) -> Verdict:
        verdict = self.prompts[prompt_id].verdict
        assert verdict is not None
        return verdict

    def streamed(self, prompt_id: str = A) -> dict[str, list[bytes]]:
        run = self.prompts[prompt_id].run
        return {} if run is None else {node: [image.image for image in of] for node, of in run.streamed.items()}


@pytest.fixture
def told() -> Told:
    return Told()


# --- Whose message is it -------------------------------------------------------------------------------------------


def test_each_message_reaches_the_prompt_that_it_names_and_no_other() -> None:
    told = Told(A, B)
    a, b = told.prompts[A], told.prompts[B]
    assert told.start(A) == (a, events.ExecutionStart(A, 1))
    assert told.executed("9", prompt_id=B) == (b, events.Executed(B, "9", "9", UI))
    assert a.run is not None and a.run.executed == {}
    assert b.run is not None and b.run.executed == {"9": ("9", UI)}


def test_messages_about_strangers_are_normal_and_change_nothing() -> None:
    told = Told(A)
    for kind in KNOWN_TYPES:
        assert told.says(kind, prompt_id=FOREIGN, value=1, max=2, nodes={}, node="1", entries=[]) is None
    assert told.prompts[A].state is JobState.PENDING and not told.prompts[A].touched
    assert (told.router.generation, told.router.unattributed) == (0, 0)


def test_who_does_not_listen_is_told_the_verdict_alone() -> None:
    told = Told(A, listeners=0)
    told.start()
    for delivery in (
        told.cached("1"),
        told.executing("5"),
        told.progress(1, 4),
        told.state(("5", 1, 4, "running")),
        told.picture(),
        told.executed("9"),
        told.says("custom", prompt_id=A),
    ):
        assert delivery is None
    assert told.success() == (told.prompts[A], None)


def test_every_message_marks_its_prompt_as_heard_of(told: Told) -> None:
    prompt = told.prompts[A]
    sends: list[Callable[[], object]] = [
        told.start,
        told.cached,
        lambda: told.executing("5"),
        lambda: told.progress(1, 4),
        told.state,
        told.picture,
        lambda: told.picture_of("5"),
        lambda: told.executed("9"),
    ]
    for send in sends:
        prompt.touched = False
        send()
        assert prompt.touched


def test_the_replay_after_a_reconnect_names_no_prompt_and_tells_nothing(told: Told) -> None:
    assert told.says("executing", node="5") is None
    assert told.prompts[A].run is None
    assert told.router.unreadable == 0


def test_messages_of_no_prompt_go_to_those_who_listen_to_the_server(told: Told) -> None:
    status = events.Status(2, "sid")
    custom = events.Unknown("crystools.monitor", {"cpu": 3})
    assert told.router.receive(encode(status)) is None
    assert told.router.receive(encode(custom)) is None
    told.router.listeners = 1
    assert told.router.receive(encode(status)) == (None, status)
    assert told.router.receive(encode(custom)) == (None, custom)
    flags, logs = events.FeatureFlags({"supports_preview_metadata": True}), events.Logs(({"t": "", "m": "x"},))
    assert told.router.receive(encode(flags)) == (None, flags)
    assert told.router.receive(encode(logs)) == (None, logs)
    binary = events.Unknown("binary:9", b"x")
    assert told.router.receive(encode(binary)) == (None, binary)


def test_a_custom_message_that_names_a_prompt_goes_to_that_prompt(told: Told) -> None:
    told.router.listeners = 1
    custom = events.Unknown("vhs", {"prompt_id": A, "x": 1})
    assert told.router.receive(encode(custom)) == (told.prompts[A], custom)
    foreign = events.Unknown("vhs", {"prompt_id": FOREIGN})
    assert told.router.receive(encode(foreign)) == (None, foreign)


def test_status_gives_the_length_of_the_queue_until_a_loss(told: Told) -> None:
    assert told.router.queue_remaining is None
    told.router.receive(encode(events.Status(3)))
    told.router.receive('{"type":"status","data":{"status":{"exec_info":{"queue_remaining":4}}}}')
    assert told.router.queue_remaining == 4
    told.router.receive('{"type": "status", "data": {"status": "odd"}}')
    assert told.router.queue_remaining is None
    assert told.router.statuses == 3
    told.router.receive(encode(events.Status(5)))
    told.router.lose()
    assert told.router.queue_remaining is None


def test_text_frames_may_be_written_in_any_way(told: Told) -> None:
    def compact(event: events.Event) -> str:
        return json.dumps(json.loads(encode(event)), separators=(",", ":"))

    told.router.receive(compact(events.ExecutionStart(A)))
    step = events.Progress(1, 4, A, "5")
    state = events.ProgressState(A, {"5": events.NodeProgress("5", 1, 4, "running", "5")})
    assert told.router.receive(compact(step)) == (told.prompts[A], step)
    assert told.router.receive(compact(state)) == (told.prompts[A], state)
    assert told.router.receive(compact(events.Progress(1, 4, FOREIGN, "5"))) is None
    assert told.router.receive(compact(events.Progress(1, 4))) is None
    assert told.prompts[A].progress() == pytest.approx(1 / 7)


def test_prompt_ids_that_json_escapes_are_routed_as_well() -> None:
    odd = 'with "quotes", \\ and ünï'
    told = Told(odd)
    told.start(odd)
    assert told.progress(1, 4, prompt_id=odd) == (told.prompts[odd], events.Progress(1, 4, odd, "5"))
    assert told.state(prompt_id=odd) == (told.prompts[odd], events.ProgressState(odd, {}))
    told.router.lose()
    assert told.progress(2, 4, prompt_id=odd) == (told.prompts[odd], events.Progress(2, 4, odd, "5"))


# --- Its state -----------------------------------------------------------------------------------------------------


def test_a_prompt_goes_from_pending_over_in_progress_to_its_verdict(told: Told) -> None:
    prompt = told.prompts[A]
    assert (prompt.state, prompt.run) == (JobState.PENDING, None)
    told.start()
    assert (prompt.state, prompt.verdict) == (JobState.IN_PROGRESS, None)
    told.success()
    assert told.outcome().state is JobState.COMPLETED


def test_a_prompt_joined_in_the_middle_is_in_progress_but_not_intact(told: Told) -> None:
    prompt = told.prompts[A]
    told.progress(1, 4)
    assert prompt.state is JobState.IN_PROGRESS
    told.executed("9")
    told.success()
    assert prompt.verdict is not None and not prompt.intact


@pytest.mark.parametrize("send", [Told.cached, lambda told: told.executing("5"), lambda told: told.picture_of("5")])
def test_any_message_shows_that_a_prompt_runs(told: Told, send: Any) -> None:
    send(told)
    assert told.prompts[A].state is JobState.IN_PROGRESS


def test_success_over_an_unbroken_connection_needs_no_history(told: Told) -> None:
    told.start()
    told.executed("9")
    assert told.success() == (told.prompts[A], events.ExecutionSuccess(A, 9))
    assert told.prompts[A].intact and not told.prompts[A].over


def test_success_after_a_loss_is_not_intact(told: Told) -> None:
    told.start()
    told.router.lose()
    told.success()
    assert told.prompts[A].verdict is not None and not told.prompts[A].intact


def test_a_start_after_a_loss_makes_the_run_intact_again(told: Told) -> None:
    told.router.lose()
    told.start()
    told.success()
    assert told.prompts[A].intact


def test_success_precedes_history_and_the_end_after_it_says_that_history_can_be_read(told: Told) -> None:
    prompt = told.prompts[A]
    told.start()
    told.success()
    assert not prompt.over
    assert told.executing(None) == (prompt, events.Executing(None, None, A))
    assert prompt.over


def test_an_end_without_verdict_means_that_the_verdict_was_missed(told: Told) -> None:
    prompt = told.prompts[A]
    prompt.listeners = 0
    told.start()
    assert told.executing(None) == (prompt, None)
    assert prompt.over and prompt.verdict is None


def test_an_error_fails_the_prompt_and_names_node_and_title(told: Told) -> None:
    told.start()
    delivery = told.error()
    assert delivery is not None and isinstance(delivery[1], events.ExecutionError)
    assert told.outcome().state is JobState.FAILED
    error = told.outcome().error
    assert isinstance(error, JobFailed) and not isinstance(error, OutOfMemory)
    assert (error.prompt_id, error.node_id, error.class_type, error.title) == (A, "5", "KSampler", "The sampler")
    assert (error.exception_type, error.traceback) == ("RuntimeError", ("tb",))


def test_running_out_of_memory_is_told_apart(told: Told) -> None:
    told.error("torch.OutOfMemoryError")
    assert isinstance(told.outcome().error, OutOfMemory)


def test_a_blocked_branch_ends_nothing(told: Told) -> None:
    told.start()
    delivery = told.error("ExecutionBlocked", traceback=[])
    assert delivery is not None and told.prompts[A].verdict is None
    told.executed("9")
    told.success()
    assert told.outcome().error is None and told.prompts[A].intact


def test_a_blocked_branch_joined_in_the_middle_shows_that_the_prompt_runs(told: Told) -> None:
    told.error("ExecutionBlocked")
    assert told.prompts[A].state is JobState.IN_PROGRESS


def test_an_interrupt_cancels_the_prompt(told: Told) -> None:
    told.start()
    assert told.interrupted() is not None
    assert told.outcome().state is JobState.CANCELLED
    assert isinstance(told.outcome().error, JobInterrupted)


def test_a_cached_output_node_sends_executed_without_executing_and_maybe_without_output(told: Told) -> None:
    told.start()
    told.cached("1", "5", "9")
    assert told.executed("9", None) == (told.prompts[A], events.Executed(A, "9", "9", None))
    assert told.executed("8", {"text": ["x"]}) is not None
    run = told.prompts[A].run
    assert run is not None and run.executed == {"8": ("8", {"text": ["x"]})}
    assert run.cached == ("1", "5", "9")
    told.success()
    assert told.prompts[A].intact


def test_an_expanded_node_counts_as_the_node_that_it_stands_for(told: Told) -> None:
    told.start()
    told.executing("5.0.0.3")
    told.says("executed", node="9.0.0.1", display_node="9", output=UI, prompt_id=A)
    run = told.prompts[A].run
    assert run is not None
    assert (run.node, run.display_node, list(run.ran)) == ("5.0.0.3", "5", ["5"])
    assert run.executed == {"9.0.0.1": ("9", UI)}


def test_whole_numbers_as_node_ids_are_taken_as_their_digits(told: Told) -> None:
    told.says("executing", node=8, display_node=8, prompt_id=A)
    told.picture(PNG)
    told.says("executed", node=9, display_node=9, output=UI, prompt_id=A)
    run = told.prompts[A].run
    assert run is not None and run.executed == {"9": ("9", UI)}
    assert told.streamed() == {"8": [PNG]}


def test_a_second_start_is_a_new_run_and_the_same_start_twice_is_none(told: Told) -> None:
    told.start()
    told.executed("9")
    told.start()
    run = told.prompts[A].run
    assert run is not None and "9" in run.executed
    told.says("execution_start", prompt_id=A, timestamp=7)
    run = told.prompts[A].run
    assert run is not None and run.executed == {} and run.start == 7


# --- After the verdict ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [Told.success, Told.error, Told.interrupted])
def test_after_the_verdict_nothing_is_delivered_but_that_history_can_be_read(told: Told, verdict: Any) -> None:
    prompt = told.prompts[A]
    told.start()
    verdict(told)
    outcome, run = prompt.verdict, prompt.run
    assert run is not None
    for delivery in (
        told.start(),
        told.cached("1"),
        told.executing("5"),
        told.progress(1, 4),
        told.state(("5", 1, 4, "running")),
        told.picture(),
        told.text("hello"),
        told.picture_of("8", PNG),
        told.executed("9"),
        told.success(),
        told.error(),
        told.error("ExecutionBlocked"),
        told.interrupted(),
        told.says("custom", prompt_id=A),
        told.says("execution_success", prompt_id=A, node=None),
        told.says("executing", prompt_id=A),
    ):
        assert delivery is None
    assert told.executing(None) is not None
    assert prompt.verdict is outcome and prompt.run is run
    assert (run.executed, run.streamed, run.step, run.state) == ({}, {}, None, None)
    assert told.router.unattributed == 2


# --- Pictures ------------------------------------------------------------------------------------------------------


def test_pictures_with_metadata_are_streamed_or_previews_by_their_node(told: Told) -> None:
    told.start()
    for number in range(3):
        told.picture_of("5", JPEG + bytes([number]))
        told.picture_of("8", PNG + bytes([number]))
    run = told.prompts[A].run
    assert told.streamed() == {"8": [PNG + b"\x00", PNG + b"\x01", PNG + b"\x02"]}
    assert run is not None and run.preview is not None and run.preview.image == JPEG + b"\x02"


def test_pictures_without_metadata_belong_to_the_node_of_the_last_executing_or_step(told: Told) -> None:
    """As real servers send it without the flag: each picture after the progress of its node."""
    told.start()
    told.executing("5")
    told.progress(1, 4, "5")
    preview = told.picture(JPEG)
    assert preview is not None and preview[1] == events.PreviewImage(memoryview(JPEG), "image/jpeg", A, "5", "5")
    told.executing("8")
    for number in range(3):
        told.progress(number, 3, "8")
        told.picture(PNG + bytes([number]))
    assert told.streamed() == {"8": [PNG + b"\x00", PNG + b"\x01", PNG + b"\x02"]}


def test_a_picture_belongs_to_a_node_that_just_began_and_not_to_the_step_before(told: Told) -> None:
    told.start()
    told.executing("5")
    told.progress(4, 4, "5")
    told.executing("8")
    told.picture(PNG)
    assert told.streamed() == {"8": [PNG]}


def test_two_streaming_nodes_keep_their_pictures_apart_and_in_order() -> None:
    told = Told(A, streams=("8", "9"))
    told.start()
    for node in ("9", "8"):
        told.executing(node)
        for number in range(2):
            told.progress(number, 2, node)
            told.picture(PNG + node.encode() + bytes([number]))
    assert told.streamed() == {
        "9": [PNG + b"9\x00", PNG + b"9\x01"],
        "8": [PNG + b"8\x00", PNG + b"8\x01"],
    }
    run = told.prompts[A].run
    assert run is not None
    assert [(image.node_id, image.index) for image in run.streamed_images()] == [("9", 0), ("9", 1), ("8", 0), ("8", 1)]


def test_two_nodes_that_run_at_once_keep_their_pictures_apart_by_their_steps() -> None:
    told = Told(A, streams=("8", "9"))
    told.start()
    told.executing("8")
    told.executing("9")
    told.progress(0, 1, "8")
    told.picture(PNG + b"8")
    told.progress(0, 1, "9")
    told.picture(PNG + b"9")
    assert told.streamed() == {"8": [PNG + b"8"], "9": [PNG + b"9"]}


def test_a_preview_of_an_expanded_node_tells_the_node_that_it_stands_for(told: Told) -> None:
    told.start()
    told.executing("5.0.0.3")
    told.picture()
    run = told.prompts[A].run
    assert run is not None and run.preview is not None
    assert (run.preview.node_id, run.preview.display_node_id) == ("5.0.0.3", "5")


def test_a_preview_of_another_node_than_the_one_that_began_last_stands_for_itself(told: Told) -> None:
    told.start()
    told.executing("5.0.0.3")
    told.progress(1, 4, "1")
    told.picture()
    run = told.prompts[A].run
    assert run is not None and run.preview is not None
    assert (run.preview.node_id, run.preview.display_node_id) == ("1", "1")


def test_an_animated_preview_belongs_to_the_node_that_it_names(told: Told) -> None:
    told.start()
    told.executing("8")
    told.router.receive_binary(struct.pack(">III16p", 1, 1, 0, b"5") + JPEG)
    run = told.prompts[A].run
    assert told.streamed() == {}
    assert run is not None and run.preview is not None and run.preview.node_id == "5"


def test_a_picture_before_any_node_is_a_preview(told: Told) -> None:
    told.start()
    told.picture()
    run = told.prompts[A].run
    assert run is not None and run.preview is not None and run.preview.node_id is None


def test_a_picture_without_metadata_outside_a_window_is_dropped_and_counted(told: Told) -> None:
    assert told.picture() is None
    assert told.router.unattributed == 1 and told.prompts[A].run is None


@pytest.mark.parametrize(
    "close",
    [
        lambda told: told.start(FOREIGN),
        lambda told: told.executing("1", FOREIGN),
        lambda told: told.progress(1, 2, prompt_id=FOREIGN),
        lambda told: told.state(prompt_id=FOREIGN),
        lambda told: told.says("progress_state", nodes={}, prompt_id=FOREIGN),
        lambda told: told.interrupted(FOREIGN),
        lambda told: told.router.lose(),
        lambda told: told.router.receive_text(b"nonsense"),
        lambda told: told.router.receive_binary(b"x"),
        lambda told: told.executing(None),
        lambda told: told.success(),
        lambda told: told.error(),
        lambda told: told.interrupted(),
        lambda told: told.router.forget(told.prompts[A]),
        lambda told: told.router.rekey(told.prompts[A], "other"),
        lambda told: told.register(A),
    ],
)
def test_the_window_closes_when_its_prompt_may_not_be_the_running_one(told: Told, close: Any) -> None:
    told.start()
    told.executing("8")
    told.picture(PNG)
    close(told)
    assert told.picture(PNG) is None
    assert told.router.unattributed == 1
    assert told.text("whose?") is None


@pytest.mark.parametrize("foreign", [events.Status(3), events.Unknown("custom", {}), events.Unknown("binary:9", b"")])
def test_the_window_stays_open_over_what_tells_nothing_of_the_running_prompt(told: Told, foreign: events.Event) -> None:
    told.start()
    told.executing("8")
    told.router.receive(encode(foreign))
    told.says("executing", node="3")
    told.picture_of("1", prompt_id=FOREIGN)
    told.picture(PNG)
    assert told.streamed() == {"8": [PNG]}


def test_the_window_stays_open_when_another_prompt_comes_or_goes() -> None:
    told = Told(A, B)
    told.start()
    told.executing("8")
    told.router.forget(told.prompts[B])
    told.register("cccc")
    told.picture(PNG)
    assert told.streamed() == {"8": [PNG]}


def test_the_window_moves_with_the_running_prompt() -> None:
    told = Told(A, B)
    told.start(A)
    told.executing("8", A)
    told.picture(PNG + b"a")
    told.start(B)
    told.executing("8", B)
    told.picture(PNG + b"b")
    assert (told.streamed(A), told.streamed(B)) == ({"8": [PNG + b"a"]}, {"8": [PNG + b"b"]})


def test_a_foreign_picture_with_metadata_is_dropped_and_counted(told: Told) -> None:
    told.start()
    assert told.picture_of("8", PNG, FOREIGN) is None
    assert told.picture_of("8", PNG, None) is None
    assert told.router.unattributed == 2 and told.streamed() == {}


def test_text_of_a_node_goes_to_the_prompt_of_the_window_or_to_the_server_s_listeners(told: Told) -> None:
    told.router.listeners = 1
    assert told.text("a") == (None, events.Text("5", "a"))
    told.start()
    assert told.text("b") == (told.prompts[A], events.Text("5", "b"))
    told.prompts[A].listeners = 0
    assert told.text("c") is None


# --- Streams and losses --------------------------------------------------------------------------------------------


def test_a_stream_is_complete_when_its_start_and_the_verdict_fall_into_one_generation(told: Told) -> None:
    prompt = told.prompts[A]
    told.router.lose()
    told.progress(1, 4)  # joined in the middle, before the streaming node
    told.executing("8")
    told.success()
    assert not prompt.intact
    assert prompt.incomplete_stream(["8"]) is None
    assert prompt.incomplete_stream([]) is None


def test_a_stream_is_incomplete_when_a_loss_came_between(told: Told) -> None:
    told.start()
    told.executing("8")
    told.picture(PNG)
    told.router.lose()
    told.executing("8")  # staged again: pictures before may be missing all the same
    told.success()
    assert told.prompts[A].incomplete_stream(["8"]) == "8"


def test_a_stream_is_incomplete_when_its_start_was_missed_or_nothing_was_heard(told: Told) -> None:
    assert told.prompts[A].incomplete_stream(["8"]) == "8"
    told.start()
    told.success()
    assert told.prompts[A].incomplete_stream(["8"]) == "8"


def test_nothing_may_be_missing_when_every_output_node_began_before_the_verdict_without_a_loss(told: Told) -> None:
    """Joined in the middle, but before the output nodes began; node 8 showed nothing, which is not a miss."""
    told.executing("8")
    told.executing("9")
    told.success()
    assert not told.prompts[A].may_lack_outputs()


def test_an_output_that_is_here_cannot_be_missing_whatever_came_after_it(told: Told) -> None:
    told.start()
    told.executed("9")
    told.says("executed", node="8.0.0.1", display_node="8", output=UI, prompt_id=A)
    told.router.lose()
    told.success()
    assert not told.prompts[A].may_lack_outputs()


def test_an_output_may_be_missing_when_its_node_was_not_seen_to_begin_since_the_last_loss(told: Told) -> None:
    assert told.prompts[A].may_lack_outputs()
    told.start()
    told.executing("8")
    told.executing("9")
    told.router.lose()
    told.executing("8")
    told.success()
    assert told.prompts[A].may_lack_outputs()


# --- Frames that cannot be read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", ["nonsense", "{}", "[]", '{"type": 3}', b"", b"\x00\x00\x00\x04\x00\x00\x00\x09{}"])
def test_an_unreadable_frame_is_a_loss(told: Told, frame: str | bytes) -> None:
    told.start()
    assert told.router.receive(frame) is None
    assert (told.router.unreadable, told.router.generation) == (1, 1)
    told.success()
    assert not told.prompts[A].intact


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("execution_cached", {"nodes": "abc"}),
        ("execution_cached", {"nodes": [[]]}),
        ("execution_cached", {}),
        ("executing", {"node": {}}),
        ("executing", {"node": "1", "display_node": []}),
        ("executed", {"node": {}, "output": None}),
        ("executed", {"node": "1", "output": []}),
        ("executed", {"output": {}}),
        ("execution_error", {"exception_type": 3}),
        ("execution_interrupted", {"executed": "abc"}),
        ("execution_interrupted", {"node_type": []}),
    ],
)
@pytest.mark.parametrize("listeners", [0, 1])
def test_a_malformed_message_about_a_live_prompt_is_a_loss(kind: str, data: dict[str, Any], listeners: int) -> None:
    told = Told(A, listeners=listeners)
    told.start()
    assert told.says(kind, prompt_id=A, **data) is None
    assert (told.router.unreadable, told.router.generation) == (1, 1)
    assert told.prompts[A].verdict is None


@pytest.mark.parametrize("kind", RULED)
@pytest.mark.parametrize("data", [None, [], "abc", 3, {}, {"prompt_id": []}])
def test_a_message_that_must_name_a_prompt_and_does_not_is_a_loss(told: Told, kind: str, data: Any) -> None:
    if (kind, data) == ("executing", {}):
        return  # the form of the replay
    told.router.receive_text(text_frame(kind, data))
    assert (told.router.unreadable, told.router.generation) == (1, 1)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("status", {"sid": 3}),
        ("feature_flags", []),
        ("logs", {"entries": 3}),
        ("progress", {"value": 1, "max": {}, "prompt_id": A}),
        ("progress", {"value": 1, "max": 1, "prompt_id": 3}),
        ("progress", {"x": 1}),
        ("progress_state", {"nodes": 3, "prompt_id": A}),
        ("progress_state", {"prompt_id": A, "nodes": 3, "x": []}),
    ],
)
def test_a_malformed_message_that_is_no_output_is_counted_and_is_no_loss(told: Told, kind: str, data: Any) -> None:
    """Custom nodes were seen to use these names for their own messages."""
    told.router.listeners = 1
    told.start()
    delivery = told.router.receive_text(text_frame(kind, data))
    if delivery is None:
        assert told.router.unreadable == 1
    else:  # its nodes are not parsed until they are read
        assert isinstance(delivery[1], events.ProgressState)
    assert told.router.generation == 0
    told.success()
    assert told.prompts[A].intact


def test_steps_of_prompts_and_nodes_in_turns_reach_each_its_own() -> None:
    told = Told(A, B, listeners=0)
    for value in range(3):
        for prompt_id in (A, B):
            for node in ("5", "8"):
                told.progress(value, 4, node, prompt_id)
                told.state((node, value, 4, "running"), prompt_id=prompt_id)
                step, state = told.prompts[prompt_id].newest_step(), told.prompts[prompt_id].newest_state()
                assert step == events.Progress(value, 4, prompt_id, node)
                assert state is not None and state.prompt_id == prompt_id and list(state.nodes) == [node]


@pytest.mark.parametrize("listeners", [0, 1])
def test_a_step_after_the_end_of_its_prompt_is_not_kept(listeners: int) -> None:
    told = Told(A, listeners=listeners)
    for value in (1, 2):
        told.progress(value, 4)
        told.state(("5", value, 4, "running"))
    told.success()
    assert told.progress(3, 4) is None and told.state(("5", 3, 4, "running")) is None
    step, state = told.prompts[A].newest_step(), told.prompts[A].newest_state()
    assert step is not None and step.value == 2 and state is not None and state.nodes["5"].value == 2


def test_of_an_end_that_nobody_listens_to_only_that_it_came_is_told() -> None:
    told = Told(A, listeners=0)
    assert told.start() is None and told.executing("5") is None and told.executed("9") is None
    assert told.success() == (told.prompts[A], None)
    assert told.executing(None) == (told.prompts[A], None)


def test_a_step_that_names_another_prompt_besides_its_own_never_reaches_that_one() -> None:
    told = Told(A, B)
    told.start(A)
    frame = '{"type": "progress", "data": {"value": 1, "x": {"prompt_id": "%s"}, "max": 2, "prompt_id": "%s"}}'
    assert told.router.receive(frame % (A, B)) == (told.prompts[B], events.Progress(1, 2, B))
    assert told.prompts[A].newest_step() is None
    assert told.router.receive(frame % (B, A)) == (told.prompts[A], events.Progress(1, 2, A))
    twice = '{"type": "progress", "data": {"value": 2, "prompt_id": "%s", "max": 2, "prompt_id": "%s"}}'
    for _ in range(2):
        assert told.router.receive(twice % (A, B)) == (told.prompts[B], events.Progress(2, 2, B))
    step = told.prompts[A].newest_step()
    assert step is not None and step.value == 1


def test_malformed_messages_about_strangers_are_not_ours_to_read(told: Told) -> None:
    told.says("executed", prompt_id=FOREIGN, node={}, output=3)
    told.says("executed", prompt_id=3, node={}, output=3)
    assert (told.router.unreadable, told.router.generation) == (0, 0)


@pytest.mark.parametrize("listeners", [0, 1])
@given(
    kind=st.sampled_from(KNOWN_TYPES) | given_by.texts,
    data=given_by.odd_data(st.sampled_from([A, B, FOREIGN]) | given_by.odd_values),
)
def test_no_message_makes_the_router_raise(listeners: int, kind: str, data: Any) -> None:
    told = Told(A, B, listeners=listeners)
    told.start(A)
    told.success(B)
    told.router.listeners = listeners
    told.router.receive_text(text_frame(kind, data))
    for prompt in told.prompts.values():
        assert 0.0 <= prompt.progress() <= 1.0
    assert told.outcome(B).error is None


@given(given_by.odd_data(st.just(A)), st.binary(max_size=30))
def test_no_picture_makes_the_router_raise(metadata: Any, image: bytes) -> None:
    told = Told(A)
    told.router.receive_binary(metadata_frame(metadata, image))
    told.start()
    told.router.receive_binary(struct.pack(">II", 1, 1) + image)


@given(kind=st.sampled_from(RULED), data=given_by.odd_data(st.just(A)), listeners=st.integers(0, 1))
def test_a_message_that_moves_a_prompt_to_its_end_is_always_told(kind: str, data: Any, listeners: int) -> None:
    told = Told(A, listeners=listeners)
    delivery = told.router.receive_text(text_frame(kind, data))
    prompt = told.prompts[A]
    if prompt.verdict is not None or prompt.over:
        assert delivery is not None and delivery[0] is prompt


# --- Keeping the books ---------------------------------------------------------------------------------------------


def test_a_prompt_that_the_server_named_otherwise_is_found_under_its_new_id(told: Told) -> None:
    prompt = told.prompts[A]
    told.router.rekey(prompt, "new")
    assert prompt.prompt_id == "new" and told.router.live == {"new": prompt}
    assert told.start(A) is None
    assert told.start("new") is not None


def test_what_came_before_the_new_id_was_known_is_a_gap(told: Told) -> None:
    told.start("new")
    told.router.rekey(told.prompts[A], "new")
    told.executed("9", prompt_id="new")
    told.success("new")
    assert told.prompts[A].verdict is not None and not told.prompts[A].intact


def test_a_forgotten_prompt_is_a_stranger(told: Told) -> None:
    told.start()
    told.router.forget(told.prompts[A])
    told.router.forget(told.prompts[A])
    assert told.router.live == {}
    assert told.success() is None
    assert told.picture() is None


def test_a_prompt_that_takes_the_place_of_another_gets_its_messages(told: Told) -> None:
    old = told.prompts[A]
    told.start()
    new = told.register(A)
    assert told.progress(1, 4) == (new, events.Progress(1, 4, A, "5"))
    told.router.forget(old)
    assert told.router.live == {A: new}


def test_a_frame_costs_one_look_up_whatever_the_number_of_prompts() -> None:
    """The router never walks over its prompts: a dict that cannot be walked serves it as well."""

    class Unwalkable(dict[str, TrackedPrompt]):
        def walk(self) -> Any:
            raise AssertionError("walked")

        __iter__ = keys = values = items = walk

    told = Told(A, B)
    told.router.live = Unwalkable(told.router.live)
    told.start()
    told.cached("1")
    told.executing("8")
    told.progress(1, 2, "8")
    told.state(("8", 1, 2, "running"))
    told.picture(PNG)
    told.picture_of("8", PNG)
    told.router.receive(encode(events.Status(3)))
    told.executed("9")
    told.says("custom", prompt_id=A)
    told.router.receive_text(b"nonsense")
    told.success()
    told.executing(None)
    assert told.prompts[A].verdict is not None


# --- Progress ------------------------------------------------------------------------------------------------------


def test_progress_never_goes_back_and_is_one_on_success_alone(told: Told) -> None:
    prompt = told.prompts[A]
    seen = [prompt.progress()]
    told.start()
    steps: list[Callable[[], object]] = [
        lambda: told.cached("1"),
        lambda: told.executing("5"),
        lambda: told.progress(2, 4),
        lambda: told.progress(1, 4),
        lambda: told.state(("5", 4, 4, "finished")),
        lambda: told.state(("5", 0, 4, "running")),
        lambda: told.executing("8"),
        lambda: told.state(("5", 4, 4, "finished"), ("8", 1, 1, "finished"), ("9", 1, 1, "finished")),
        lambda: told.says("execution_start", prompt_id=A, timestamp=7),
    ]
    for step in steps:
        step()
        seen.append(prompt.progress())
    assert seen == sorted(seen) and seen[0] == 0.0 and seen[-1] == 0.999
    told.success()
    assert prompt.progress() == 1.0


def test_a_failed_prompt_stays_where_it_came(told: Told) -> None:
    told.start()
    told.state(("1", 1, 1, "finished"), ("5", 2, 4, "running"))
    told.error()
    assert told.prompts[A].progress() == pytest.approx(3 / 7)


def test_progress_counts_by_the_order_of_nodes_where_no_progress_state_is_sent(told: Told) -> None:
    told.start()
    told.executing("1")
    told.executing("5")
    told.progress(2, 4)
    assert told.prompts[A].progress() == pytest.approx(3 / 7)


def test_progress_ignores_steps_that_cannot_be_read(told: Told) -> None:
    told.router.receive_text(b'{"type": "progress", "data": {"value": x, "prompt_id": "aaaa"}}')
    told.router.receive_text(b'{"type": "progress_state", "data": {"prompt_id": "aaaa", x}}')
    assert told.prompts[A].progress() == 0.0


def test_what_is_kept_for_progress_can_be_let_go(told: Told) -> None:
    told.start()
    told.progress(2, 4)
    told.state()
    told.picture()
    run = told.prompts[A].run
    assert run is not None
    run.let_go()
    assert (run.step, run.state, run.preview) == (None, None, None)


def test_a_run_tells_whether_anything_was_produced(told: Told) -> None:
    told.start()
    run = told.prompts[A].run
    assert run is not None and not run.has_outputs
    told.picture_of("5")
    assert not run.has_outputs
    told.picture_of("8", PNG)
    assert run.has_outputs
    told.says("execution_start", prompt_id=A, timestamp=7)
    told.executed("9")
    run = told.prompts[A].run
    assert run is not None and run.has_outputs and not run.streamed


def test_titles_and_nodes_are_read_off_the_graph() -> None:
    prompt = TrackedPrompt(A, b'{"2": {"_meta": {"title": "\\ud800"}}, "1": {"_meta": 3}, "3": {}}')
    assert list(prompt.nodes()) == ["2", "1", "3"]
    assert prompt.titles() == {"2": "\ud800"}
