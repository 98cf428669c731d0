"""The worker's way through one prompt (ComfyUI execution.py PromptExecutor, comfy_execution/progress.py; 0.3.64).

Theory of operation. ``Executor`` lives as long as the server: it has the cache and the outcome of the last prompt.
``Run`` is one prompt under way: it takes node after node from the `ExecutionOrder`, calls the node's function and says
on the wire what ComfyUI says, in its order. A function's answer is final outputs, or an expansion whose last nodes are
then waited for, or, of a concurrent node, a task. The run ends with the first failure or when nothing is left.

Who hears it: lifecycle messages go to the prompt's ``client_id`` and are not sent at all without one; progress,
previews, blocked branches and interrupts go to everybody when there is none.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from .. import events
from ..frames import encode
from .cache import Cache, Shown, Signatures
from .graph import DependencyCycle, ExecutionOrder, GrowingGraph, localise
from .nodes import ExecutionBlocker, Interrupted, Node, NodeContext, NodeResult, OutOfMemoryError, as_result, is_link
from .queue import Item
from .services import Services
from .validation import exception_type

_OUT_OF_MEMORY_TIP = (
    "This error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked before you might have"
    " accidentally set the batch_size to a large number."
)


@dataclass
class Outcome:
    """How a prompt ended, as the history tells it."""

    success: bool = True
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def history_entry(self) -> dict[str, Any]:
        """Write the history entry, all but its ``prompt``."""
        return {
            "outputs": self.outputs,
            "status": {
                "status_str": "success" if self.success else "error",
                "completed": self.success,
                "messages": [list(message) for message in self.messages],
            },
            "meta": self.meta,
        }


class Failure(Exception):
    """A node failed; the cause is what it raised."""

    def __init__(self, node_id: str, cause: Exception, inputs: dict[str, Any]) -> None:
        self.node_id = node_id
        self.cause = cause
        self.inputs = inputs
        super().__init__(node_id)


class Executor:
    """Runs prompts one after the other, and remembers nodes between them."""

    def __init__(self, services: Services, cache: Cache) -> None:
        self.services = services
        self.cache = cache
        # ComfyUI sets this at each node and never at a start: a cycle that stops a run leaves the last value.
        self.success = True

    async def execute(self, item: Item) -> Outcome:
        """Run one prompt to its end; whatever its nodes do, this returns."""
        self.services.interrupted = False
        run = Run(self, item)
        try:
            await run.run()
        finally:
            self.services.sockets.executing_node = None
            self.cache.end()
        return run.outcome()


class Run:
    """One prompt under way."""

    def __init__(self, executor: Executor, item: Item) -> None:
        _, self.prompt_id, prompt, self.extra_data, self._targets = item
        self.executor = executor
        self.services = executor.services
        self.graph = GrowingGraph(prompt)
        self.client_id = self.extra_data.get("client_id")
        self.services.sockets.executing_client = self.client_id
        self._cache = executor.cache
        self._changed: dict[str, Any] = {}
        self._signatures = Signatures(self.graph, self._is_changed)
        self._outputs: dict[str, tuple[Any, ...]] = {}
        self._order = ExecutionOrder(self.graph, self.class_of, lambda node_id: self._known(node_id) is not None)
        self._progress: dict[str, events.NodeProgress] = {}
        self._messages: list[tuple[str, dict[str, Any]]] = []
        self._executed: dict[str, None] = {}
        self._reached: dict[str, None] = {}
        self._expansions: dict[str, list[Any]] = {}
        self._told: dict[str, tuple[float, float]] = {}
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    # --- The way through -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run every node that the targets need."""
        self._say(events.ExecutionStart(self.prompt_id, self._now()))
        self._cache.begin([self._signatures[node_id] for node_id in self.graph.prompt])
        cached = tuple(node_id for node_id in self.graph.prompt if self._known(node_id) is not None)
        self._say(events.ExecutionCached(self.prompt_id, cached, self._now()))
        for node_id in self._targets:
            self._order.add(node_id)
        try:
            await self._all_nodes()
        except Failure as failure:
            self.executor.success = False
            self._report(failure)
        except DependencyCycle as cycle:
            self._report_cycle(cycle)
        else:
            self._say(events.ExecutionSuccess(self.prompt_id, self._now()))
        finally:
            for task in self._tasks.values():
                task.cancel()

    async def _all_nodes(self) -> None:
        while self._order:
            await self.services.thawed()
            node_id = await self._order.next()
            finished = await self._node(node_id)
            self.executor.success = True
            if finished:
                self._order.done(node_id)
            await asyncio.sleep(0)

    async def _node(self, node_id: str) -> bool:
        """Run one node, or go on with one that waited; False when it has to wait (again)."""
        if (known := self._known(node_id)) is not None:
            self._reached[node_id] = None
            shown = self._cache.shown(self._signatures[node_id])
            self._say_executed(node_id, None if shown is None else shown.output)
            self._outputs[node_id] = known
            self._finish(node_id)
            return True
        inputs: dict[str, Any] = {}
        try:
            if node_id in self._expansions:
                result: NodeResult | None = NodeResult(tuple(map(self._resolve, self._expansions.pop(node_id))))
            elif node_id in self._tasks:
                result = as_result(self._tasks.pop(node_id).result())
            else:
                result = await self._call(node_id, inputs)
            if result is None or self._expand(node_id, result):
                return False
        except Exception as exc:
            raise Failure(node_id, exc, inputs) from exc
        self._store(node_id, result)
        return True

    async def _call(self, node_id: str, inputs: dict[str, Any]) -> NodeResult | None:
        """Call a node's function; None when it waits for lazy inputs or for its own task."""
        node_class = self.class_of(node_id)
        self._set_progress(node_id, 0.0, 1.0, "running")
        inputs.update(self._inputs(node_id, node_class))
        self.services.sockets.executing_node = self.graph.display(node_id)
        if self.client_id is not None:
            event = events.Executing(node_id, self.graph.display(node_id), self.prompt_id)
            self.services.sockets.send(event, self.client_id)
        self.services.check_interrupted()
        if self._await_lazy(node_id, node_class, inputs):
            return None
        if blocked := [value for value in inputs.values() if isinstance(value, ExecutionBlocker)]:
            return NodeResult((self._blocked(node_id, blocked[0]),) * len(node_class.outputs))
        answer = self.services.scripts.call(node_class, Context(self, node_id), inputs)
        if not inspect.isawaitable(answer):
            return as_result(answer)
        if not node_class.concurrent:
            return as_result(await answer)
        return await self._start(node_id, answer)

    async def _start(self, node_id: str, answer: Any) -> NodeResult | None:
        """Let a concurrent node run beside the others, unless it is done in its first moment."""
        task = asyncio.ensure_future(answer)
        self._tasks[node_id] = task
        await asyncio.sleep(0)
        if task.done():
            return as_result(self._tasks.pop(node_id).result())
        unblock = self._order.block(node_id)

        def ended(task: asyncio.Task[Any]) -> None:
            if not task.cancelled():
                task.exception()  # looked at, so that asyncio does not report one that nobody waits for any more
            unblock()

        task.add_done_callback(ended)
        return None

    def _await_lazy(self, node_id: str, node_class: Node, inputs: Mapping[str, Any]) -> bool:
        if node_class.needed is None:
            return False
        links = self.graph[node_id]["inputs"]
        known = {name: inputs.get(name) for name in node_class.specs if name in links}
        wanted = [name for name in node_class.needed(**known) if name not in inputs]
        for name in wanted:
            self._order.wait_for(node_id, links[name][0])
        return bool(wanted)

    def _expand(self, node_id: str, result: NodeResult) -> bool:
        """Put an expansion's nodes in their node's place; True when it now waits for them."""
        if result.expand is None:
            return False
        nodes, outputs = localise(f"{node_id}.0.0.", result.expand, result.outputs)
        self.graph.expand(node_id, nodes)
        for child in nodes:
            if self.class_of(child).output_node:
                self._order.add(child)
        for value in outputs:
            if is_link(value):
                self._order.wait_for(node_id, value[0])
        self._expansions[node_id] = outputs
        return True

    def _store(self, node_id: str, result: NodeResult) -> None:
        signature = self._signatures[node_id]
        self._reached[node_id] = None
        if result.ui:
            output = {kind: list(values) for kind, values in result.ui.items()}
            self._cache.show(signature, Shown(output, self._meta(node_id)))
            self._say_executed(node_id, output)
        self._outputs[node_id] = result.outputs
        self._cache.store(signature, result.outputs)
        self._finish(node_id)
        self._executed[node_id] = None

    # --- What a node gets ------------------------------------------------------------------------------------------

    def class_of(self, node_id: str) -> Node:
        """Give a node's class."""
        return self.services.classes[self.graph[node_id]["class_type"]]

    def _inputs(self, node_id: str, node_class: Node) -> dict[str, Any]:
        """Collect the inputs that are known; those that the class does not declare are ignored."""
        found = {}
        given = self.graph[node_id]["inputs"]
        for name in node_class.specs:
            if name not in given:
                continue
            if not is_link(value := given[name]):
                found[name] = value
            elif (known := self._known(value[0])) is not None:
                found[name] = known[int(value[1])]
        return found

    def _known(self, node_id: str) -> tuple[Any, ...] | None:
        if (outputs := self._outputs.get(node_id)) is not None:
            return outputs
        return self._cache.outputs(self._signatures[node_id]) if node_id in self.graph else None

    def _resolve(self, value: Any) -> Any:
        if not is_link(value):
            return value
        known = self._known(value[0])
        return None if known is None else known[int(value[1])]

    def _is_changed(self, node_id: str) -> Any:
        if node_id not in self._changed:
            node_class = self.class_of(node_id)
            self._changed[node_id] = False
            if self.services.scripts.scripted(node_class.class_type):
                self._changed[node_id] = float("nan")
            elif node_class.is_changed is not None:
                given = self.graph[node_id]["inputs"]
                constants = {
                    name: given[name] for name in node_class.specs if name in given and not is_link(given[name])
                }
                try:
                    self._changed[node_id] = node_class.is_changed(**constants)
                except Exception:
                    self._changed[node_id] = float("nan")
        return self._changed[node_id]

    # --- What is said ----------------------------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        """Sum the run up, as the history will tell it."""
        found = Outcome(self.executor.success, self._messages)
        # Until 0.3.67 the history had what any node of the prompt showed, also one that this run did not ask for.
        if self.services.can.history_needs_client_for_cached and self.client_id is None:
            self._reached = self._executed  # the noting sat inside the check for a client (#14939)
        told = self._reached if self.services.can.history_of_reached_nodes else self.graph.node_ids()
        for node_id in told:
            if (shown := self._cache.shown(self._signatures[node_id])) is not None:
                found.outputs[node_id] = shown.output
                found.meta[node_id] = shown.meta
        return found

    def tell_progress(self, node_id: str, value: float, maximum: float, image: bytes | None, mime: str) -> None:
        """Report a step: ``progress_state``, then ``progress`` and the image, in the order that its form asks for."""
        self.services.check_interrupted()
        if image is None and self._throttled(node_id, value, maximum):
            return
        sockets = self.services.sockets
        self._set_progress(node_id, value, maximum, "running")
        progress = events.Progress(value, maximum, self.prompt_id, node_id)
        if image is None:
            sockets.send(progress, self.client_id)
            return
        preview = events.PreviewImage(memoryview(image), mime)
        if sockets.supports(self.client_id, "supports_preview_metadata"):
            described = events.PreviewImage(
                preview.view,
                mime,
                prompt_id=self.prompt_id,
                node_id=node_id,
                display_node_id=self.graph.display(node_id),
                parent_node_id=self.graph.parent(node_id),
                real_node_id=self.graph.display(node_id),
                has_metadata=True,
            )
            sockets.send(described, None if self.services.can.progress_state_to_all else self.client_id)
            sockets.send(progress, self.client_id)
        else:
            sockets.send(progress, self.client_id)
            sockets.send(preview, self.client_id)

    def _throttled(self, node_id: str, value: float, maximum: float) -> bool:
        """Tell whether a step comes too soon after the last one that was told (#11504, for core nodes)."""
        if not self.services.can.throttled_progress or value >= maximum:
            return False
        now, last = self.services.clock.now(), self._told.get(node_id)
        if last is not None and now - last[0] < 0.1 and value - last[1] < 0.005 * maximum:
            return True
        self._told[node_id] = (now, value)
        return False

    def _say(self, event: events.Event) -> None:
        """Send a lifecycle message and note it for the history."""
        frame = encode(event)
        message = json.loads(frame)
        self._messages.append((message["type"], message["data"]))
        if self.client_id is not None or isinstance(event, events.ExecutionInterrupted):
            self.services.sockets.send(event, self.client_id)

    def _say_executed(self, node_id: str, output: Mapping[str, Any] | None) -> None:
        if self.client_id is not None:
            event = events.Executed(self.prompt_id, node_id, self.graph.display(node_id), output)
            self.services.sockets.send(event, self.client_id)

    def _now(self) -> int:
        return int(self.services.clock.time() * 1000)

    def _set_progress(self, node_id: str, value: float, maximum: float, state: str) -> None:
        display = self.graph.display(node_id)
        self._progress[node_id] = events.NodeProgress(
            node_id, value, maximum, state, display, self.graph.parent(node_id), display
        )
        if self.services.can.progress_state:
            sid = self.client_id if not self.services.can.progress_state_to_all else None
            self.services.sockets.send(events.ProgressState(self.prompt_id, dict(self._progress)), sid)

    def _finish(self, node_id: str) -> None:
        known = self._progress.get(node_id)
        maximum = 1.0 if known is None else known.max
        self._set_progress(node_id, maximum, maximum, "finished")

    def _blocked(self, node_id: str, blocker: ExecutionBlocker) -> ExecutionBlocker:
        if blocker.message is None:
            return blocker
        event = events.ExecutionError(
            prompt_id=self.prompt_id,
            node_id=node_id,
            node_type=self.graph[node_id]["class_type"],
            exception_type="ExecutionBlocked",
            exception_message=f"Execution Blocked: {blocker.message}",
            executed=tuple(self._executed),
            current_inputs=[],
            current_outputs=[],
        )
        self.services.sockets.send(event, self.client_id)
        return ExecutionBlocker()

    def _report(self, failure: Failure) -> None:
        node_id = self.graph.display(failure.node_id)
        node_type = self.graph.prompt[node_id]["class_type"]
        executed = tuple(self._executed)
        if isinstance(failure.cause, Interrupted):
            self._say(events.ExecutionInterrupted(self.prompt_id, node_id, node_type, executed, self._now()))
            return
        tip = _OUT_OF_MEMORY_TIP if isinstance(failure.cause, OutOfMemoryError) else ""
        self._say(
            events.ExecutionError(
                prompt_id=self.prompt_id,
                node_id=node_id,
                node_type=node_type,
                exception_type=exception_type(failure.cause),
                exception_message=f"{failure.cause}\n{tip}",
                traceback=tuple(traceback.format_tb(failure.cause.__traceback__)),
                executed=executed,
                current_inputs=self._current_inputs(failure),
                current_outputs=list(self.graph.prompt),
                timestamp=self._now(),
            )
        )

    def _current_inputs(self, failure: Failure) -> dict[str, list[Any]]:
        if not failure.inputs:
            return {}
        hidden = dict.fromkeys(self.class_of(failure.node_id).hidden, "...")
        return {name: [_described(value)] for name, value in (failure.inputs | hidden).items()}

    def _report_cycle(self, cycle: DependencyCycle) -> None:
        self._say(
            events.ExecutionError(
                prompt_id=self.prompt_id,
                node_id=cycle.node_id,
                node_type=self.graph.prompt[cycle.node_id]["class_type"],
                exception_type="graph.DependencyCycleError",
                exception_message=str(cycle),
                executed=tuple(self._executed),
                current_inputs=[],
                current_outputs=list(self.graph.prompt),
                timestamp=self._now(),
            )
        )

    def _meta(self, node_id: str) -> dict[str, Any]:
        display = self.graph.display(node_id)
        parent = self.graph.parent(node_id)
        return {"node_id": node_id, "display_node": display, "parent_node": parent, "real_node_id": display}


class Context(NodeContext):
    """What a node's function may do, bound to its node and its run."""

    def __init__(self, run: Run, node_id: str) -> None:
        self.node_id = node_id
        self.prompt_id = run.prompt_id
        self.prompt = run.graph.prompt
        self.extra_data = run.extra_data
        self.step_time = run.services.step_time
        self.in_real_time = run.services.clock.real
        self.preview_size = run.services.preview_size
        self._run = run

    @property
    def files(self) -> Any:
        return self._run.services.folders

    def progress(
        self, value: float, max: float, image: bytes | Image.Image | None = None, mime: str = "image/jpeg"
    ) -> None:
        data = encode_preview(image, self.preview_size) if isinstance(image, Image.Image) else image
        self._run.tell_progress(self.node_id, value, max, data, mime)

    def check_interrupted(self) -> None:
        self._run.services.check_interrupted()

    async def sleep(self, seconds: float) -> None:
        services = self._run.services
        await services.clock.sleep(seconds, lambda: services.interrupted)
        await services.thawed()

    async def in_thread(self, function: Callable[..., Any], *args: Any, pixels: int) -> Any:
        return await self._run.services.in_thread(function, *args, pixels=pixels)

    def record(self, image: bytes, filename: str | None = None) -> None:
        self._run.services.ledger.produced(self.prompt_id, self.node_id, image, filename)

    def send(self, kind: str, data: Any, *, broadcast: bool = False) -> None:
        self._run.services.sockets.send(events.Unknown(kind, data), None if broadcast else self._run.client_id)

    def send_text(self, text: str, *, broadcast: bool = True) -> None:
        self._run.services.sockets.send(events.Text(self.node_id, text), None if broadcast else self._run.client_id)


def encode_preview(image: Image.Image, size: int) -> bytes:
    """Encode a preview as ComfyUI does: as JPEG, scaled up or down until its longer side is ``size``."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    picture = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _described(value: Any) -> Any:
    """Show an input in an error: numbers and text as they are, everything else as text (execution.py format_value)."""
    if value is None or isinstance(value, int | float | bool | str):
        return value
    return str(value)
