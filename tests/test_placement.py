"""The choice of a server for a prompt: pure functions, no loop."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from acomfy.errors import (
    ClientClosed,
    HTTPError,
    JobFailed,
    JobInterrupted,
    JobLost,
    OutputMissing,
    PayloadTooLarge,
    PromptRejected,
    ServerUnreachable,
    WorkflowError,
)
from acomfy.placement import Need, Offer, ServerState, ServerView, Wish, choose, may_run, read_need, read_offer
from acomfy.pool_moves import Attempt, Move, decide

from .graphs import sampled
from .strategies import json_values

A, B = Need(files=frozenset({"a.safetensors"})), Need(files=frozenset({"b.safetensors"}))
UP = ServerState.UP


def view(name: str, **about: Any) -> ServerView:
    return ServerView(name, **about)


def chosen(wish: Wish | Need, *views: ServerView) -> str | None:
    return choose(wish if isinstance(wish, Wish) else Wish(wish), views).server


# --- What is needed, and what is offered -----------------------------------------------------------------------------


def test_a_need_is_the_classes_and_the_models_of_a_graph_and_loras_do_not_count_as_loaded() -> None:
    graph = sampled()
    graph["20"] = {"class_type": "LoraLoader", "inputs": {"lora_name": "detail.safetensors", "model": ["4", 0]}}
    need = read_need(graph)
    assert {"KSampler", "SaveImage", "LoraLoader"} <= need.classes
    assert ("LoraLoader", "lora_name", "detail.safetensors") in need.models
    assert need.files == {"v1-5-pruned-emaonly.safetensors"}
    assert read_need(sampled(seed=7, text="else")) == read_need(sampled())


def test_an_offer_is_read_from_both_ways_of_writing_a_list_of_choices() -> None:
    offer = read_offer(
        {
            "Old": {"input": {"required": {"name": [["a.safetensors", "b.ckpt"], {}]}}},
            "New": {"input": {"optional": {"name": ["COMBO", {"options": ["a.safetensors"]}]}}},
            "Empty": {"input": {"required": {"name": [[], {}]}}},
            "Words": {"input": {"required": {"mode": [["fast", "slow"]]}}},
        }
    )
    assert offer.lacks(Need(models=frozenset({("Old", "name", "b.ckpt")}))) == ""
    assert offer.lacks(Need(models=frozenset({("New", "name", "b.ckpt")}))) == "it has no model 'b.ckpt'"
    assert offer.lacks(Need(models=frozenset({("Empty", "name", "b.ckpt")}))) == "it has no model 'b.ckpt'"
    assert offer.lacks(Need(models=frozenset({("Words", "mode", "b.ckpt")}))) == ""
    assert offer.lacks(Need(classes=frozenset({"Other"}))) == "it has no node class 'Other'"


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=4))
def test_no_nonsense_of_a_server_stops_the_reading_of_its_offer(answer: dict[str, Any]) -> None:
    offer = read_offer(answer)
    assert offer.classes == answer.keys()
    assert offer == read_offer(answer)


# --- The choice ------------------------------------------------------------------------------------------------------


def test_the_server_where_the_models_are_warm_is_chosen() -> None:
    assert chosen(A, view("1", warm=B.files), view("2", warm=A.files), view("3", warm=B.files)) == "2"


def test_an_idle_server_that_loaded_nothing_yet_is_as_good_as_a_warm_one() -> None:
    assert chosen(A, view("1", warm=A.files, ours=1), view("2")) == "2"


def test_a_server_that_has_work_takes_no_other_models_until_the_prompt_was_passed_over() -> None:
    busy = view("1", warm=B.files, ours=1)
    placement = choose(Wish(A), [busy])
    assert placement.server is None
    assert placement.possible
    assert chosen(Wish(A, must=True), busy) == "1"


def test_a_prompt_waits_for_its_warm_server_a_while_before_another_one_loads_its_models() -> None:
    busy_warm, idle_cold = view("1", warm=A.files, ours=1), view("2", warm=B.files)
    assert choose(Wish(A, patient=True), [busy_warm, idle_cold]).held
    assert chosen(Wish(A), busy_warm, idle_cold) == "2"
    assert chosen(Wish(A, patient=True), busy_warm) == "1"


def test_models_are_not_loaded_elsewhere_while_a_warm_server_is_idle() -> None:
    fast_warm, slow_warm = view("1", warm=A.files, ours=1, weight=4.0), view("2", warm=A.files)
    assert chosen(Wish(A), fast_warm, slow_warm, view("3", warm=B.files)) == "1"
    assert chosen(Wish(A), fast_warm, view("3", warm=B.files)) == "3"


def test_full_down_draining_lacking_and_refusing_servers_are_not_chosen() -> None:
    lacking = Offer(["Other"], {})
    need = Need(classes=frozenset({"KSampler"}))
    views = [
        view("full", ours=2),
        view("down", state=ServerState.DOWN),
        view("drains", state=ServerState.DRAINING),
        view("shaky", state=ServerState.SHAKY),
        view("lacks", offer=lacking),
        view("refused"),
    ]
    placement = choose(Wish(need, refused={"refused"}), views)
    assert placement.server is None
    text = str(placement)
    assert text.startswith("waits; full: 2 of 2 places taken")
    for reason in ("down: down", "drains: draining", "lacks: it has no node class 'KSampler'", "refused: refused it"):
        assert reason in text
    assert chosen(Wish(need, anywhere=True), view("lacks", offer=lacking)) == "lacks"


def test_among_equals_the_shortest_line_for_the_weight_wins_and_failing_servers_come_last() -> None:
    assert chosen(A, view("1", ours=1, places=4), view("2", others=3, places=4)) == "1"
    assert chosen(A, view("1", ours=1, places=8), view("2", ours=2, places=8, weight=4.0)) == "2"
    assert chosen(A, view("1", failures=3), view("2", ours=1)) == "2"
    assert chosen(A, view("1", failures=3), view("2", ours=2)) == "1"


def test_a_placement_says_why() -> None:
    placement = choose(Wish(A), [view("x", warm=A.files), view("y", warm=B.files, ours=1, weight=2.0, others=3)])
    assert str(placement) == (
        "chosen of 2; x: its models are warm, 0 of 2 places taken; "
        "y: its models would have to be loaded, 1 of 2 places taken, 3 of others, weight 2"
    )


names = st.sampled_from("abcdef")
views = st.builds(
    ServerView,
    names,
    state=st.sampled_from(ServerState),
    places=st.integers(1, 3),
    ours=st.integers(0, 3),
    others=st.integers(0, 3),
    warm=st.sampled_from([None, A.files, B.files]),
    weight=st.floats(0.1, 10),
    failures=st.integers(0, 5),
    offer=st.sampled_from([None, Offer(["K"], {}), Offer([], {})]),
)
needs = st.builds(
    Need, classes=st.sampled_from([frozenset(), frozenset({"K"})]), files=st.sampled_from([A.files, B.files])
)
wishes = st.builds(Wish, needs, st.booleans(), st.booleans(), st.booleans(), st.frozensets(names, max_size=2))


@given(wishes, st.lists(views, max_size=6, unique_by=lambda view: view.name))
def test_whatever_the_snapshot_the_choice_is_allowed_and_is_made_when_it_must_be(
    wish: Wish, snapshot: list[ServerView]
) -> None:
    placement = choose(wish, snapshot)
    able = [each for each in snapshot if each.free and may_run(wish, each)]
    assert placement.possible == bool(able)
    assert placement.server is None or placement.server in {each.name for each in able}
    assert str(placement)
    if able and wish.must:
        assert placement.server is not None
    if any(each.is_warm(wish.need) for each in able) and not wish.patient:
        assert placement.server is not None
    if placement.server is not None and not wish.must:
        (picked,) = [each for each in able if each.name == placement.server]
        assert picked.is_warm(wish.need) or not picked.ours
    assert choose(wish, snapshot) == placement


# --- What moves ------------------------------------------------------------------------------------------------------


def test_what_had_not_started_moves_as_often_as_its_servers_are_lost() -> None:
    move = decide(JobLost("p", "unreachable"), Attempt(posted=True, failures=2))
    assert move == Move(again=True, left=True, blames="unreachable")
    assert decide(JobLost("p", "restarted"), Attempt(posted=True, resubmit=False)) == Move(again=True)
    assert decide(ServerUnreachable("u", "refused"), Attempt()) == Move(again=True, blames="unreachable")
    assert decide(ServerUnreachable("u", "cut", maybe_sent=True), Attempt()).left
    assert decide(JobLost("p", "deleted"), Attempt(posted=True, withdrawn=True)) == Move(again=True)


def test_what_had_started_moves_only_if_that_was_wished_and_not_for_ever() -> None:
    started = Attempt(started=True, posted=True)
    assert decide(JobLost("p", "restarted"), started) == Move(again=True, counts=True)
    assert not decide(JobLost("p", "restarted"), Attempt(started=True, posted=True, failures=2)).again
    assert not decide(JobLost("p", "restarted"), Attempt(started=True, posted=True, resubmit=False)).again
    assert decide(JobLost("p", "unreachable"), started).left
    assert decide(OutputMissing("p", "9"), started).again


def test_what_somebody_deleted_is_run_again_only_if_that_was_wished() -> None:
    assert decide(JobLost("p", "deleted"), Attempt(posted=True)).counts
    assert not decide(JobLost("p", "deleted"), Attempt(posted=True, resubmit=False)).again


def test_what_a_server_says_of_the_prompt_is_its_outcome() -> None:
    failed = JobFailed("p", node_id="3", class_type="K", exception_type="E", exception_message="no")
    for error in (failed, JobInterrupted("p"), ClientClosed(), PayloadTooLarge(1, 1), WorkflowError("no"), OSError()):
        assert decide(error, Attempt(started=True, posted=True)) == Move(again=False)
        assert decide(error, Attempt()) == Move(again=False)


def test_a_prompt_refused_for_what_a_server_has_not_goes_to_one_that_may_have_it() -> None:
    problem = {"4": {"class_type": "L", "errors": [{"type": "value_not_in_list", "extra_info": {}}]}}
    refusal = PromptRejected({"type": "prompt_outputs_failed_validation"}, problem)
    assert decide(refusal, Attempt(may_go_elsewhere=True)) == Move(again=True, counts=True, blames="lacks")
    assert not decide(refusal, Attempt()).again
    wrong = {"4": {"class_type": "L", "errors": [{"type": "value_bigger_than_max", "extra_info": {}}]}}
    assert not decide(PromptRejected({}, wrong), Attempt(may_go_elsewhere=True)).again
    assert not decide(PromptRejected({}, problem, partial=True), Attempt(may_go_elsewhere=True)).again


def test_a_server_that_answers_every_prompt_with_an_error_is_not_asked_for_ever() -> None:
    error = HTTPError(500, "POST", "u", "")
    assert decide(error, Attempt()) == Move(again=True, counts=True, left=True, blames="unreachable")
    assert not decide(error, Attempt(failures=2)).again
