"""Which server of a pool a prompt goes to, and why: pure functions over a snapshot.

Theory of operation. A prompt *needs* node classes and model files; a server *offers* some (its ``GET /object_info``).
Among the servers that are up, have a place free and offer what is needed, one wins

* whose models are warm: what was given to it last used the same files, so nothing has to be loaded;
* else one that is idle. A server that still has work takes no prompt that would change its models, unless that prompt
  was passed over too often (`Wish.must`): so switches are rare, and nobody starves;
* and among equals the one with the shortest line for its weight, those that failed the last prompts coming last.

When all warm servers are busy while another is idle, the prompt waits for them about as long as one prompt takes
(`Wish.patient`), then it goes to the idle one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .workflow.requirements import MODEL_FILES

_SUSPICIOUS = 3
_MOST_ANSWERS = 10_000
_SHOWN = 5


class ServerState(StrEnum):
    """How a server of a pool is."""

    STARTING = "starting"
    UP = "up"
    SHAKY = "shaky"
    DOWN = "down"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Need:
    """What a prompt needs of a server.

    Attributes:
        classes: The node classes.
        models: The model files, each with the class and input that name it.
        files: Those of them that take long to load, which is all but LoRAs.
    """

    classes: frozenset[str] = frozenset()
    models: frozenset[tuple[str, str, str]] = frozenset()
    files: frozenset[str] = frozenset()


NOTHING = Need()


def read_need(nodes: Mapping[str, Any]) -> Need:
    """Find out what a graph in API format needs."""
    classes: set[str] = set()
    models: set[tuple[str, str, str]] = set()
    for node in nodes.values():
        class_type = node["class_type"]
        classes.add(class_type)
        for name, value in node["inputs"].items():
            if isinstance(value, str) and value.lower().endswith(MODEL_FILES):
                models.add((class_type, str(name), str(value)))
    files = frozenset(value for _, name, value in models if "lora" not in name.lower())
    return Need(frozenset(classes), frozenset(models), files)


class Offer:
    """What a server offers. Equal by content, so that servers that are alike can share one.

    Args:
        classes: The node classes.
        choices: The model files that an input of a class takes.
    """

    __slots__ = ("_answers", "choices", "classes")

    def __init__(self, classes: Iterable[str], choices: Mapping[tuple[str, str], frozenset[str]]) -> None:
        self.classes = frozenset(classes)
        self.choices = dict(choices)
        self._answers: dict[Need, str] = {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Offer):
            return NotImplemented
        return self.classes == other.classes and self.choices == other.choices

    def __hash__(self) -> int:
        return hash((self.classes, len(self.choices)))

    def lacks(self, need: Need) -> str:
        """Say what of a need is not offered; "" when nothing is, as far as can be told."""
        answer = self._answers.get(need)
        if answer is None:
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            answer = self._answers[need] = self._lacks(need)
        return answer

    def _lacks(self, need: Need) -> str:
        classes = sorted(need.classes - self.classes)
        if classes:
            return f"it has no node class {_listed(classes)}"
        missing = sorted({value for key, name, value in need.models if self._is_missing(key, name, value)})
        return f"it has no model {_listed(missing)}" if missing else ""

    def _is_missing(self, class_type: str, name: str, value: str) -> bool:
        choices = self.choices.get((class_type, name))
        return choices is not None and value not in choices


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def read_offer(object_info: Mapping[str, Any]) -> Offer:
    """Read what ``GET /object_info`` says of node classes and model files; what is no ComfyUI's is passed over."""
    choices: dict[tuple[str, str], frozenset[str]] = {}
    for class_type, about in object_info.items():
        groups = about.get("input") if isinstance(about, Mapping) else None
        for group in groups.values() if isinstance(groups, Mapping) else ():
            for name, declared in group.items() if isinstance(group, Mapping) else ():
                models = _models(declared)
                if models is not None:
                    choices[class_type, name] = models
    return Offer(object_info, choices)


def _models(declared: Any) -> frozenset[str] | None:
    """Give the model files that an input takes; None when it is about something else."""
    if not isinstance(declared, list | tuple) or not declared:
        return None
    options = declared[0]
    if options == "COMBO" and len(declared) > 1 and isinstance(declared[1], Mapping):
        options = declared[1].get("options")
    if not isinstance(options, list):
        return None
    found = frozenset(option for option in options if isinstance(option, str) and option.lower().endswith(MODEL_FILES))
    return found if found or not options else None  # an empty list is that of a folder without models


# --- The choice ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerView:
    """A server at one moment.

    Attributes:
        name: Its address.
        places: How many prompts it may be given at once (``in_flight``).
        ours: How many it has been given.
        others: How many prompts of others are in its queue.
        warm: The model files that the last prompt given to it used; None when it is not known what it holds.
        failures: How many prompts failed there since the last success.
        offer: None when it is not known.
    """

    name: str
    state: ServerState = ServerState.UP
    places: int = 2
    ours: int = 0
    others: int = 0
    warm: frozenset[str] | None = None
    weight: float = 1.0
    failures: int = 0
    offer: Offer | None = field(default=None, repr=False)

    @property
    def free(self) -> bool:
        """Whether it can be given a prompt now."""
        return self.state is ServerState.UP and self.ours < self.places

    def is_warm(self, need: Need) -> bool:
        """Tell whether the models of a prompt need not be loaded in the place of others."""
        return self.warm is None or need.files <= self.warm

    def rank(self) -> tuple[bool, float]:
        """Give the key by which servers are preferred, lowest first."""
        return self.failures >= _SUSPICIOUS, (self.ours + self.others + 1) / self.weight


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be placed, and how urgent it is.

    Attributes:
        patient: It may wait for a server where its models are warm, since there is one.
        must: It was passed over too often: it goes to any server that can run it.
        anywhere: No server is known to offer what it needs. One is asked all the same: its refusal says what is wrong.
        refused: Servers that refused it.
    """

    need: Need
    patient: bool = False
    must: bool = False
    anywhere: bool = False
    refused: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a prompt went, or why it waits; as text it says why.

    Attributes:
        server: The address of the chosen server; None while it waits.
        warm: Whether nothing had to be loaded in the place of other models there.
        held: It waits for a busy server where its models are warm.
        possible: Some server with a free place could run it, at the price of a switch.
    """

    server: str | None
    warm: bool
    wish: Wish = field(repr=False)
    views: tuple[ServerView, ...] = field(repr=False)
    held: bool = False
    possible: bool = False

    def __str__(self) -> str:
        chosen = [view for view in self.views if view.name == self.server]
        others = [view for view in self.views if view.name != self.server]
        parts = [f"{view.name}: {self._why(view)}" for view in chosen]
        parts += [f"{view.name}: {_state_for(self.wish, view)}" for view in others]
        head = f"chosen of {len(self.views)}" if chosen else "waits"
        return f"{head}; " + "; ".join(parts) if parts else f"{head}: there is no server with a free place"

    def _why(self, view: ServerView) -> str:
        state = _state_for(self.wish, view)
        if not self.wish.need.files or self.warm:
            return state
        if self.wish.must:
            return f"{state}; it was passed over often enough"
        return state


def _state_for(wish: Wish, view: ServerView) -> str:
    """Say how a server stands to a wish."""
    if view.state is not ServerState.UP:
        return str(view.state)
    if view.name in wish.refused:
        return "refused it"
    lacking = "" if view.offer is None else view.offer.lacks(wish.need)
    if lacking:
        return lacking
    line = f"{view.ours} of {view.places} places taken" + (f", {view.others} of others" if view.others else "")
    weight = f", weight {view.weight:g}" if view.weight != 1 else ""
    failing = f", {view.failures} failures in a row" if view.failures >= _SUSPICIOUS else ""
    if not wish.need.files or view.warm is None:
        return line + weight + failing
    warmth = "its models are warm" if view.is_warm(wish.need) else "its models would have to be loaded"
    return f"{warmth}, {line}{weight}{failing}"


def is_offered(wish: Wish, offer: Offer | None) -> bool:
    """Tell whether an offer, as far as it is known, has what a prompt needs."""
    return wish.anywhere or offer is None or not offer.lacks(wish.need)


def may_run(wish: Wish, view: ServerView) -> bool:
    """Tell whether a server, as far as is known, can run a prompt, whatever it does now."""
    return view.name not in wish.refused and is_offered(wish, view.offer)


def choose(wish: Wish, views: Sequence[ServerView]) -> Placement:
    """Choose one of the servers for a prompt, or none for now."""
    best: dict[str, ServerView] = {}
    ranks: dict[str, tuple[bool, float]] = {}
    at_once = not wish.need.files
    for view in views:
        if not view.free or not may_run(wish, view):
            continue
        is_warm = view.is_warm(wish.need)
        at_once = at_once or (is_warm and not view.ours)
        kind = "warm" if is_warm else "cold" if view.ours else "idle"
        rank = view.rank()
        if kind not in best or rank < ranks[kind]:
            best[kind], ranks[kind] = view, rank
    chosen, held = _chosen(wish, best, at_once=at_once)
    name = None if chosen is None else chosen.name
    return Placement(
        name, chosen is not None and chosen is best.get("warm"), wish, tuple(views), held, possible=bool(best)
    )


def _chosen(wish: Wish, best: Mapping[str, ServerView], *, at_once: bool) -> tuple[ServerView | None, bool]:
    """Weigh the best of three kinds; tell, too, whether it only waits for a warm one.

    With ``at_once`` a warm server would begin at once, or loads nothing: then nothing is gained by an idle one.
    """
    warm, idle = best.get("warm"), best.get("idle")
    if warm is not None and (at_once or idle is None):
        return warm, False
    if idle is not None:
        return (None, True) if wish.patient and not wish.must else (idle, False)
    return best.get("cold") if wish.must else None, False
