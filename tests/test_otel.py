"""Spans and metrics of what a client does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import acomfy
from acomfy.otel import instrument
from acomfy.simulator import SimulatedServer

from .graphs import sampled, saved
from .shell import Gates, client, eventually, gates, server

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]


class Telemetry:
    """What was exported."""

    def __init__(self, client: acomfy.Client) -> None:
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._meters = MeterProvider([self._metrics])
        instrument(client, tracer_provider=self.tracers, meter_provider=self._meters)

    @property
    def spans(self) -> dict[str, list[ReadableSpan]]:
        found: dict[str, list[ReadableSpan]] = {}
        for span in self._spans.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found

    def metrics(self) -> dict[str, list[Any]]:
        data = self._metrics.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def close(self) -> None:
        self.tracers.shutdown()
        self._meters.shutdown()


@pytest.fixture
def telemetry(client: acomfy.Client) -> Iterator[Telemetry]:
    telemetry = Telemetry(client)
    yield telemetry
    telemetry.close()


async def test_a_prompt_is_a_span_of_its_caller_with_queue_run_and_nodes(
    client: acomfy.Client, telemetry: Telemetry
) -> None:
    with telemetry.tracers.get_tracer("app").start_as_current_span("handler"):
        result = await client.run(sampled())
    await eventually(lambda: "comfyui prompt" in telemetry.spans)
    [handler], [prompt] = telemetry.spans["handler"], telemetry.spans["comfyui prompt"]
    [queue], [run] = telemetry.spans["queue"], telemetry.spans["run"]
    [sampler] = telemetry.spans["KSampler"]
    for child, parent in ((prompt, handler), (queue, prompt), (run, prompt), (sampler, run)):
        assert child.parent is not None and child.parent.span_id == parent.context.span_id
    assert prompt.attributes is not None and prompt.attributes["acomfy.prompt_id"] == result.prompt_id
    assert sampler.attributes is not None and sampler.attributes["acomfy.node_id"] == "3"
    assert prompt.status.is_ok
    nodes = {name for name in telemetry.spans if name[0].isupper()}
    assert nodes == {node["class_type"] for node in sampled().values()}


async def test_metrics_count_prompts_nodes_and_times(client: acomfy.Client, telemetry: Telemetry) -> None:
    await client.run(saved())
    await client.run(saved())
    await eventually(lambda: len(telemetry.spans.get("comfyui prompt", [])) == 2)
    metrics = telemetry.metrics()
    assert [(point.attributes, point.value) for point in metrics["acomfy.prompts"]] == [({"state": "completed"}, 2)]
    assert [point.value for point in metrics["acomfy.prompts.active"]] == [0]
    nodes = {point.attributes["cached"]: point.value for point in metrics["acomfy.nodes"]}
    assert nodes == {False: 2, True: 2}
    assert [point.count for point in metrics["acomfy.queue.duration"]] == [2]
    assert [point.count for point in metrics["acomfy.run.duration"]] == [2]
    assert {point.attributes["class_type"] for point in metrics["acomfy.node.duration"]} == {"EmptyImage", "SaveImage"}


async def test_a_failure_is_recorded(server: SimulatedServer, client: acomfy.Client, telemetry: Telemetry) -> None:
    server.on("SaveImage").fails_with("the disk is full")
    with pytest.raises(acomfy.JobFailed):
        await client.run(saved())
    await eventually(lambda: "comfyui prompt" in telemetry.spans)
    [prompt] = telemetry.spans["comfyui prompt"]
    assert not prompt.status.is_ok and "the disk is full" in str(prompt.status.description)
    assert [event.name for event in prompt.events] == ["exception"]


async def test_a_prompt_that_is_cancelled_while_it_waits_has_no_run(
    server: SimulatedServer, client: acomfy.Client, telemetry: Telemetry
) -> None:
    server.hold()
    job = await client.submit(saved())
    assert await job.cancel()
    await eventually(lambda: "comfyui prompt" in telemetry.spans)
    assert "run" not in telemetry.spans and "queue" in telemetry.spans
    assert [point.attributes for point in telemetry.metrics()["acomfy.prompts"]] == [{"state": "cancelled"}]


async def test_downloads_are_spans_and_a_missing_file_an_error(
    server: SimulatedServer, client: acomfy.Client, telemetry: Telemetry
) -> None:
    output = (await client.run(saved())).images[0]
    await output.read()
    (server.folders.paths["output"] / output.filename).unlink()
    with pytest.raises(acomfy.OutputMissing):
        await output.read()
    good, bad = telemetry.spans["comfyui view"]
    assert good.status.is_unset and not bad.status.is_ok
    assert [point.count for point in telemetry.metrics()["acomfy.download.duration"]] == [2]


async def test_jobs_that_map_makes_and_that_end_with_the_client_are_closed(
    server: SimulatedServer, gates: Gates
) -> None:
    async with acomfy.Client(server.url) as client:
        telemetry = Telemetry(client)
        async for _ in client.map([saved(1), saved(2)]):
            pass
        server.hold()
        await client.submit(saved(3))
    await eventually(lambda: len(telemetry.spans.get("comfyui prompt", [])) == 3)
    telemetry.close()


def test_acomfy_does_not_import_opentelemetry() -> None:
    program = "import acomfy, sys; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
