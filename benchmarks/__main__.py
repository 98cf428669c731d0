"""``python -m benchmarks``: measure all, and write a table, with ``--json`` data, with ``--markdown`` the README's."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator

from .report import Row, as_json, markdown, table
from .rows import core, fleet, latency, memory, pool, stall, startup, throughput, transfer
from .scale import FULL, Scale

FAMILIES: dict[str, Callable[[Scale], Iterator[Row]]] = {
    module.FAMILY: module.rows for module in (throughput, latency, transfer, core, memory, stall, pool, fleet, startup)
}


def measured(families: list[str], scale: Scale = FULL) -> Iterator[Row]:
    """Measure some families of rows, and tell on standard error how it goes on."""
    start = time.monotonic()
    for family in families:
        for row in FAMILIES[family](scale):
            print(f"{time.monotonic() - start:5.0f} s  {family}: {row.name}", file=sys.stderr)
            yield row


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    families = f"measure these alone, of {', '.join(FAMILIES)} (default: all)"
    parser.add_argument("family", nargs="*", choices=[[], *FAMILIES], metavar="FAMILY", help=families)
    written = parser.add_mutually_exclusive_group()
    written.add_argument("--json", action="store_true", help="write JSON instead of a table")
    written.add_argument(
        "--markdown", action="store_true", help="write what is wanted, as the README's table of ratios"
    )
    arguments = parser.parse_args()
    rows = list(measured(arguments.family or list(FAMILIES)))
    if arguments.json:
        print(json.dumps(as_json(rows), indent=1))
    else:
        print((markdown if arguments.markdown else table)(rows))


if __name__ == "__main__":
    main()
