"""Which lanes a worker asks: what is warm first, urgent before all, nobody for ever last, and nothing for nothing."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy.fleet.lanes import LaneView, Memory, Patience, lanes_to_ask
from acomfy.fleet.names import ANY_MODEL, Lane

PATIENCE = Patience(idle=2.0, starving=30.0, worked_at=120.0)


def lane(model: str, priority: int = 0) -> Lane:
    return Lane.of("default", priority, model)


def waiting(*models: str | Lane, pending: int = 1, running: int = 0) -> list[LaneView]:
    return [LaneView(model if isinstance(model, Lane) else lane(model), pending, running) for model in models]


def asked(views: list[LaneView], *, since: float = 100.0, now: float = 100.0, **more: Any) -> list[str]:
    """Ask which lanes a worker asks at a time, that has just become free; all of them have waited since another."""
    memory = Memory()
    memory.note(views, since)
    memory.note(views, now)
    options: dict[str, Any] = {"warm": None, "offers": None, "idle_since": now, "patience": PATIENCE, **more}
    return [found.model for found in lanes_to_ask(views, memory, now=now, **options)]


def test_what_is_warm_is_asked_first_and_at_once_the_others_only_after_a_while_of_idleness() -> None:
    views = waiting("a", "b", "c")
    assert asked(views, warm={"b"}, since=90.0) == ["b"]
    assert asked(views, warm={"b"}, since=90.0, idle_since=98.0) == ["b", "a", "c"]


def test_an_idle_worker_leaves_what_has_just_come_to_those_who_have_it_warm() -> None:
    assert asked(waiting("a"), warm={"b"}, since=99.0, idle_since=0.0) == []
    assert asked(waiting("a"), warm={"b"}, since=98.0, idle_since=0.0) == ["a"]


def test_prompts_without_models_suit_every_server_at_once() -> None:
    assert asked(waiting("a", ANY_MODEL), warm={"b"}) == [ANY_MODEL]
    assert asked(waiting(ANY_MODEL), offers={}) == [ANY_MODEL]


def test_a_server_that_has_nothing_loaded_is_given_anything_and_what_fewest_work_at_first() -> None:
    views = [LaneView(lane("a"), 3, running=3), LaneView(lane("b"), 5, running=1), LaneView(lane("c"), 1)]
    assert asked(views) == ["c", "b", "a"]


def test_two_fresh_workers_take_different_lanes_whether_they_look_after_one_another_or_at_once() -> None:
    first = asked(waiting("a", "b", pending=50))[0]
    assert first == "a"
    assert asked([LaneView(lane("a"), 49, running=1), LaneView(lane("b"), 50)])[0] == "b"
    assert asked(waiting("a", "b", pending=50), turn=1)[0] == "b"


def test_what_nobody_served_for_long_goes_before_what_is_warm() -> None:
    views = waiting("a", "b")
    assert asked(views, warm={"b"}, since=70.5) == ["b"]
    assert asked(views, warm={"c"}, since=70.0) == ["a", "b"]


def test_of_two_that_starve_the_one_that_does_so_for_longer_is_asked_first() -> None:
    memory = Memory()
    memory.note(waiting("b"), 0.0)
    memory.note(waiting("a", "b"), 1.0)
    found = lanes_to_ask(
        waiting("a", "b"), memory, warm={"c"}, offers=None, idle_since=50.0, now=50.0, patience=PATIENCE
    )
    assert found == [lane("b"), lane("a")]


def test_a_lane_does_not_starve_while_something_is_taken_from_it() -> None:
    memory = Memory()
    for now in range(0, 100, 10):
        memory.note([LaneView(lane("a"), 5, delivered=now)], float(now))
    assert (memory.waiting_since(lane("a")), memory.unserved_since(lane("a"))) == (0.0, 90.0)


def test_a_lane_of_long_prompts_does_not_starve_while_somebody_works_at_it_unless_that_one_seems_dead() -> None:
    views = waiting("a", running=1)
    assert asked(views, warm={"b"}, since=40.0) == []
    assert asked(views, warm={"b"}, since=-20.0) == ["a"]


def test_a_more_urgent_priority_goes_before_warmth_and_starvation() -> None:
    views = waiting(lane("cold", 3), lane("warm", 1), lane("starving", -2))
    assert asked(views, warm={"warm"}, since=0.0) == ["cold", "warm", "starving"]
    assert asked(views, since=99.0) == ["cold", "warm", "starving"]


def test_what_a_server_does_not_have_is_not_asked_for_however_long_it_waits() -> None:
    assert asked(waiting("a", "b"), offers={"b": "b.safetensors"}, since=0.0, idle_since=0.0) == ["b"]


def test_a_lane_in_which_nothing_waits_is_asked_for_what_may_have_come_back_of_a_worker_that_died() -> None:
    # JetStream counts an order whose lease ran out, or that was given back, in num_ack_pending, not in num_pending.
    taken = waiting("a", pending=0, running=1)
    assert asked(taken) == ["a"]
    assert asked(taken, warm={"a"}) == ["a"]
    assert asked(taken, warm={"b"}) == []
    assert asked(taken, warm={"b"}, since=90.0, idle_since=90.0) == ["a"]
    assert asked(taken + waiting("b"), warm={"a", "b"}) == ["b", "a"]
    assert asked(taken + waiting("b"), warm={"b"}, since=60.0) == ["a", "b"]  # else nobody might, ever


def test_what_comes_new_into_a_lane_that_is_worked_at_is_left_to_those_who_do() -> None:
    memory = Memory()
    taken = waiting("a", pending=0, running=1)
    memory.note(taken, 0.0)
    memory.note(taken, 100.0)
    new = waiting("a", pending=1, running=1)
    memory.note(new, 101.0)
    options: dict[str, Any] = {"warm": {"b"}, "offers": None, "idle_since": 0.0, "patience": PATIENCE}
    assert lanes_to_ask(new, memory, now=101.0, **options) == []
    assert lanes_to_ask(new, memory, now=103.0, **options) == [lane("a")]


def test_a_lane_that_is_gone_is_forgotten_and_waits_anew_when_it_comes_back() -> None:
    memory = Memory()
    memory.note(waiting("a"), 0.0)
    memory.note([], 10.0)
    memory.note(waiting("a"), 20.0)
    assert memory.waiting_since(lane("a")) == memory.unserved_since(lane("a")) == 20.0


# --- Whatever the snapshot -------------------------------------------------------------------------------------------

models = st.sampled_from(["a", "b", "c", "d", ANY_MODEL])
lanes = st.builds(lane, models, st.integers(-9, 9))
counts = st.integers(0, 3)
snapshots = st.lists(st.builds(LaneView, lanes, counts, counts, counts), max_size=8, unique_by=lambda view: view.lane)
times = st.floats(0, 1000)


@given(
    st.lists(st.tuples(snapshots, times), min_size=1, max_size=4),
    st.none() | st.sets(models),
    st.none() | st.dictionaries(models, st.just("file")),
    times,
    times,
    st.integers(0, 9),
)
def test_no_lane_is_asked_that_has_nothing_or_that_the_server_cannot_serve_and_none_twice(
    looks: list[tuple[list[LaneView], float]],
    warm: set[str] | None,
    offers: Mapping[str, str] | None,
    idle_since: float,
    later: float,
    turn: int,
) -> None:
    memory = Memory()
    now = 0.0
    for views, step in looks:
        now += step
        memory.note(views, now)
    now += later
    views = looks[-1][0]
    options: dict[str, Any] = {"warm": warm, "offers": offers, "idle_since": min(idle_since, now), "now": now}
    found = lanes_to_ask(views, memory, patience=PATIENCE, turn=turn, **options)
    by_lane = {view.lane: view for view in views}
    assert len(set(found)) == len(found)
    assert all(by_lane[each].pending or by_lane[each].running for each in found)
    assert offers is None or all(each.model == ANY_MODEL or each.model in offers for each in found)
    assert [each.order for each in found] == sorted(each.order for each in found)
    assert found == lanes_to_ask(views[::-1], memory, patience=PATIENCE, turn=turn, **options)
    # What is warm, or needs nothing, is asked in any case; and all that it can serve by one that has waited for long.
    servable = {
        each.lane
        for each in views
        if (each.pending or each.running) and (offers is None or each.lane.model in {*offers, ANY_MODEL})
    }
    assert {each for each in servable if each.model == ANY_MODEL or each.model in (warm or ())} <= set(found)
    patient = lanes_to_ask(
        views, memory, warm=warm, offers=offers, idle_since=0.0, now=now + 2.1, patience=PATIENCE, turn=turn
    )
    assert set(patient) == servable


# --- A fleet in virtual time -----------------------------------------------------------------------------------------


class SimulatedFleet:
    """Workers and lanes without any waiting.

    Args:
        takes: Seconds that a prompt runs on the first worker; the next one is slower.
        loads: Seconds that a model takes to load before it.
    """

    def __init__(self, workers: int, *, takes: float, loads: float, turn: int = 1) -> None:
        self.lines: dict[Lane, deque[float]] = {}
        self.running: dict[Lane, int] = {}
        self.delivered: dict[Lane, int] = {}
        self.switches = 0
        self.waits: dict[Lane, list[float]] = {}
        self.takes, self.loads, self.turn = takes, loads, turn
        self.workers = [(Memory(), set[str]()) for _ in range(workers)]

    def post(self, to: Iterable[Lane], at: float = 0.0) -> None:
        for each in to:
            self.lines.setdefault(each, deque()).append(at)

    def run(self, until: float = 100_000.0) -> float:
        """Run until all is done; give the time at which it is."""
        events = [(0.01 * number * (self.turn == 0), number, 0.0, None) for number in range(len(self.workers))]
        heap: list[tuple[float, int, float, Lane | None]] = list(events)
        ended = 0.0
        while any(self.lines.values()) or any(self.running.values()):
            now, number, idle_since, done = heapq.heappop(heap)
            assert now < until, "somebody waits for ever"
            if done is not None:
                self.running[done] -= 1
                idle_since, ended = now, now
            heapq.heappush(heap, self._next(number, now, idle_since))
        return ended

    def _next(self, number: int, now: float, idle_since: float) -> tuple[float, int, float, Lane | None]:
        memory, warm = self.workers[number]
        views = [
            LaneView(each, sum(at <= now for at in line), self.running.get(each, 0), self.delivered.get(each, 0))
            for each, line in self.lines.items()
        ]
        memory.note(views, now)
        options: dict[str, Any] = {"offers": None, "idle_since": idle_since, "now": now, "patience": PATIENCE}
        for each in lanes_to_ask(views, memory, warm=warm or None, turn=number * self.turn, **options):
            if not self.lines[each] or self.lines[each][0] > now:
                continue
            self.waits.setdefault(each, []).append(now - self.lines[each].popleft())
            self.running[each] = self.running.get(each, 0) + 1
            self.delivered[each] = self.delivered.get(each, 0) + 1
            cold = each.model != ANY_MODEL and each.model not in warm
            if cold:
                self.switches += 1
                warm.clear()
                warm.add(each.model)
            return now + self.takes * (1 + 0.4 * number) + self.loads * cold, number, now, each
        return now + 0.5, number, idle_since, None


@pytest.mark.parametrize("takes", [0.05, 1.0, 20.0, 60.0])
@pytest.mark.parametrize("turn", [0, 1])
def test_100_jobs_that_alternate_between_two_models_on_two_servers_switch_at_most_10_times(
    takes: float, turn: int
) -> None:
    fleet = SimulatedFleet(2, takes=takes, loads=10.0, turn=turn)
    fleet.post(lane("ab"[number % 2]) for number in range(100))
    makespan = fleet.run()
    assert fleet.switches <= 10
    assert makespan <= 1.25 * 50 * takes + 10.0 * fleet.switches + 10.0


def test_nobody_starves_while_others_keep_all_workers_busy() -> None:
    fleet = SimulatedFleet(2, takes=1.0, loads=5.0)
    fleet.post(lane("a") for _ in range(500))
    fleet.post(lane("b") for _ in range(500))
    fleet.post([lane("c")], at=20.0)
    fleet.run()
    assert 30.0 <= max(fleet.waits[lane("c")]) <= 45.0
    assert fleet.switches <= 100


def test_what_is_urgent_does_not_wait_for_what_is_not() -> None:
    fleet = SimulatedFleet(1, takes=1.0, loads=5.0)
    fleet.post(lane("a") for _ in range(50))
    fleet.post(lane("b", 1) for _ in range(3))
    fleet.run()
    assert max(fleet.waits[lane("b", 1)]) <= 7.0


def test_five_models_on_two_servers_all_get_their_turn() -> None:
    fleet = SimulatedFleet(2, takes=2.0, loads=8.0)
    fleet.post(lane("abcde"[number % 5]) for number in range(200))
    makespan = fleet.run()
    assert {each.model: len(waits) for each, waits in fleet.waits.items()} == dict.fromkeys("abcde", 40)
    assert makespan <= 2 * 1.2 * 200 * 2.0 / 2
