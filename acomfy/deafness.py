"""Does our WebSocket still hear the server? Decided from what it told and what HTTP tells, on a clock that is given.

ComfyUI sends a ``status`` to every socket whenever its queue changes (server.py queue_updated). So one must come after
each of our POSTs, and after the end of each prompt. A socket on which it does not come while HTTP answers is deaf: the
server unregistered it (its handler of an older socket with the same client id ended; all versions to 0.38), or another
client that does not read stalls the sending to all. Opening it anew heals the first and not the second, so it is done
more and more rarely.
"""

from __future__ import annotations

from dataclasses import dataclass

_REOPEN_FIRST, _REOPEN_LONGEST = 2.0, 60.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What a socket has told so far: how many ``status`` messages, and how often it was opened anew."""

    statuses: int
    generation: int


class Deafness:
    """Suspect and clear one client's socket."""

    def __init__(self) -> None:
        self._expected: tuple[Heard, float] | None = None
        self._contradicted: Heard | None = None
        self._reopen_allowed = 0.0
        self._reopen_delay = _REOPEN_FIRST

    @property
    def due(self) -> float | None:
        """When an expected ``status`` is overdue; None when none is expected."""
        return None if self._expected is None else self._expected[1]

    def expect(self, heard: Heard, by: float) -> None:
        """Note that a ``status`` will come after what was heard; the first expectation stands until it is checked."""
        if self._expected is None:
            self._expected = heard, by

    def overdue(self, heard: Heard, now: float) -> bool:
        """Tell whether the expected ``status`` should have come by now; drop the expectation if it did."""
        if self._expected is None:
            return False
        before, by = self._expected
        if before != heard:
            self._expected = None
        return self._expected is not None and now >= by

    def missed(self, heard: Heard) -> bool:
        """Tell whether the overdue ``status`` is still missing, now that HTTP has answered."""
        before = self._expected
        self._expected = None
        return before is not None and before[0] == heard

    def contradicts(self, told: int | None, remaining: int | None, heard: Heard) -> bool:
        """Tell whether the newest queue number that the socket told is wrong, as it was at the last look."""
        if told is None or remaining is None or told == remaining:
            self._contradicted = None
            return False
        before, self._contradicted = self._contradicted, heard
        return before == heard

    def may_reopen(self, now: float) -> bool:
        """Tell whether the socket may be opened anew, and count it as done."""
        if now < self._reopen_allowed:
            return False
        self._reopen_allowed = now + self._reopen_delay
        self._reopen_delay = min(self._reopen_delay * 2, _REOPEN_LONGEST)
        return True

    def clear(self) -> None:
        """Note that the socket tells of our prompts."""
        self._reopen_delay = _REOPEN_FIRST

    def forget(self) -> None:
        """Expect nothing any more: no prompt is live."""
        self._expected = self._contradicted = None
