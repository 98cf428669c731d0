"""Which prompts have not moved for longer than their users bear.

A dead worker looks like a long node: the server's queue lists the prompt as running for ever (ComfyUI main.py
prompt_worker, all versions to 0.35). Nothing tells them apart but time, and only the user knows how much.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Stalls(Generic[T]):
    """Remember when each prompt that has a limit last moved. Times are seconds on a clock that is given."""

    def __init__(self) -> None:
        self._limits: dict[T, float] = {}
        self._moved: dict[T, float] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(self._limits)

    @property
    def shortest_limit(self) -> float | None:
        """The shortest limit of all; None when there is none."""
        return min(self._limits.values(), default=None)

    def watch(self, prompt: T, limit: float, now: float) -> None:
        """Watch a prompt from now on."""
        self._limits[prompt], self._moved[prompt] = limit, now

    def moved(self, prompts: Iterable[T], now: float) -> None:
        """Note that prompts moved; those without a limit are passed over."""
        for prompt in prompts:
            if prompt in self._limits:
                self._moved[prompt] = now

    def forget(self, prompt: T) -> None:
        """Stop watching a prompt."""
        self._limits.pop(prompt, None)
        self._moved.pop(prompt, None)

    def stalled(self, live: Container[T], now: float) -> list[tuple[T, float]]:
        """Give the prompts over their limits, with these; and forget those that are not live."""
        over = []
        for prompt, limit in list(self._limits.items()):
            if prompt not in live:
                self.forget(prompt)
            elif now - self._moved[prompt] >= limit:
                over.append((prompt, limit))
        return over
