"""When to try a read again: the one policy, which decides and never waits.

Only reads are tried again blindly. What changes something on the server may have been done although its answer was
lost; how a POST of a prompt is made certain is told in `acomfy.submission`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz

from .errors import HTTPError, ServerUnreachable

_LONGEST = 86_400.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Decide whether a read that failed is tried again, and after how many seconds.

    A read is tried again when no answer came, or when it broke off, and when a status says that another try may do
    better. ``Retry-After`` is honoured; else the delays grow, and vary, so that many clients do not come back at once.

    Attributes:
        tries: Tries in all; 1 for no second one.
        first_delay: Seconds before the second try.
        factor: How much longer each further delay is.
        longest_delay: Seconds that a delay of our own never exceeds.
        longest_retry_after: Seconds that are waited at the most when the server asks to wait.
        statuses: Statuses after which a read is tried again: too many requests, and a proxy without an answer.
    """

    tries: int = 4
    first_delay: float = 0.2
    factor: float = 3.0
    longest_delay: float = 10.0
    longest_retry_after: float = 60.0
    statuses: frozenset[int] = field(default=frozenset({429, 502, 503, 504}))

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"tries is 1 or more, not {self.tries}")
        times = (self.first_delay, self.factor, self.longest_delay, self.longest_retry_after)
        if not all(math.isfinite(time) and 0 <= time <= _LONGEST for time in times):
            raise ValueError(f"the delays and the factor of a RetryPolicy are from 0 to {_LONGEST:g}")

    def delay(self, attempt: int, exc: Exception, draw: Callable[[], float] = random.random) -> float | None:
        """Give the seconds to wait after a failed try; None to give up.

        Args:
            attempt: Which try failed, counted from 1.
            exc: How it failed.
            draw: Gives a random number from 0 to 1.
        """
        if attempt >= self.tries or not self.may_repeat(exc):
            return None
        grown = self.first_delay * self.factor ** min(attempt - 1, 50)  # beyond that a float might overflow
        own = min(grown, self.longest_delay) * (0.5 + draw() / 2)
        asked = exc.retry_after if isinstance(exc, HTTPError) else None
        return own if asked is None else max(own, min(asked, self.longest_retry_after))

    def may_repeat(self, exc: Exception) -> bool:
        """Tell whether another try may do better."""
        if isinstance(exc, HTTPError):
            return exc.status in self.statuses
        return isinstance(exc, ServerUnreachable)


def read_retry_after(text: str | None, now: float) -> float | None:
    """Read a ``Retry-After`` header: seconds, or a date (RFC 9110, 10.2.3); None when it is neither.

    Args:
        now: The time, in seconds since 1970, that a date is counted from: the server's own, where it told.
    """
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    date = read_date(text)
    return None if date is None else max(0.0, date - now)


def read_date(text: str | None) -> float | None:
    """Read a date of HTTP, in seconds since 1970; None when it is none."""
    try:
        parsed = parsedate_tz(text or "")
        return None if parsed is None else float(mktime_tz(parsed))
    except (ValueError, OverflowError, IndexError, TypeError):  # dates that no calendar has
        return None
