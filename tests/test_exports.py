"""What ``acomfy`` promises: its public names, and an import that loads nothing that was not asked for."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from types import ModuleType

import pytest

import acomfy
from acomfy import late

NOT_LOADED = (
    "PIL",
    "acomfy.cli",
    "acomfy.examples",
    "acomfy.pool",
    "acomfy.sheet",
    "acomfy.simulator",
    "rich",
    "typer",
)


def test_all_is_exactly_the_public_names_in_order() -> None:
    public = {name for name, value in vars(acomfy).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert acomfy.__all__ == sorted(public | late.HOMES.keys())


def test_names_that_are_loaded_late_are_those_that_type_checkers_see_and_others_are_not_there() -> None:
    (seen,) = [node for node in _statements() if isinstance(node, ast.If)]
    assert {alias.name for node in seen.body if isinstance(node, ast.ImportFrom) for alias in node.names} == {
        *late.HOMES
    }
    with pytest.raises(AttributeError, match="module 'acomfy' has no attribute 'Pond'"):
        acomfy.Pond  # type: ignore[attr-defined]  # noqa: B018


def test_every_public_name_can_be_imported_and_is_not_private_elsewhere() -> None:
    for name in acomfy.__all__:
        value = getattr(acomfy, name)
        assert getattr(value, "__name__", name) == name or name == "Event"


def test_the_package_itself_holds_names_and_no_code() -> None:
    docstring, *statements = _statements()
    assert isinstance(docstring, ast.Expr)
    for statement in statements:
        assert isinstance(statement, ast.ImportFrom | ast.Import | ast.If) or (
            isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) in ("__all__", "__version__")
        )
        if isinstance(statement, ast.If):
            assert ast.unparse(statement.test) == "typing.TYPE_CHECKING"
            assert all(isinstance(node, ast.ImportFrom) for node in (*statement.body, *statement.orelse))


def _statements() -> list[ast.stmt]:
    assert acomfy.__file__ is not None
    with open(acomfy.__file__, encoding="utf-8") as file:
        return ast.parse(file.read()).body


def test_importing_acomfy_loads_neither_pillow_nor_the_simulator_nor_the_command_line() -> None:
    code = "import acomfy, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    loaded = set(json.loads(done.stdout))
    assert "acomfy.client" in loaded
    assert loaded.isdisjoint(NOT_LOADED)
