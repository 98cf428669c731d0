"""What was typed, read into workflows: pure functions, and the errors that say what could have been typed."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .. import examples
from ..access import base_url
from ..definitions import Definitions
from ..workflow import ObjectInfo, Workflow

Seed: TypeAlias = int | Literal["random"] | None

DEFAULT_SERVER = "http://127.0.0.1:8188"

_SEED_NAMES = ("seed", "noise_seed")
_SEED_LIMIT = 2**64  # ComfyUI's own: KSampler's seed is at most 0xffffffffffffffff
_GREATEST_RANDOM = 2**50 - 1  # so few bits that the editor, which counts in doubles, shows every seed exactly


class UsageError(Exception):
    """What was typed makes no sense; the message says what would."""


def server_url(server: str | None) -> str:
    """Choose the server: the option, else ``ACOMFY_URL``, else this machine.

    Raises:
        UsageError: It is no address.
    """
    url = server or os.environ.get("ACOMFY_URL") or DEFAULT_SERVER
    try:
        base_url(url)
    except ValueError as exc:
        raise UsageError(f"--server: {exc}") from None
    return url


def source_of(name: str) -> Path | bytes:
    """Give the file of that name; what can be read but once (``-`` is stdin, or a pipe) is read.

    Raises:
        UsageError: It cannot be read.
    """
    path = Path(name)
    if name != "-" and (path.is_file() or path.is_dir() or not path.exists()):
        return path
    try:
        return sys.stdin.buffer.read() if name == "-" else path.read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read {name!r}: {exc.strerror}") from None


def load_workflow(name: str | bytes, object_info: ObjectInfo | None = None, *, keep_unknown: bool = False) -> Workflow:
    """Load a workflow from a file (``-`` is stdin) or its bytes, or a shipped example by its name.

    Args:
        object_info: The node classes of the server, for the editor's own format.
        keep_unknown: Keep nodes of classes that the server has not.

    Raises:
        UsageError: There is neither, or the file cannot be read.
        WorkflowFormatError: There is no workflow in it, or it needs ``object_info``.
        ServerError: The node classes cannot be had.
    """
    source = source_of(name) if isinstance(name, str) else name
    if isinstance(source, Path) and not source.exists() and name in examples.WORKFLOWS:
        return examples.load(str(name))
    try:
        return Workflow.load(source, object_info, keep_unknown=keep_unknown, rng=random.Random(), now=datetime.now())
    except FileNotFoundError:
        known = ", ".join(examples.WORKFLOWS)
        raise UsageError(
            f"there is no file {name!r}, nor a shipped example of that name (there are: {known})"
        ) from None
    except OSError as exc:
        raise UsageError(f"cannot read {name!r}: {exc.strerror}") from None


def with_settings(workflow: Workflow, settings: Iterable[str]) -> Workflow:
    """Set inputs as ``NODE.INPUT=VALUE`` says, NODE being an id, a title or a class; the last of several wins.

    Raises:
        UsageError: A setting has another form.
        WorkflowError: There is no such node or input; the message names those that exist.
    """
    for setting in settings:
        target, equals, text = setting.partition("=")
        name, dot, input_name = target.rpartition(".")
        if not (equals and dot):
            raise UsageError(f"--set {setting!r} is not NODE.INPUT=VALUE, for example 6.text='a fox' or 3.steps=30")
        node = workflow.find(name)
        value = read_value(text, node.inputs.get(input_name))
        workflow = workflow.replace({(node.node_id, input_name): value})
    return workflow


def read_value(text: str, current: object) -> Any:
    """Read a value as JSON, unless the input holds text now or this is no JSON: then it is text."""
    if isinstance(current, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_seed(text: str | None) -> Seed:
    """Read ``--seed``.

    Raises:
        UsageError: It is neither "random" nor a seed.
    """
    if text is None or text == "random":
        return text  # type: ignore[return-value]  # mypy does not narrow str to the literal
    if text.isascii() and text.isdigit() and int(text) < _SEED_LIMIT:
        return int(text)
    raise UsageError(f"--seed {text!r} is neither 'random' nor a whole number from 0 to {_SEED_LIMIT - 1}")


class Variants:
    """The prompts of one run, made when they are asked for; iterate once.

    Args:
        definitions: The server's node classes, which say what is a seed beyond its name, and how great it may be.

    Attributes:
        seeds: The seed of each prompt made so far; None where the workflow has none, or several.

    Raises:
        UsageError: A seed is asked for, and no input takes one.
    """

    def __init__(self, workflow: Workflow, seed: Seed, count: int, definitions: Definitions | None = None) -> None:
        self.count = count
        self.seeds: list[int | None] = []
        self._workflow = workflow
        self._seed: Seed = seed
        self._inputs = seed_inputs(workflow, definitions)
        self._greatest = min([_GREATEST_RANDOM, *_limits(workflow, self._inputs, definitions)])
        if seed is not None and not self._inputs:
            raise UsageError("--seed: no node of the workflow has a number as its seed or noise_seed")
        if isinstance(seed, int) and seed + count > _SEED_LIMIT:
            raise UsageError(f"--seed {seed} leaves no room for {count} seeds below {_SEED_LIMIT}")

    @property
    def all_same(self) -> bool:
        """Tell whether there are several prompts without a difference."""
        return self.count > 1 and self._seed is None

    def __iter__(self) -> Iterator[Workflow]:
        for index in range(self.count):
            seed = self._seed_of(index)
            self.seeds.append(self._present_seed() if seed is None else seed)
            yield self._workflow if seed is None else self._workflow.replace(dict.fromkeys(self._inputs, seed))

    def _seed_of(self, index: int) -> int | None:
        if self._seed == "random":
            return random.randint(0, self._greatest)
        return None if self._seed is None else self._seed + index

    def _present_seed(self) -> int | None:
        """Give the seed that is in the workflow, if there is one."""
        present = {self._workflow[node_id]["inputs"][name] for node_id, name in self._inputs}
        return present.pop() if len(present) == 1 else None


def seed_inputs(workflow: Workflow, definitions: Definitions | None = None) -> list[tuple[str, str]]:
    """Find the inputs that are seeds, by name or by definition, and a number, not a link to another node."""
    defined = set(workflow.seeds(definitions) if definitions is not None else ())
    return [
        (node_id, name)
        for node_id, node in workflow.items()
        for name, value in node["inputs"].items()
        if (name.rpartition(".")[2] in _SEED_NAMES or (node_id, name) in defined) and type(value) in (int, float)
    ]


def _limits(workflow: Workflow, inputs: list[tuple[str, str]], definitions: Definitions | None) -> Iterator[int]:
    """Yield the greatest value that each of the inputs takes, where that is known."""
    for node_id, name in inputs:
        definition = (definitions or {}).get(workflow[node_id]["class_type"])
        declared = definition.inputs_for(workflow[node_id]["inputs"]).get(name) if definition is not None else None
        if declared is not None and declared.maximum is not None:
            yield max(0, int(declared.maximum))
