"""Imports go one way. The table here is the only list of the layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import acomfy

PACKAGE = Path(acomfy.__file__).parent

# Each row may import the rows above it, never its own row nor those below. ``__init__`` is the package's own names.
PURE = (
    ("captures", "errors", "loose", "markup"),
    ("definitions", "ranges", "refusals", "retry", "tags"),
    ("checking", "conversion", "media_tags", "picture_tags"),
    ("embedded",),
    ("events",),
    ("frames",),
    ("outputs", "progress", "verdict"),
    ("inputs", "router"),
    ("capabilities", "deafness", "look", "stalls", "workflow"),
    ("building", "codegen", "listings", "placement", "pool_moves", "profiles", "server_info"),
    ("line", "pool_index"),
    ("overview",),
    ("diagnosis",),
)
SHELL = (
    ("access", "concurrency", "connection", "decoding", "encoding", "files", "shared_reads", "snapshots", "stream"),
    ("answers", "download", "reading", "sessions"),
    ("metadata", "transport"),
    ("api",),
    ("probing",),
    ("explaining", "logs", "result", "server_files"),
    ("job", "uploads"),
    ("live", "mapping"),
    ("cancel", "places", "prompting", "server_methods", "watch"),
    ("submission",),
    ("client",),
    ("pool_job",),
    ("pool_server",),
    ("pool_dispatch", "pool_stats"),
    ("pool_members", "pool_pinned"),
    ("pool",),
    ("late",),
    ("__init__",),
)
EDGES = (
    ("sheet", "watching"),
    ("simulator",),
    ("fleet", "notebook", "otel", "pytest_plugin", "terminal"),
    ("examples",),
    ("cli",),
    ("__main__",),
)
ROWS = PURE + SHELL + EDGES
PURE_MODULES = {module for row in PURE for module in row}

# The simulator knows ComfyUI by the pure half alone: what it shares with the client beyond that it could not test.
SIMULATOR_MAY_IMPORT = PURE_MODULES | {"sheet"}

# What waits, moves bytes or looks at a clock, and what takes long to import.
NOT_IN_PURE = {"PIL", "aiohttp", "anyio", "asyncio", "datetime", "select", "socket", "ssl", "threading", "time"}

FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
SUBPACKAGES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def area(parts: tuple[str, ...]) -> str:
    """Give the table's name for a module of the package: the module itself, or its subpackage."""
    known = parts and (parts[0] in SUBPACKAGES or (PACKAGE / f"{parts[0]}.py").exists())
    return parts[0] if known else "__init__"


def imports(file: Path) -> Iterator[tuple[str, ...]]:
    """Yield every module that a file imports, anywhere in it, as its dotted name's parts."""
    package = ("acomfy", *file.parts[:-1])
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield (*base, alias.name)


def own_imports(file: Path) -> set[str]:
    return {area(parts[1:]) for parts in imports(file) if parts[0] == "acomfy"}


def row_of(module: str) -> int:
    return next(number for number, row in enumerate(ROWS) if module in row)


def test_the_table_holds_every_module_once_and_nothing_else() -> None:
    existing = {area(file.with_suffix("").parts) for file in FILES}
    assert sorted(module for row in ROWS for module in row) == sorted(existing)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_one_way(file: Path) -> None:
    own = area(file.with_suffix("").parts)
    for imported in own_imports(file) - {own}:
        assert row_of(imported) < row_of(own), f"{own} imports {imported}"


@pytest.mark.parametrize("module", sorted(PURE_MODULES))
def test_pure_modules_neither_wait_nor_move_bytes(module: str) -> None:
    for file in FILES:
        if area(file.with_suffix("").parts) == module:
            assert NOT_IN_PURE.isdisjoint(parts[0] for parts in imports(file)), file


def test_the_simulator_imports_pure_modules_only() -> None:
    for file in FILES:
        if file.parts[0] == "simulator":
            assert own_imports(file) <= SIMULATOR_MAY_IMPORT | {"simulator"}, file


def test_the_parser_sees_imports_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
from __future__ import annotations
import a.b
from . import errors, Client
from .events import Status
from acomfy import frames
if TYPE_CHECKING:
    from .cli.app import app
def function():
    from .simulator import SimulatedServer
    import acomfy.router
"""
    (tmp_path / "module.py").write_text(source)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    found = {".".join(parts) for parts in imports(Path("module.py"))}
    assert found == {
        "__future__.annotations",
        "a.b",
        "acomfy.errors",
        "acomfy.Client",
        "acomfy.events.Status",
        "acomfy.frames",
        "acomfy.cli.app.app",
        "acomfy.simulator.SimulatedServer",
        "acomfy.router",
    }
