"""How large the benchmarks are: large enough to mean something, or just so that every row is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of all families of rows.

    Attributes:
        levels: How many jobs are run at each number in flight.
        rounds: How often the sides take turns.
        seconds: After so many seconds a comparison takes no more turns.
        guide_jobs: Jobs that the guide's way runs.
        latency_jobs: Jobs of which each latency is taken.
        pictures: How many pictures are moved of each size in bytes.
        live: Prompts that the router, and the client, have live.
        big: Bytes of a picture and of a JSON body that must not stall the loop.
        repeats: How often what is only computed is run; the fastest run counts.
    """

    levels: dict[int, int]
    rounds: int
    seconds: float
    guide_jobs: int
    latency_jobs: int
    pictures: dict[int, int]
    live: int
    big: int
    repeats: int


KB, MB = 1 << 10, 1 << 20

FULL = Scale(
    levels={1: 200, 64: 500, 256: 1_000, 1_000: 1_500, 10_000: 10_000},
    rounds=7,
    seconds=4.0,
    guide_jobs=40,
    latency_jobs=200,
    pictures={64 * KB: 200, MB: 40, 16 * MB: 6, 100 * MB: 2},
    live=10_000,
    big=100 * MB,
    repeats=7,
)

TINY = Scale(
    levels={1: 2, 20: 20},
    rounds=1,
    seconds=0.1,
    guide_jobs=2,
    latency_jobs=3,
    pictures={64 * KB: 2},
    live=100,
    big=100 * KB,
    repeats=1,
)
