"""How much of a prompt is done."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy.events import NodeProgress, Progress, ProgressState
from acomfy.progress import sinks, upstream, weigh, weights

from . import strategies as given_by

GRAPH: dict[str, dict[str, Any]] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
    "5": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "steps": 8, "size": [512, 512]}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["5", 0]}},
    "9": {"class_type": "PreviewImage", "inputs": {"images": ["1", 2], "missing": ["77", 0]}},
}
WEIGHTS = weights(GRAPH, None)


def part_done(
    *,
    cached: tuple[str, ...] = (),
    ran: tuple[str, ...] = (),
    step: Progress | None = None,
    nodes: dict[str, tuple[float, float, str]] | None = None,
) -> float:
    by_id = {node: NodeProgress(node, value, top, state, node) for node, (value, top, state) in (nodes or {}).items()}
    state = None if nodes is None else ProgressState("p", by_id)
    return weigh(WEIGHTS, cached=cached, ran=ran, step=step, state=state)


# --- Weights -------------------------------------------------------------------------------------------------------


def test_a_node_weighs_one_or_its_steps() -> None:
    assert WEIGHTS == {"1": 1.0, "5": 8.0, "8": 1.0, "9": 1.0}


@pytest.mark.parametrize("steps", [0, 1, -4, 10_001, 2.5, True, "20", None, ["1", 0]])
def test_steps_that_are_no_sensible_number_weigh_one(steps: Any) -> None:
    assert weights({"5": {"inputs": {"steps": steps}}}, None) == {"5": 1.0}


@pytest.mark.parametrize("node", [{}, {"inputs": None}, {"inputs": []}])
def test_a_node_without_inputs_weighs_one(node: dict[str, Any]) -> None:
    assert weights({"5": node}, ["5"]) == {"5": 1.0}


def test_only_what_the_targets_need_is_weighed() -> None:
    assert weights(GRAPH, ["9"]) == {"1": 1.0, "9": 1.0}
    assert weights(GRAPH, []) == {}
    assert upstream(GRAPH, ["8", "unknown"]) == {"8", "5", "1"}


def test_the_sinks_are_the_nodes_that_no_other_depends_on_or_the_targets() -> None:
    assert sinks(GRAPH, None) == ["8", "9"]
    assert sinks(GRAPH, ["9", "unknown"]) == ["9"]


def test_a_cycle_is_walked_once() -> None:
    graph = {"1": {"inputs": {"a": ["2", 0]}}, "2": {"inputs": {"a": ["1", 0], "b": ["2", 0]}}}
    assert upstream(graph, ["1"]) == {"1", "2"}


# --- By progress_state, which is exact -----------------------------------------------------------------------------


def test_finished_nodes_count_whole_and_running_ones_by_their_part() -> None:
    nodes = {"1": (1.0, 1.0, "finished"), "5": (4.0, 8.0, "running")}
    assert part_done(nodes=nodes) == pytest.approx(5 / 11)


def test_cached_nodes_weigh_nothing() -> None:
    nodes = {"5": (4.0, 8.0, "running"), "1": (1.0, 1.0, "finished")}
    assert part_done(cached=("1", "9"), nodes=nodes) == pytest.approx(4 / 9)


def test_expanded_nodes_are_not_of_the_graph_and_count_nothing() -> None:
    assert part_done(nodes={"5.0.0.1": (1.0, 1.0, "finished")}) == 0.0


def test_the_state_is_believed_before_the_order() -> None:
    assert part_done(ran=("1", "5", "8"), nodes={}) == 0.0


# --- By the order in which nodes began -----------------------------------------------------------------------------


def test_all_nodes_but_the_last_are_done_and_the_last_by_its_step() -> None:
    assert part_done(ran=()) == 0.0
    assert part_done(ran=("1", "5")) == pytest.approx(1 / 11)
    assert part_done(ran=("1", "5"), step=Progress(2, 8)) == pytest.approx(3 / 11)


# --- Bounds --------------------------------------------------------------------------------------------------------


def test_only_the_verdict_says_that_all_is_done() -> None:
    nodes = dict.fromkeys(GRAPH, (1.0, 1.0, "finished"))
    assert part_done(nodes=nodes) == 0.999


def test_a_prompt_of_cached_nodes_alone_has_nothing_to_do() -> None:
    assert part_done(cached=tuple(GRAPH)) == 0.0


@pytest.mark.parametrize(
    ("value", "maximum", "part"),
    [
        (5, 0, 0.0),
        (5, -1, 0.0),
        (-5, 10, 0.0),
        (20, 10, 1.0),
        (float("nan"), 10, 0.0),
        (5, float("nan"), 0.0),
        (float("inf"), 10, 1.0),
        (float("inf"), float("inf"), 0.0),
        (5, float("inf"), 0.0),
        (10**308, 1, 1.0),
        (1.5, 10**308, 0.0),
    ],
)
def test_odd_steps_give_a_part_between_none_and_all(value: float, maximum: float, part: float) -> None:
    assert part_done(ran=("5",), step=Progress(value, maximum)) == pytest.approx(part * 8 / 11)


@given(
    cached=st.lists(st.sampled_from(sorted(GRAPH))).map(tuple),
    ran=st.lists(st.sampled_from([*GRAPH, "77"])).map(tuple),
    step=st.none() | st.builds(Progress, given_by.numbers, given_by.numbers),
    state=st.none() | given_by.progress_states(),
)
def test_progress_is_always_between_none_and_almost_all(
    cached: tuple[str, ...], ran: tuple[str, ...], step: Progress | None, state: ProgressState | None
) -> None:
    assert 0.0 <= weigh(WEIGHTS, cached=cached, ran=ran, step=step, state=state) <= 0.999
