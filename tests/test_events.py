"""Events are frozen, compare by value and do not show what is secret or big."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import typing
from typing import Any

import pytest

from acomfy import events
from acomfy.errors import ProtocolError
from acomfy.events import ExecutionError, NodeProgress, PreviewImage, ProgressState

NODE = NodeProgress("5", 1, 4, "running", "5")


def preview(image: bytes = b"picture", **more: Any) -> PreviewImage:
    return PreviewImage(memoryview(image), "image/png", "p", "5", **more)


def state() -> ProgressState:
    return ProgressState("p", {"5": NODE})


def test_the_union_holds_every_event_of_the_module() -> None:
    members = set(typing.get_args(events.Event))
    classes = {cls for _, cls in inspect.getmembers(events, inspect.isclass) if cls.__module__ == events.__name__}
    assert members == classes - {NodeProgress}


@pytest.mark.parametrize("cls", [*typing.get_args(events.Event), NodeProgress])
def test_every_event_has_slots(cls: type) -> None:
    assert "__slots__" in vars(cls)
    assert dataclasses.is_dataclass(cls) or cls is ProgressState


@pytest.mark.parametrize("event", [NODE, state(), preview(), events.Status(3)])
def test_events_are_frozen(event: Any) -> None:
    name = type(event).__match_args__[0]
    with pytest.raises(AttributeError):
        setattr(event, name, None)
    with pytest.raises(AttributeError):
        delattr(event, name)


def test_a_preview_compares_by_its_picture_and_its_names() -> None:
    assert preview() == preview() and hash(preview()) == hash(preview())
    assert preview() != preview(b"another")
    assert preview() != preview(has_metadata=True)
    assert preview() != "preview"
    assert len({preview(), preview(), preview(b"another")}) == 2


def test_a_preview_can_be_copied_and_pickled_though_its_picture_is_a_view() -> None:
    for twin in (copy.copy(preview()), copy.deepcopy(preview()), pickle.loads(pickle.dumps(preview()))):
        assert twin == preview() and twin.image == b"picture"


def test_a_progress_state_compares_by_value_and_is_not_hashable() -> None:
    assert state() == state() != ProgressState("p", {})
    assert state() != "state"
    with pytest.raises(TypeError):
        hash(state())
    assert pickle.loads(pickle.dumps(state())) == copy.deepcopy(state()) == state()


def test_a_progress_state_is_parsed_once_and_when_its_nodes_are_read() -> None:
    calls: list[int] = []

    def parse() -> dict[str, NodeProgress]:
        calls.append(1)
        return {}

    lazy = ProgressState("p", parse)
    assert repr(lazy) == "ProgressState(prompt_id='p')" and not calls
    assert lazy.nodes is lazy.nodes and calls == [1]
    match lazy:
        case ProgressState(prompt_id, nodes):
            assert (prompt_id, nodes) == ("p", {})


def test_a_malformed_progress_state_says_so_at_every_reading() -> None:
    def parse() -> dict[str, NodeProgress]:
        raise ProtocolError("nonsense")

    lazy = ProgressState("p", parse)
    for _ in range(2):
        with pytest.raises(ProtocolError):
            lazy.nodes  # noqa: B018


def test_a_repr_shows_no_picture_no_inputs_and_no_data() -> None:
    error = ExecutionError("p", "5", "KSampler", "E", "m", current_inputs={"key": "secret"}, traceback=("secret",))
    for event in (error, preview(b"secret"), events.Unknown("custom", "secret")):
        assert "secret" not in repr(event)
