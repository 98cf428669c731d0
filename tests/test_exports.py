"""What ``acomfy`` promises: its public names, and an import that loads nothing that was not asked for."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from types import ModuleType

import acomfy

NOT_LOADED = ("PIL", "acomfy.cli", "acomfy.examples", "acomfy.sheet", "acomfy.simulator", "rich", "typer")


def test_all_is_exactly_the_public_names_in_order() -> None:
    public = {name for name, value in vars(acomfy).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert acomfy.__all__ == sorted(public)


def test_every_public_name_can_be_imported_and_is_not_private_elsewhere() -> None:
    for name in acomfy.__all__:
        value = getattr(acomfy, name)
        assert getattr(value, "__name__", name) == name or name == "Event"


def test_the_package_itself_holds_names_and_no_code() -> None:
    assert acomfy.__file__ is not None
    with open(acomfy.__file__, encoding="utf-8") as file:
        docstring, *statements = ast.parse(file.read()).body
    assert isinstance(docstring, ast.Expr)
    for statement in statements:
        assert isinstance(statement, ast.ImportFrom) or (
            isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) in ("__all__", "__version__")
        )


def test_importing_acomfy_loads_neither_pillow_nor_the_simulator_nor_the_command_line() -> None:
    code = "import acomfy, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    loaded = set(json.loads(done.stdout))
    assert "acomfy.client" in loaded
    assert loaded.isdisjoint(NOT_LOADED)
