"""What the server did, for tests to compare with what a client believes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias

State: TypeAlias = Literal["pending", "in_progress", "completed", "failed", "cancelled", "deleted", "lost"]


@dataclass(frozen=True, slots=True)
class ProducedImage:
    """An image that a node saved or streamed.

    Attributes:
        filename: Its file's name; None for a streamed image.
        sha256: Of the file's bytes, or of the streamed image without the frame's header.
    """

    node_id: str
    filename: str | None
    sha256: str


@dataclass(slots=True)
class Entry:
    """What became of one prompt_id.

    Attributes:
        accepted: How often it was queued.
        executions: How often it was started.
        state: Its last state; ``cancelled`` means interrupted while it ran, ``lost`` that the server ended first.
        images: What its nodes produced, in order, over all executions.
    """

    prompt_id: str
    accepted: int = 0
    executions: int = 0
    state: State = "pending"
    images: list[ProducedImage] = field(default_factory=list)

    @property
    def sha256s(self) -> list[str]:
        """The hashes of its images, in order."""
        return [image.sha256 for image in self.images]


class Ledger(dict[str, Entry]):
    """The server's own account, by prompt_id. It outlives the history, restarts and clears."""

    def accept(self, prompt_id: str) -> None:
        """Note that a prompt was queued."""
        entry = self.setdefault(prompt_id, Entry(prompt_id))
        entry.accepted += 1
        entry.state = "pending"

    def start(self, prompt_id: str) -> None:
        """Note that a prompt was started."""
        entry = self.setdefault(prompt_id, Entry(prompt_id))
        entry.executions += 1
        entry.state = "in_progress"

    def settle(self, prompt_id: str, state: State) -> None:
        """Note how a prompt ended."""
        self.setdefault(prompt_id, Entry(prompt_id)).state = state

    def produced(self, prompt_id: str, node_id: str, image: bytes, filename: str | None) -> None:
        """Note an image."""
        produced = ProducedImage(node_id, filename, hashlib.sha256(image).hexdigest())
        self.setdefault(prompt_id, Entry(prompt_id)).images.append(produced)

    @property
    def executions(self) -> int:
        """How many executions were started in all."""
        return sum(entry.executions for entry in self.values())


class WrittenLedger(Ledger):
    """A ledger that tells of everything as it happens, as a line of JSON, so that it outlives its process.

    Args:
        write: Gets each line.
        server: Gives the server's address, by which `read_ledgers` tells the ledgers in a file apart.
    """

    def __init__(self, write: Callable[[str], object], server: Callable[[], str]) -> None:
        super().__init__()
        self._write = write
        self._server = server

    def accept(self, prompt_id: str) -> None:
        """See `Ledger.accept`."""
        super().accept(prompt_id)
        self._note(prompt_id, "accepted")

    def start(self, prompt_id: str) -> None:
        """See `Ledger.start`."""
        super().start(prompt_id)
        self._note(prompt_id, "started")

    def settle(self, prompt_id: str, state: State) -> None:
        """See `Ledger.settle`."""
        super().settle(prompt_id, state)
        self._note(prompt_id, state)

    def produced(self, prompt_id: str, node_id: str, image: bytes, filename: str | None) -> None:
        """See `Ledger.produced`."""
        super().produced(prompt_id, node_id, image, filename)
        self._note(prompt_id, "image", asdict(self[prompt_id].images[-1]))

    def _note(self, prompt_id: str, what: str, more: dict[str, object] | None = None) -> None:
        note = {"at": time.time(), "server": self._server(), "prompt_id": prompt_id, "what": what, **(more or {})}
        self._write(json.dumps(note) + "\n")


def read_ledgers(lines: Iterable[str]) -> dict[str, Ledger]:
    """Read what `WrittenLedger` wrote: the ledger of each server, by its address."""
    ledgers: dict[str, Ledger] = {}
    for note in map(json.loads, lines):
        ledger, prompt_id, what = ledgers.setdefault(note["server"], Ledger()), note["prompt_id"], note["what"]
        if what == "accepted":
            ledger.accept(prompt_id)
        elif what == "started":
            ledger.start(prompt_id)
        elif what == "image":
            ledger[prompt_id].images.append(ProducedImage(note["node_id"], note["filename"], note["sha256"]))
        else:
            ledger.settle(prompt_id, what)
    return ledgers
