"""What a look at the server by HTTP tells: its queue, a history entry, and what is in neither.

Rules (ComfyUI server.py, execution.py PromptQueue, 0.3.40 to 0.38; the fork of 0.10.0 where it differs):

* ``/queue`` is read **before** ``/history``: a prompt moves from the one to the other in one step, so in this order it
  is seen at least once.
* ``queue_pending`` is the array of a heap, not a line: prompts run in the order of (number, prompt_id).
* A prompt that is in neither was deleted, or lost in a restart, or pushed out of the history. One look does not prove
  it: the second, at least a second later, decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ProtocolError
from .outputs import from_history
from .progress import upstream

CERTAIN_AFTER = 1.0
"""Seconds between the two looks that prove a prompt to be gone."""

PROMPT_ID_TAG = "acomfy_prompt_id"
"""Key of ``extra_data`` under which a server that chooses prompt ids itself (before 0.3.45) gives ours back."""


@dataclass(frozen=True, slots=True)
class QueueItem:
    """A prompt in the server's queue.

    Attributes:
        number: Its place in the order, lowest first; ties go by prompt_id.
        prompt: Its graph in API format.
        extra_data: As posted, with ``client_id`` in it.
    """

    number: float
    prompt_id: str
    prompt: Mapping[str, Any] = field(repr=False)
    extra_data: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """The server's queue at one moment: what runs, and what waits in the order in which it will run."""

    running: tuple[QueueItem, ...]
    pending: tuple[QueueItem, ...]

    def __iter__(self) -> Iterator[QueueItem]:
        yield from self.running
        yield from self.pending

    def ids(self) -> set[str]:
        """Give the prompt_ids of all that runs or waits."""
        return {item.prompt_id for item in self}

    def position(self, prompt_id: str) -> int | None:
        """Count the prompts before this one, the running one included; None when it is not in the queue."""
        return next((place for place, item in enumerate(self) if item.prompt_id == prompt_id), None)

    def find(self, prompt_id: str) -> QueueItem | None:
        """Find our prompt by its id, or by the tag that we gave it on a server that chose the id itself."""
        return next(iter(self.copies(prompt_id)), None)

    def copies(self, prompt_id: str) -> list[QueueItem]:
        """Find all entries of our prompt: two, when a POST that was thought lost surfaced after another."""
        return [item for item in self if prompt_id in (item.prompt_id, item.extra_data.get(PROMPT_ID_TAG))]


def read_queue(body: Any) -> QueueSnapshot:
    """Read the answer to ``GET /queue``, with items as arrays or (fork of 0.10.0) as objects.

    Raises:
        ProtocolError: It is not what ComfyUI answers.
    """
    try:
        running, pending = _queue_items(body["queue_running"]), _queue_items(body["queue_pending"])
    except (KeyError, TypeError, IndexError, ValueError, OverflowError) as exc:
        raise ProtocolError(f"the answer to GET /queue is not a queue: {exc!r}") from None
    return QueueSnapshot(tuple(running), tuple(sorted(pending, key=lambda item: (item.number, item.prompt_id))))


def _queue_items(items: Any) -> list[QueueItem]:
    # Strict about the form: nonsense must not pass for an empty queue, of which every prompt is gone.
    if not isinstance(items, list):
        raise TypeError(f"{type(items).__name__} is no list of prompts")
    return [_queue_item(item) for item in items]


def _queue_item(item: Any) -> QueueItem:
    if isinstance(item, Mapping):
        number, prompt_id, prompt = item.get("priority", item.get("number", 0)), item["prompt_id"], item.get("prompt")
        extra_data = item.get("extra_data")
    elif isinstance(item, list):
        number, prompt_id, prompt, extra_data = item[0], item[1], item[2], item[3]
        if isinstance(extra_data, list):  # Comfy Cloud: the outputs stand there, and what it knows of the prompt after
            extra_data = item[4] if len(item) > 4 else None
    else:
        raise TypeError(f"{type(item).__name__} is no prompt")
    return QueueItem(
        float(number),
        str(prompt_id),
        prompt if isinstance(prompt, Mapping) else {},
        extra_data if isinstance(extra_data, Mapping) else {},
    )


def history_prompt_id(history: Mapping[str, Any], prompt_id: str) -> str | None:
    """Find our prompt in a history by the tag that we gave it; None when it is not there."""
    for found_id, entry in history.items():
        prompt = entry.get("prompt") if isinstance(entry, Mapping) else None
        if isinstance(prompt, Mapping):  # Comfy Cloud, and the fork of 0.10.0
            prompt = [prompt.get("extra_data")]
        for part in prompt if isinstance(prompt, list) else ():
            if isinstance(part, Mapping) and part.get(PROMPT_ID_TAG) == prompt_id:
                return found_id
    return None


def history_outputs(entry: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Give a history entry's outputs as ``{node_id: (display_node, ui)}``, as the ``executed`` events name them.

    Up to 0.3.67 the entry also lists cached nodes that this prompt was not asked to run; those are left out.
    """
    wanted = _wanted(entry)
    found = from_history(entry)
    return found if wanted is None else {node: item for node, item in found.items() if item[0] in wanted}


def _wanted(entry: Mapping[str, Any]) -> set[str] | None:
    """Give the nodes that the prompt had to run: its outputs to execute and all before them; None when untold."""
    graph, targets = history_prompt(entry), history_targets(entry)
    if graph is None or targets is None:
        return None
    return upstream(graph, targets)


def history_prompt(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Give the graph that a history entry was run from; None when it does not tell."""
    prompt = entry.get("prompt")
    graph = prompt.get("prompt") if isinstance(prompt, Mapping) else _item(prompt, 2)
    return graph if isinstance(graph, Mapping) and all(isinstance(node, Mapping) for node in graph.values()) else None


def history_targets(entry: Mapping[str, Any]) -> list[str] | None:
    """Give the output nodes that the prompt had to run: without those that were invalid or not asked for."""
    prompt = entry.get("prompt")
    targets = prompt.get("outputs_to_execute") if isinstance(prompt, Mapping) else _item(prompt, 4)
    if not isinstance(targets, list):
        return None
    return [target for target in targets if isinstance(target, str)]


def history_cached(entry: Mapping[str, Any]) -> list[str] | None:
    """Give the nodes that needed no run; None when the entry does not tell (the fork of 0.10.0)."""
    status = entry.get("status")
    messages = status.get("messages") if isinstance(status, Mapping) else None
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, list) and len(message) == 2 and message[0] == "execution_cached":
            nodes = message[1].get("nodes") if isinstance(message[1], Mapping) else None
            return [str(node) for node in nodes] if isinstance(nodes, list) else None
    return None


def _item(prompt: Any, index: int) -> Any:
    return prompt[index] if isinstance(prompt, list) and len(prompt) > index else None


class Absences:
    """Remember since when a prompt was seen to be neither in the queue nor in the history."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def proven(self, prompt_id: str, now: float) -> bool:
        """Note one more absence, at ``now`` seconds; tell whether it proves that the prompt is gone."""
        since = self._since.setdefault(prompt_id, now)
        return now - since >= CERTAIN_AFTER

    def keep(self, prompt_ids: Iterable[str]) -> None:
        """Forget all but these: the others were seen, or have their outcome."""
        kept = set(prompt_ids)
        self._since = {prompt_id: since for prompt_id, since in self._since.items() if prompt_id in kept}


def lost_reason(*, ran: bool, in_gap: bool) -> str:
    """Say why a prompt is in neither the queue nor the history, in the words of `JobLost`.

    Args:
        ran: It was seen to run.
        in_gap: The server could not be reached for a while since the prompt was posted.
    """
    if in_gap:
        return "restarted"
    return "evicted" if ran else "deleted"
