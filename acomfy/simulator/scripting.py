"""What tests want nodes to do: ``server.on("KSampler").takes(5).fails_with("no such model")``.

A `Script` stands in for a node class's function. Of several that fit, the one made last answers, until its `times` are
used up; then the one before it, and in the end the class itself. While a class has a script that may still answer,
the cache does not know its nodes: a script is asked each time.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import io
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from PIL import Image

from .clock import Clock
from .model_nodes import Latent
from .nodes import Batch, ExecutionBlocker, Node, NodeContext, NodeResult, as_result

_TICKS = 20  # progress messages of a node that takes its time and has no steps
_LOOK = 0.01  # real seconds between looks for an interrupt


class Script:
    """What the nodes of one class do; each method gives the script itself, so that they chain.

    Attributes:
        calls: The inputs of every call that it answered, links resolved.
    """

    def __init__(self, node: Node, clock: Clock, changed: Callable[[], None]) -> None:
        self.class_type = node.class_type
        self.calls: list[dict[str, Any]] = []
        self._node = node
        self._clock = clock
        self._changed = changed
        self._times: int | None = None
        self._wanted: dict[str, Any] = {}
        self._seconds = 0.0
        self._event: asyncio.Event | None = None
        self._error: BaseException | type[BaseException] | None = None
        self._values: tuple[Any, ...] | None = None
        self._ui: dict[str, Any] = {}
        self._files: list[tuple[bytes, str, str]] = []

    def __repr__(self) -> str:
        return f"<Script of {self.class_type}, called {len(self.calls)} times>"

    # --- When it answers -------------------------------------------------------------------------------------------

    def where(self, **inputs: Any) -> Self:
        """Answer only where these inputs have these values (``where(seed=3)``).

        Raises:
            ValueError: The class has no such input.
        """
        for name in inputs.keys() - self._node.specs.keys():
            close = difflib.get_close_matches(name, self._node.specs, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(self._node.specs) or 'none'}"
            raise ValueError(f"{self.class_type} has no input {name!r}; {hint}")
        self._wanted.update(inputs)
        return self

    def times(self, count: int) -> Self:
        """Answer so many calls at most."""
        if count < 0:
            raise ValueError(f"a number of calls is not negative: {count}")
        self._times = count
        return self

    def once(self) -> Self:
        """Answer one call."""
        return self.times(1)

    # --- What it answers -------------------------------------------------------------------------------------------

    def takes(self, seconds: float) -> Self:
        """Take so many seconds of the server's clock, with progress and previews as the class has them."""
        if seconds < 0:
            raise ValueError(f"nothing takes {seconds} seconds")
        self._seconds = seconds
        return self

    def waits_for(self, event: asyncio.Event) -> Self:
        """Wait until an event is set; an interrupt ends that, too."""
        self._event = event
        return self

    def fails_with(self, error: BaseException | type[BaseException] | str) -> Self:
        """Raise an exception; a text is raised as RuntimeError.

        `OutOfMemoryError` is reported as torch's, `Interrupted` as if somebody had interrupted the prompt.

        Raises:
            TypeError: It is neither.
        """
        if not isinstance(error, str | BaseException) and not _is_exception_class(error):
            raise TypeError(f"a node fails with an exception or a text, not {error!r}")
        self._error = RuntimeError(error) if isinstance(error, str) else error
        return self

    def returns(self, *values: Any) -> Self:
        """Give these values, one for each output of the class, instead of running it.

        A picture (PIL, encoded bytes, a path, or a list of these) becomes what the output's type asks for: an IMAGE,
        a MASK, or a LATENT that decodes to it. A class without outputs, as SaveImage, runs with it as its images.
        """
        self._values = values
        return self

    def blocks(self, message: str | None = None) -> Self:
        """Keep the nodes behind it from running, as an ExecutionBlocker does; with a message, the client is told."""
        self._values = (ExecutionBlocker(message),)
        return self

    def shows(self, **ui: list[Any]) -> Self:
        """Show this as the node's output (``shows(text=["a caption"])``), beside what it shows anyway."""
        self._ui.update(ui)
        return self

    def saves(self, data: bytes | str | os.PathLike[str], filename: str, kind: str = "images") -> Self:
        """Save a file in the output folder and show it, instead of running the class (``saves(mp4, "clip.mp4")``).

        Args:
            data: The bytes, or the path of a file to read now.
            kind: The key that it is shown under: ComfyUI's own video nodes use ``images``, others ``gifs``, ``audio``.
        """
        content = data if isinstance(data, bytes) else Path(data).read_bytes()
        if Path(filename).name != filename:
            raise ValueError(f"{filename!r} is no bare file name")
        self._files.append((content, filename, kind))
        return self

    # --- For the server --------------------------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """Whether it answers no more calls."""
        return self._times is not None and len(self.calls) >= self._times

    def answers(self, inputs: Mapping[str, Any]) -> bool:
        """Tell whether it answers a call with these inputs."""
        return not self.exhausted and all(
            name in inputs and inputs[name] == value for name, value in self._wanted.items()
        )

    async def run(self, node: Node, context: NodeContext, inputs: dict[str, Any]) -> Any:
        """Do what the script says in place of a node's function."""
        self.calls.append(inputs)
        self._changed()
        if self._event is not None:
            await self._wait(context, self._event)
        runs_itself = self._error is None and not self._files and self._values is None
        if self._seconds and not (runs_itself and self._takes_steps(context, inputs)):
            await self._pass_time(context, inputs)
        if self._error is not None:
            raise self._error
        return self._shown(await self._answer(node, context, inputs))

    def _takes_steps(self, context: NodeContext, inputs: Mapping[str, Any]) -> bool:
        """Spread the time over the steps of a sampler, which sleeps by itself; False if the class has none."""
        steps = inputs.get("steps")
        if not isinstance(steps, int) or steps < 1:
            return False
        context.step_time = self._seconds / steps
        return True

    async def _pass_time(self, context: NodeContext, inputs: Mapping[str, Any]) -> None:
        steps = inputs.get("steps")
        ticks = steps if isinstance(steps, int) and steps > 0 else _TICKS
        for tick in range(1, ticks + 1):
            await context.sleep(self._seconds / ticks)
            context.progress(tick, ticks)

    async def _wait(self, context: NodeContext, event: asyncio.Event) -> None:
        self._clock.parked += 1
        try:
            while not event.is_set():
                context.check_interrupted()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await event.wait()
        finally:
            self._clock.parked -= 1

    async def _answer(self, node: Node, context: NodeContext, inputs: dict[str, Any]) -> Any:
        if self._files:
            return self._saved(context)
        if self._values is None:
            return await _called(node, context, inputs)
        if isinstance(self._values[0] if self._values else None, ExecutionBlocker):
            return self._values * len(node.outputs)
        if not node.outputs:
            return await _called(node, context, self._as_images(node, inputs))
        if len(self._values) != len(node.outputs):
            outputs = ", ".join(node.outputs)
            raise TypeError(f"{node.class_type} has {len(node.outputs)} outputs ({outputs}), not {len(self._values)}")
        return tuple(map(_as_type, self._values, node.outputs))

    def _as_images(self, node: Node, inputs: dict[str, Any]) -> dict[str, Any]:
        pictures = [name for name, (_, kind, _) in node.specs.items() if kind == "IMAGE"]
        return inputs | {name: _batch(value) for name, value in zip(pictures, self._values or (), strict=False)}

    def _saved(self, context: NodeContext) -> NodeResult:
        ui: dict[str, list[Any]] = {}
        for content, filename, kind in self._files:
            name = context.files.save_as(filename, content)
            context.record(content, name)
            ui.setdefault(kind, []).append({"filename": name, "subfolder": "", "type": "output"})
        return NodeResult(ui=ui)

    def _shown(self, answer: Any) -> Any:
        if not self._ui:
            return answer
        result = as_result(answer)
        return NodeResult(result.outputs, {**(result.ui or {}), **self._ui}, result.expand)


class Scripts:
    """All scripts of a server."""

    def __init__(self, clock: Clock, changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._by_class: dict[str, list[Script]] = {}

    def new(self, node: Node) -> Script:
        """Make a script for a class; it goes before those made earlier."""
        script = Script(node, self._clock, self._changed)
        self._by_class.setdefault(node.class_type, []).insert(0, script)
        return script

    def clear(self) -> None:
        """Forget all scripts."""
        self._by_class.clear()

    def scripted(self, class_type: str) -> bool:
        """Tell whether a script may answer for a class."""
        return any(not script.exhausted for script in self._by_class.get(class_type, ()))

    def call(self, node: Node, context: NodeContext, inputs: dict[str, Any]) -> Any:
        """Call a node's function, or the script that stands in for it; the answer may have to be awaited."""
        for script in self._by_class.get(node.class_type, ()):
            if script.answers(inputs):
                return script.run(node, context, inputs)
        return node.function(context, **inputs)


async def _called(node: Node, context: NodeContext, inputs: Mapping[str, Any]) -> Any:
    answer = node.function(context, **inputs)
    return await answer if inspect.isawaitable(answer) else answer


def _is_exception_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _as_type(value: Any, kind: str) -> Any:
    if kind in ("IMAGE", "MASK") and _is_picture(value):
        return [picture.convert("RGB" if kind == "IMAGE" else "L") for picture in _batch(value)]
    if kind == "LATENT" and _is_picture(value):
        pictures = tuple(_batch(value))
        return Latent(*pictures[0].size, len(pictures), pictures)
    return value


def _is_picture(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Image.Image | bytes | os.PathLike)


def _batch(value: Any) -> Batch:
    pictures = [_picture(item) for item in (value if isinstance(value, list) else [value])]
    if len({picture.size for picture in pictures}) != 1:
        raise ValueError("the pictures of a batch have one size")
    return pictures


def _picture(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as picture:
        return picture.convert("RGB")
