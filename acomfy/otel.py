"""OpenTelemetry spans and metrics of what a client does.

::

    from acomfy.otel import instrument

    client = acomfy.Client()
    instrument(client)

Each prompt is a span, a child of the caller's: ``comfyui prompt``, with the children ``queue`` (until it starts),
``run`` (until it ends), and below that a span for each node that ran; downloads are ``comfyui view``. Texts, seeds and
other inputs are not in them, nor is anything secret. A client that is not instrumented pays nothing. It needs the extra
``otel`` (``pip install "acomfy[otel]"``), and an SDK that the application sets up.

Metrics, in seconds where it is time:

    acomfy.prompts             counter, by ``state``: completed, failed, cancelled, lost
    acomfy.prompts.active      up-down counter of prompts under way
    acomfy.queue.duration      histogram: from submit to start
    acomfy.run.duration        histogram: from start to end
    acomfy.node.duration       histogram, by ``class_type``
    acomfy.nodes               counter, by ``cached``: nodes that ran, and those that the server had in its cache
    acomfy.download.duration   histogram
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

from .client import Client
from .events import Executing, ExecutionCached, ExecutionStart
from .job import Job
from .result import Output
from .verdict import JobState

_NAME = "acomfy"
_OK = Status(StatusCode.OK)


def instrument(
    client: Client,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Have spans and metrics made of all that a client does from now on.

    Args:
        tracer_provider: Makes the spans; None is the application's global one.
        meter_provider: Makes the metrics; None is the application's global one.
    """
    tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
    instruments = _Instruments(metrics.get_meter(_NAME, meter_provider=meter_provider))
    server = {"server.address": client.api.url}

    def on_job(job: Job) -> None:
        _Prompt(job, tracer, instruments, server)

    @contextmanager
    def on_download(output: Output) -> Iterator[None]:
        about = {"acomfy.node_id": output.node_id, "file.name": output.filename, **server}
        begin = time.monotonic()
        span = tracer.start_span("comfyui view", kind=SpanKind.CLIENT, attributes=about)
        try:  # not as the current span: a stream may be ended in another context than it was begun in
            yield
        except BaseException as error:
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, str(error)))
            raise
        finally:
            span.end()
            instruments.download.record(time.monotonic() - begin)

    client.on_job(on_job)
    client.on_download(on_download)


class _Instruments:
    def __init__(self, meter: metrics.Meter) -> None:
        self.prompts = meter.create_counter("acomfy.prompts", description="Prompts that ended")
        self.active = meter.create_up_down_counter("acomfy.prompts.active", description="Prompts under way")
        self.queue = meter.create_histogram("acomfy.queue.duration", "s", "From submit to start")
        self.run = meter.create_histogram("acomfy.run.duration", "s", "From start to end")
        self.node = meter.create_histogram("acomfy.node.duration", "s", "How long nodes ran")
        self.nodes = meter.create_counter("acomfy.nodes", description="Nodes that ran or were cached")
        self.download = meter.create_histogram("acomfy.download.duration", "s", "How long downloads took")


class _Prompt:
    """The spans of one prompt. Made in the context of its caller."""

    def __init__(self, job: Job, tracer: Tracer, instruments: _Instruments, about: Mapping[str, str]) -> None:
        self._job = job
        self._tracer = tracer
        self._instruments = instruments
        self._begin = time.monotonic()
        self._started: float | None = None
        self._node_began = 0.0
        attributes = {**about, "acomfy.prompt_id": job.prompt_id}
        self._span = tracer.start_span("comfyui prompt", kind=SpanKind.CLIENT, attributes=attributes)
        self._context = trace.set_span_in_context(self._span)
        self._queue: Span | None = tracer.start_span("queue", self._context)
        self._run: Span | None = None
        self._run_context: Context | None = None
        self._node: tuple[Span, str] | None = None
        self._classes: dict[str, str] = {}
        instruments.active.add(1)
        self._following = asyncio.get_running_loop().create_task(self._follow(), name="acomfy-otel")
        job.when_done(self._end)

    async def _follow(self) -> None:
        async for event in self._job.events():
            match event:
                case ExecutionStart():
                    self._start()
                case ExecutionCached(nodes=nodes):
                    self._instruments.nodes.add(len(nodes), {"cached": True})
                    self._span.set_attribute("acomfy.cached_nodes", len(nodes))
                case Executing(node=node):
                    self._enter(node)

    def _start(self) -> None:
        self._leave_run()  # it was submitted anew
        self._started = time.monotonic()
        self._instruments.queue.record(self._started - self._begin)
        self._end_queue()
        self._run = self._tracer.start_span("run", self._context)
        self._run_context = trace.set_span_in_context(self._run)
        graph = orjson.loads(self._job.prompt.graph)
        self._classes = {node_id: node["class_type"] for node_id, node in graph.items()}

    def _end_queue(self) -> None:
        if self._queue is not None:
            self._queue.end()
            self._queue = None

    def _enter(self, node_id: str | None) -> None:
        self._leave_node()
        if node_id is None or self._run is None:
            return
        class_type = self._classes.get(node_id, "")
        about = {"acomfy.node_id": node_id, "acomfy.class_type": class_type}
        span = self._tracer.start_span(class_type or f"node {node_id}", self._run_context, attributes=about)
        self._node, self._node_began = (span, class_type), time.monotonic()
        self._instruments.nodes.add(1, {"cached": False})

    def _leave_node(self) -> None:
        if self._node is not None:
            (span, class_type), self._node = self._node, None
            span.end()
            self._instruments.node.record(time.monotonic() - self._node_began, {"class_type": class_type})

    def _leave_run(self) -> None:
        self._leave_node()
        if self._run is not None and self._started is not None:
            self._run.end()
            self._run = None
            self._instruments.run.record(time.monotonic() - self._started)

    def _end(self, job: Job) -> None:
        self._following.add_done_callback(lambda _: self._close(job))  # after the last events

    def _close(self, job: Job) -> None:
        self._end_queue()
        self._leave_run()
        error = job.exception()
        self._span.set_attributes({"acomfy.prompt_id": job.prompt_id, "acomfy.attempt": job.attempt})
        if error is None:
            self._span.set_status(_OK)
        else:
            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.end()
        self._instruments.active.add(-1)
        self._instruments.prompts.add(1, _attributes(job.state))


def _attributes(state: JobState) -> dict[str, Any]:
    return {"state": str(state)}
