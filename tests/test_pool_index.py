"""The index over a pool's servers: what it leaves out would not have been chosen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from acomfy.placement import Need, Offer, ServerState, ServerView, Wish, choose
from acomfy.pool_index import ServerIndex

FILES = [frozenset(files) for files in ("a", "b", "ab", "abc", "c")]
CAN, CANNOT = Offer(["K"], {}), Offer([], {})
NAMES = [f"s{number}" for number in range(20)]


def index_of(*views: ServerView) -> ServerIndex:
    index = ServerIndex()
    for view in views:
        index.update(view)
    return index


def names_of(index: ServerIndex, wish: Wish) -> set[str]:
    return {view.name for view in index.candidates(wish)}


views = st.builds(
    ServerView,
    st.sampled_from(NAMES),
    state=st.sampled_from([ServerState.UP] * 4 + [ServerState.DOWN]),
    places=st.integers(1, 3),
    ours=st.integers(0, 3),
    others=st.integers(0, 3),
    warm=st.sampled_from([None, *FILES]),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
    failures=st.integers(0, 5),
    offer=st.sampled_from([None, CAN, CANNOT]),
)
changes = st.lists(st.tuples(st.sampled_from(["update", "update", "update", "use", "forget"]), views), max_size=60)
wishes = st.builds(
    Wish,
    st.builds(
        Need, classes=st.sampled_from([frozenset(), frozenset({"K"})]), files=st.sampled_from([frozenset(), *FILES])
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.frozensets(st.sampled_from(NAMES), max_size=3),
)


@given(changes, wishes)
def test_a_choice_among_the_candidates_is_as_good_as_one_among_all(
    steps: list[tuple[str, ServerView]], wish: Wish
) -> None:
    index, now = ServerIndex(), dict[str, ServerView]()
    for what, view in steps:
        if what == "forget":
            index.forget(view.name)
            now.pop(view.name, None)
        else:
            index.update(view, used=what == "use")
            now[view.name] = view
    free = [view for view in now.values() if view.free]
    assert bool(index) == bool(free)
    assert all(view.name in index for view in free)
    known = choose(wish, index.candidates(wish))
    everywhere = choose(wish, free)
    assert (known.held, known.possible, known.warm) == (everywhere.held, everywhere.possible, everywhere.warm)
    assert (known.server is None) == (everywhere.server is None)
    if known.server is not None and everywhere.server is not None:
        assert now[known.server].rank() == now[everywhere.server].rank()
    assert len(index.candidates(wish)) <= max(8, 3 * (3 + len(FILES)))
    up = [view for view in now.values() if view.state is ServerState.UP and view.warm is not None]
    if wish.need.files:
        assert index.is_warm_somewhere(wish.need) == any(view.is_warm(wish.need) for view in up)


def test_servers_that_cannot_run_a_prompt_do_not_hide_an_idle_one_that_can() -> None:
    need = Need(classes=frozenset({"K"}), files=FILES[0])
    lacking = [ServerView(f"without{number}", offer=CANNOT, warm=FILES[1]) for number in range(20)]
    busy = [ServerView(f"busy{number}", ours=1, offer=CAN, warm=FILES[1]) for number in range(20)]
    index = index_of(*lacking, *busy, ServerView("can", offer=CAN, warm=FILES[1]))
    assert choose(Wish(need), index.candidates(Wish(need))).server == "can"


def test_of_many_servers_a_few_are_looked_at_and_of_few_all() -> None:
    many = index_of(*(ServerView(f"s{number}", ours=number % 2, warm=FILES[0]) for number in range(256)))
    assert len(many.candidates(Wish(Need(files=FILES[1])))) == 2
    few = index_of(*(ServerView(f"s{number}", warm=FILES[0]) for number in range(5)))
    assert len(few.candidates(Wish(Need(files=FILES[1])))) == 5


def test_a_server_that_holds_more_files_than_are_needed_is_warm() -> None:
    others = [ServerView(f"s{number}", warm=FILES[1]) for number in range(20)]
    wish = Wish(Need(files=frozenset("ac")))
    assert choose(wish, index_of(*others, ServerView("warm", warm=FILES[3])).candidates(wish)).server == "warm"


def test_of_equals_the_one_used_longest_ago_is_chosen() -> None:
    alike = [ServerView(f"s{number}") for number in range(20)]
    index = index_of(*alike)
    for number in range(40):
        (first,) = names_of(index, Wish(Need()))
        assert first == f"s{number % 20}"
        index.update(ServerView(first), used=True)
    index.update(alike[0])
    assert names_of(index, Wish(Need())) == {"s0"}, "what was merely looked at keeps its turn"
    index.update(ServerView("s0", others=1))
    assert names_of(index, Wish(Need())) == {"s1"}
