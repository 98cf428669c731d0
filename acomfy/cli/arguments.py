"""What was typed, read into workflows: pure functions, and the errors that say what could have been typed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .. import examples
from ..access import base_url
from ..workflow import ObjectInfo, Workflow

Seed: TypeAlias = int | Literal["random"] | None

DEFAULT_SERVER = "http://127.0.0.1:8188"

_SEED_NAMES = ("seed", "noise_seed")
_SEED_LIMIT = 2**64  # ComfyUI's own: KSampler's seed is at most 0xffffffffffffffff
_RANDOM_BITS = 50  # so few that the editor, which counts in doubles, shows every seed exactly


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


def load_workflow(name: str, object_info: ObjectInfo | None = None, *, keep_unknown: bool = False) -> Workflow:
    """Load a workflow from a path, or a shipped example by its name.

    Args:
        object_info: The node classes of the server, for the editor's own format.
        keep_unknown: Keep nodes of classes that the server has not.

    Raises:
        UsageError: There is neither, or the file cannot be read.
        WorkflowFormatError: There is no workflow in it, or it needs ``object_info``.
        ServerError: The node classes cannot be had.
    """
    path = Path(name)
    if not path.exists() and name in examples.WORKFLOWS:
        return examples.load(name)
    try:
        return Workflow.load(path, object_info, keep_unknown=keep_unknown, rng=random.Random(), now=datetime.now())
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

    Attributes:
        seeds: The seed of each prompt made so far; None where the workflow has none, or several.

    Raises:
        UsageError: A seed is asked for, and no input takes one.
    """

    def __init__(self, workflow: Workflow, seed: Seed, count: int) -> None:
        self.count = count
        self.seeds: list[int | None] = []
        self._workflow = workflow
        self._seed: Seed = seed
        self._inputs = seed_inputs(workflow)
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
            return random.getrandbits(_RANDOM_BITS)
        return None if self._seed is None else self._seed + index

    def _present_seed(self) -> int | None:
        """Give the seed that is in the workflow, if there is one."""
        present = {self._workflow[node_id]["inputs"][name] for node_id, name in self._inputs}
        return present.pop() if len(present) == 1 else None


def seed_inputs(workflow: Workflow) -> list[tuple[str, str]]:
    """Find the inputs that are seeds: named so, and a number, not a link to another node."""
    return [
        (node_id, name)
        for node_id, node in workflow.items()
        for name, value in node["inputs"].items()
        if name in _SEED_NAMES and type(value) in (int, float)
    ]
