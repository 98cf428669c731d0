"""What the server did, for tests to compare with what a client believes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
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
