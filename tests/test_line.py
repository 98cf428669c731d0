"""The pool's waiting line: priorities, fair turns, reordering. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from acomfy.line import Entry, Line
from acomfy.placement import NOTHING, Need

A, B = Need(files=frozenset({"a"})), Need(files=frozenset({"b"}))


def entry(name: str, need: Need = NOTHING, **about: Any) -> Entry[str]:
    return Entry(name, need, **about)


def filled(*entries: Entry[str]) -> Line[str]:
    line: Line[str] = Line()
    for each in entries:
        line.add(each)
    return line


def drained(line: Line[str]) -> list[str]:
    """Take all, each time whose turn it is."""
    taken = []
    while line:
        head = next(line.groups()).head
        assert line.position(head) == 0
        line.take(head)
        taken.append(head.item)
    return taken


def test_those_who_come_first_go_first_and_higher_priorities_before_them() -> None:
    line = filled(entry("1"), entry("2", A), entry("3"), entry("high", priority=1))
    assert drained(line) == ["high", "1", "2", "3"]


def test_keys_take_turns_however_many_each_has() -> None:
    line = filled(*(entry(f"a{number}", key="a") for number in range(4)), entry("b0", key="b"), entry("b1", key="b"))
    assert drained(line) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_a_newcomer_is_served_before_those_who_were_served() -> None:
    line = filled(*(entry(f"a{number}", key="a") for number in range(100)))
    line.take(next(line.groups()).head)
    line.add(entry("b", key="b"))
    assert next(line.groups()).head.item == "b"


def test_coming_back_again_and_again_gains_nothing() -> None:
    line = filled(*(entry("patient", key="patient") for _ in range(10)))
    taken: Counter[str] = Counter()
    for _ in range(10):
        if not line.waiting("hasty"):
            line.add(entry("hasty", key="hasty"))
        head = next(line.groups()).head
        line.take(head)
        taken[head.item] += 1
    assert taken == {"patient": 5, "hasty": 5}


def test_numbers_and_the_front_decide_within_a_key() -> None:
    line = filled(entry("1"), entry("2"), entry("early", order=0.5))
    line.add(entry("front", order=line.front_order(None, 0.0)))
    line.add(entry("before that", order=line.front_order(None, 0.0)))
    assert drained(line) == ["before that", "front", "early", "1", "2"]


def test_reordering_moves_and_what_is_not_in_the_line_stays_out() -> None:
    first, second, third = entry("1"), entry("2"), entry("3")
    line = filled(first, second, third)
    assert line.reorder(third, front=True)
    assert line.reorder(second, priority=5)
    assert line.remove(first)
    assert not line.remove(first)
    assert not line.reorder(first, front=True)
    assert drained(line) == ["2", "3"]


def test_what_comes_back_has_its_old_place() -> None:
    first = entry("1")
    line = filled(first, entry("2"), entry("3"))
    line.take(first)
    line.add(first)
    assert drained(line) == ["1", "2", "3"]


def test_passing_over_is_bounded_by_one_for_other_keys_and_counts_anew_once_served() -> None:
    line = filled(entry("1", A, key="a"), entry("2", B, key="b"), entry("3", A, key="a"))
    first, second, *_ = line.groups()
    line.passed(first, second)
    assert first.must
    line.take(first.head)
    assert not first.must
    own = filled(entry("1", A), entry("2", B))
    one, other = own.groups()
    for _ in range(20):
        assert not one.must
        own.passed(one, other)
    assert one.must


ENTRIES = st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0]), st.sampled_from([A, B]))


@settings(max_examples=50)
@given(st.lists(ENTRIES, max_size=30))
def test_a_position_is_the_number_of_those_who_go_first(wanted: list[tuple[str, float, Need]]) -> None:
    entries = [entry(str(number), need, key=key, priority=level) for number, (key, level, need) in enumerate(wanted)]
    line = filled(*entries)
    told = {each.item: line.position(each) for each in entries}
    assert {name: place for place, name in enumerate(drained(line))} == told
    assert len(line) == 0
    assert line.by_key() == {}


class LineMachine(RuleBasedStateMachine):
    """Whatever is done in whatever order, nothing is lost and nothing is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.line: Line[int] = Line()
        self.inside: list[Entry[int]] = []
        self.made = 0

    @rule(about=ENTRIES, order=st.one_of(st.none(), st.floats(-3, 3)))
    def add(self, about: tuple[str, float, Need], order: float | None) -> None:
        self.made += 1
        new: Entry[int] = Entry(self.made, about[2], key=about[0], priority=about[1], order=order)
        self.line.add(new)
        self.inside.append(new)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.inside:
            gone = data.draw(st.sampled_from(self.inside))
            self.inside.remove(gone)
            assert self.line.remove(gone)

    @rule(data=st.data(), again=st.booleans())
    def take(self, data: st.DataObject, again: bool) -> None:
        groups = list(self.line.groups())
        if groups:
            head = data.draw(st.sampled_from(groups)).head
            self.line.take(head)
            if again:
                self.line.add(head)
            else:
                self.inside.remove(head)

    @rule(data=st.data(), priority=st.sampled_from([None, 0.0, 1.0, 2.0]), front=st.booleans())
    def reorder(self, data: st.DataObject, priority: float | None, front: bool) -> None:
        if self.inside:
            assert self.line.reorder(data.draw(st.sampled_from(self.inside)), priority=priority, front=front)

    @invariant()
    def holds_what_it_was_given(self) -> None:
        assert sorted(each.item for each in self.line) == sorted(each.item for each in self.inside)
        assert len(self.line) == len(self.inside)
        assert self.line.by_key() == Counter(each.key for each in self.inside)
        priorities = [group.head.priority for group in self.line.groups()]
        assert priorities == sorted(priorities, reverse=True)


LineMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestLineMachine = LineMachine.TestCase
