"""What servers and networks do to a client, one statement of what users need each, with a bound on the clock.

The client's own times are short here (silence 0.2 s where the default is 5 s); bounds are those of the statement,
scaled alike, and generous. Numbers in brackets are issues of Comfy-Org/ComfyUI where the case was real.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

import acomfy
from acomfy.connection import backoff
from acomfy.simulator import SimulatedServer, odd_nodes

from .conftest import MS
from .graphs import color_of, gated, saved, streamed
from .shell import Gates, client, eventually, gates, quick_client, server

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]

VERSIONS = ("0.3.40", "0.3.50", "0.3.64", "0.8.0", "0.19.1", "0.26.0", "0.38.1")


@asynccontextmanager
async def bound(seconds: float) -> AsyncIterator[None]:
    """Fail when the block takes longer; ``MS`` scales it."""
    async with asyncio.timeout(seconds * 1000 * MS):
        yield


async def running(client: acomfy.Client, gates: Gates, name: str = "gate", **options: Any) -> acomfy.Job:
    """Submit a prompt and wait until it runs, at its gate."""
    job = await client.submit(gated(name), **options)
    await gates.reached[name].wait()
    return job


# --- Completion (statements 1 to 10) ----------------------------------------------------------------------------------


async def test_a_success_that_is_never_sent_is_found_by_http(server: SimulatedServer, client: acomfy.Client) -> None:
    with server.faults.skip_success():
        async with bound(2):
            result = await client.run(saved(7))
    assert color_of(await result.images[0].read()) == 7


async def test_when_no_event_comes_at_all_every_job_still_gets_its_result(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    """[15240] One client that does not read stalls the server's sending to all."""
    await client.wait_ready()
    with server.faults.stall_delivery():
        async with bound(5):
            results = await asyncio.gather(*(client.run(saved(color)) for color in range(40)))
    assert [color_of(await result.images[0].read()) for result in results] == list(range(40))


async def test_a_displaced_socket_is_found_and_opened_again(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.wait_ready()
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{server.url}/ws?clientId={client.client_id}") as other:
            await other.receive()
            async with bound(5):
                assert len((await client.run(saved(1))).images) == 1
        async with bound(10):
            assert len((await client.run(streamed(2), on_lost="resubmit")).images) == 1


async def test_without_a_websocket_prompts_are_followed_by_http_and_one_warning_is_logged(
    server: SimulatedServer, caplog: pytest.LogCaptureFixture
) -> None:
    with server.faults.refuse_sockets(403):
        async with quick_client(server) as client:
            async with bound(10):
                results = await asyncio.gather(*(client.run(saved(color)) for color in range(10)))
            with pytest.raises(acomfy.ServerUnreachable, match="streams"):
                await client.run(streamed())
    assert all(len(result.images) == 1 for result in results)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1, warnings


async def test_a_history_that_is_written_late_is_waited_for(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await running(client, gates)
    server.faults.drop_connections()  # from now on the job needs its history
    await eventually(lambda: not client._connection.live)
    await eventually(lambda: client._connection.live)
    with server.faults.delay_history(0.5):
        gates.open["gate"].set()
        async with bound(3):
            assert len((await job).images) == 1


async def test_a_cached_output_whose_file_is_gone_says_so_when_it_is_read(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    first = await client.run(saved(3))
    for path in server.folders.paths["output"].rglob("*.png"):
        path.unlink()
    second = await client.run(saved(3))
    assert second.images == first.images
    with pytest.raises(acomfy.OutputMissing, match="gone from the server") as caught:
        await second.images[0].read()
    assert caught.value.filename == second.images[0].filename


async def test_a_prompt_without_output_nodes_is_refused_at_once(client: acomfy.Client) -> None:
    graph = saved()
    del graph["2"]
    with pytest.raises(acomfy.PromptRejected) as caught:
        await client.submit(graph)
    assert caught.value.error_type == "prompt_no_outputs"


async def test_the_end_of_another_prompt_ends_nothing(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await running(client, gates)
    server.faults.send_raw('{"type": "executing", "data": {"node": null, "prompt_id": "somebody-elses"}}')
    server.faults.send_raw('{"type": "execution_success", "data": {"prompt_id": "somebody-elses", "timestamp": 1}}')
    await server.flush()
    assert not job.done()
    gates.open["gate"].set()
    assert len((await job).images) == 1


# --- Loss, restart, network (11 to 21) --------------------------------------------------------------------------------


async def test_a_server_that_comes_back_empty_has_lost_its_prompts(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    ran, waited = await running(client, gates), await client.submit(saved())
    await server.faults.restart()
    async with bound(5):
        for job in (ran, waited):
            with pytest.raises(acomfy.JobLost) as caught:
                await job
            assert caught.value.reason == "restarted"
            assert job.state == "lost"


async def test_a_server_that_does_not_come_back_is_given_up(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await running(client, gates)
    async with server.faults.down(), bound(10):
        with pytest.raises(acomfy.JobLost) as caught:
            await job
    assert caught.value.reason == "unreachable"


async def test_a_lost_prompt_is_submitted_anew_when_that_is_wished(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await running(client, gates, on_lost="resubmit")
    first_id = job.prompt_id
    await server.faults.restart()
    gates.open["gate"].set()
    async with bound(5):
        assert len((await job).images) == 1
    assert job.attempt == 2
    assert job.prompt_id != first_id


async def test_a_socket_that_breaks_while_a_prompt_runs_costs_nothing(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await running(client, gates)
    for _ in range(3):
        server.faults.drop_connections()
        await eventually(lambda: not client._connection.live)
        await eventually(lambda: client._connection.live)
    gates.open["gate"].set()
    async with bound(2):
        result = await job
    assert color_of(await result.images[0].read()) == 0
    assert server.requests["POST", "/prompt"] == 1


async def test_a_prompt_that_ends_while_the_socket_is_down_is_known_when_it_is_back(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await running(client, gates)
    with server.faults.refuse_sockets(502):
        server.faults.drop_connections()
        await eventually(lambda: not client._connection.live)
        gates.open["gate"].set()
        async with bound(3):
            assert len((await job).images) == 1


async def test_refused_connections_are_tried_more_and_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    delays: list[float] = []

    def recorded() -> Any:
        for delay in backoff():
            delays.append(delay)
            yield 0.0

    async with acomfy.Client("http://127.0.0.1:9", reconnect_delays=recorded):
        await eventually(lambda: len(delays) >= 40)
    assert sum(delays[:40]) >= 600, "fewer than 40 tries in ten minutes"
    assert len(caplog.records) < 10


async def test_a_load_balancer_that_closes_the_socket_again_and_again_is_no_news(
    server: SimulatedServer, client: acomfy.Client, caplog: pytest.LogCaptureFixture
) -> None:
    await client.wait_ready()
    for color in range(10):
        result = asyncio.create_task(client.run(saved(color)))
        server.faults.drop_connections()
        assert len((await result).images) == 1
        await eventually(lambda: client._connection.live)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_success_that_was_heard_is_enough_when_the_history_is_gone(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    with server.faults.lose_history():
        assert len((await client.run(saved(1))).images) == 1  # over an unbroken socket
        job = await running(client, gates)
        server.faults.drop_connections()
        await eventually(lambda: not client._connection.live)
        await eventually(lambda: client._connection.live)
        gates.open["gate"].set()
        async with bound(10):
            assert len((await job).images) == 1  # joined while it ran


async def test_a_prompt_that_was_missing_once_is_not_lost(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await running(client, gates)
    real = server.queue.running
    looks = server.requests["GET", "/queue"]
    server.queue.running = {}
    client._watch.look_now()
    await eventually(lambda: server.requests["GET", "/queue"] > looks and len(client._watch._absences) == 1)
    server.queue.running = real
    gates.open["gate"].set()
    async with bound(3):
        assert len((await job).images) == 1


async def test_a_deleted_prompt_is_lost_and_the_others_are_not(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    blocker = await running(client, gates)
    deleted, kept = await client.submit(saved(1)), await client.submit(saved(2))
    assert server.delete_prompt(deleted.prompt_id)
    async with bound(5):
        with pytest.raises(acomfy.JobLost) as caught:
            await deleted
    assert caught.value.reason == "deleted"
    gates.open["gate"].set()
    assert len((await blocker).images) == 1
    assert color_of(await (await kept).images[0].read()) == 2


async def test_a_cleared_queue_is_noticed(server: SimulatedServer, client: acomfy.Client, gates: Gates) -> None:
    blocker = await running(client, gates)
    jobs = [await client.submit(saved(color)) for color in range(20)]
    server.clear_queue()
    async with bound(5):
        for job in jobs:
            with pytest.raises(acomfy.JobLost):
                await job
    gates.open["gate"].set()
    assert len((await blocker).images) == 1


async def test_a_dead_worker_is_a_stall_after_the_time_that_was_given(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await running(client, gates, stall_timeout=300 * MS)
    patient = await client.submit(saved())
    server.faults.kill_worker()
    async with bound(3):
        with pytest.raises(acomfy.JobStalled):
            await job
    assert not patient.done()


async def test_a_stalled_server_is_not_taken_for_a_lost_one(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await running(client, gates)
    with server.faults.freeze():
        await asyncio.wait([asyncio.ensure_future(job.settled())], timeout=1000 * MS)
    gates.open["gate"].set()
    async with bound(3):
        assert len((await job).images) == 1


# --- The socket goes deaf (#16010) ------------------------------------------------------------------------------------


async def test_a_deaf_socket_is_heard_again_after_the_next_prompt(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    await client.run(saved(1))
    server.faults.go_deaf()
    async with bound(5):
        assert len((await client.run(saved(2))).images) == 1
    async with bound(5):
        await eventually(lambda: client.client_id in server.sockets.by_sid)
    assert len((await client.run(streamed(3))).images) == 1


async def test_streamed_images_that_fell_into_a_gap_are_an_error_that_names_the_node(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await client.submit(gated("gate", node="SaveImageWebsocket"))
    await gates.reached["gate"].wait()
    server.faults.go_deaf()
    gates.open["gate"].set()
    async with bound(5):
        with pytest.raises(acomfy.OutputMissing) as caught:
            await job
    assert (caught.value.node_id, caught.value.filename) == ("2", None)


async def test_streamed_images_that_fell_into_a_gap_come_again_when_that_is_wished(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await client.submit(gated("gate", node="SaveImageWebsocket"), on_lost="resubmit")
    await gates.reached["gate"].wait()
    server.faults.go_deaf()
    gates.open["gate"].set()
    async with bound(10):
        assert len((await job).images) == 1
    assert job.attempt >= 2


async def test_a_streaming_node_that_begins_after_the_gap_has_lost_nothing(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await client.submit(gated("gate", node="SaveImageWebsocket"))
    await gates.reached["gate"].wait()
    server.faults.drop_connections()
    await eventually(lambda: not client._connection.live)
    await eventually(lambda: client._connection.live)
    gates.open["gate"].set()
    async with bound(3):
        assert len((await job).images) == 1


async def test_images_of_an_output_that_the_server_dropped_are_not_missed_after_a_gap(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    graph = gated("gate")
    graph["4"] = {"class_type": "EmptyImage", "inputs": {"width": -1, "height": 64, "batch_size": 1, "color": 0}}
    graph["5"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["4", 0]}}
    job = await client.submit(graph, strict=False)
    await gates.reached["gate"].wait()
    server.faults.drop_connections()
    gates.open["gate"].set()
    async with bound(3):
        assert len((await job).images) == 1


# --- Errors (22 to 30) ------------------------------------------------------------------------------------------------


async def test_out_of_memory_is_told_apart(server: SimulatedServer, client: acomfy.Client) -> None:
    server.add_node(*odd_nodes.ALL)
    graph = saved()
    graph["3"] = {"class_type": "OutOfMemory", "inputs": {"value": ["1", 0]}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    with pytest.raises(acomfy.OutOfMemory):
        await client.run(graph)


async def test_a_failure_is_known_also_without_events(server: SimulatedServer, client: acomfy.Client) -> None:
    @server.node("Break", required={"image": ("IMAGE",)}, outputs=("IMAGE",))
    def fail(context: Any, image: Any) -> Any:
        raise ValueError("it is broken")

    graph = saved()
    graph["3"] = {"class_type": "Break", "inputs": {"image": ["1", 0]}, "_meta": {"title": "The breaker"}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    await client.wait_ready()
    with server.faults.stall_delivery():
        async with bound(3):
            with pytest.raises(acomfy.JobFailed) as caught:
                await client.run(graph)
    assert (caught.value.node_id, caught.value.title) == ("3", "The breaker")
    assert caught.value.traceback


async def test_somebody_elses_interrupt_of_ours_is_told_and_of_others_changes_nothing(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    async with quick_client(server) as other:
        theirs = await running(other, gates, "theirs")
        ours = await client.submit(gated("ours"))
        server.interrupt()
        with pytest.raises(acomfy.JobInterrupted):
            await theirs
        await gates.reached["ours"].wait()
        assert not ours.done()
        server.interrupt()
        with pytest.raises(acomfy.JobInterrupted):
            await ours
        assert ours.state == "cancelled"


async def test_an_answer_that_is_no_comfyuis_names_url_status_type_and_first_bytes(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    await client.wait_ready()
    with server.faults.answer_with_html(), pytest.raises(acomfy.ProtocolError) as caught:
        await client.run(saved())
    for part in (server.url, "/prompt", "200", "text/html", "Sign in"):
        assert part in str(caught.value)


async def test_a_prompt_over_the_servers_limit_is_refused_with_both_sizes() -> None:
    async with SimulatedServer(max_upload_size=5000) as server, quick_client(server) as client:
        await client.wait_ready()
        graph = saved()
        graph["1"]["inputs"]["note"] = "x" * 10_000
        with pytest.raises(acomfy.PayloadTooLarge) as caught:
            await client.run(graph)
        assert caught.value.size is not None and caught.value.size > 10_000
        assert caught.value.limit == 5000


# --- Frames (40 to 46) ------------------------------------------------------------------------------------------------


async def test_garbage_frames_are_survived_and_cost_no_result(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    job = await running(client, gates)
    server.faults.send_garbage()
    await server.flush()
    gates.open["gate"].set()
    async with bound(3):
        assert len((await job).images) == 1
    assert len((await client.run(streamed(1))).images) == 1


async def test_frames_that_come_twice_change_nothing(server: SimulatedServer, client: acomfy.Client) -> None:
    with server.faults.duplicate_frames():
        result = await client.run(saved(1, batch=2))
    assert len(result.images) == 2


@pytest.mark.parametrize("seed", range(5))
async def test_frames_out_of_order_lose_no_saved_image(
    server: SimulatedServer, client: acomfy.Client, seed: int
) -> None:
    with server.faults.reorder_frames(seed):
        async with bound(10):
            results = await asyncio.gather(*(client.run(saved(color)) for color in range(10)))
    assert [color_of(await result.images[0].read()) for result in results] == list(range(10))


async def test_a_message_over_the_cap_costs_the_socket_and_not_the_job(server: SimulatedServer, gates: Gates) -> None:
    async with quick_client(server, max_message_size=1 << 20) as client:
        job = await running(client, gates)
        server.faults.send_oversize_frame(2 << 20)
        await eventually(lambda: not client._connection.live)
        gates.open["gate"].set()
        async with bound(3):
            assert len((await job).images) == 1


# --- Lost answers (56) ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.3.40", "0.3.64", "0.38.1"])
@pytest.mark.parametrize(
    "fault", ["lose_answer_to_next_prompt", "fail_next_prompt_after_queueing", "answer_next_prompt_with_html"]
)
async def test_a_prompt_whose_answer_was_lost_runs_exactly_once(version: str, fault: str) -> None:
    async with SimulatedServer(version=version) as server, quick_client(server) as client:
        await client.run(saved(1))
        getattr(server.faults, fault)()
        async with bound(5):
            result = await client.run(saved(2))
        assert color_of(await result.images[0].read()) == 2
        assert server.ledger.executions == 2


async def test_an_answer_that_was_lost_while_others_wait_runs_exactly_once(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    blocker = await running(client, gates)
    server.faults.lose_answer_to_next_prompt()
    task = asyncio.create_task(client.run(saved(5)))
    await server.wait_for(lambda: len(server.queue) == 2)
    gates.open["gate"].set()
    async with bound(5):
        assert color_of(await (await task).images[0].read()) == 5
    await blocker
    assert server.ledger.executions == 2


async def test_a_page_instead_of_every_answer_is_told_at_once(server: SimulatedServer) -> None:
    async with quick_client(server, connect_timeout=10 * MS, unreachable_timeout=600.0) as client:
        with server.faults.answer_with_html(), pytest.raises(acomfy.ProtocolError, match="POST .* text/html"):
            async with bound(5):
                await client.run(saved())
    assert not server.ledger


async def test_a_server_that_is_down_is_unreachable_and_nothing_was_sent(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    async with server.faults.down(), bound(10):
        with pytest.raises(acomfy.ServerUnreachable) as caught:
            await client.run(saved())
    assert not caught.value.maybe_sent


# --- Waiting for a server (58) ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 502, 503])
async def test_wait_ready_waits_out_a_boot(server: SimulatedServer, client: acomfy.Client, status: int) -> None:
    with server.faults.answer_as_booting(status):
        waiting = asyncio.create_task(client.wait_ready())
        await server.wait_for(lambda: server.requests["GET", "/system_stats"] >= 1)
        assert not waiting.done()
    async with bound(2):
        await waiting


async def test_wait_ready_waits_out_refused_connections(server: SimulatedServer, client: acomfy.Client) -> None:
    async with server.faults.down():
        waiting = asyncio.create_task(client.wait_ready())
        await asyncio.wait([waiting], timeout=100 * MS)
        assert not waiting.done()
    async with bound(3):
        await waiting


# --- Every version (61) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_main_job_and_the_recoveries_work_on_every_version(version: str, gates: Gates) -> None:
    async with SimulatedServer(version=version) as server, quick_client(server) as client:
        server.add_node(gates.node)
        results = await asyncio.gather(*(client.run(call(i, batch=2)) for i in range(20) for call in (saved, streamed)))
        for index, result in enumerate(results):
            assert [color_of(await output.read()) for output in result.images] == [index // 2] * 2
        job = await running(client, gates)
        server.faults.drop_connections()
        waiting = await client.submit(saved(1))
        assert await waiting.cancel()
        gates.open["gate"].set()
        async with bound(3):
            assert len((await job).images) == 1
        again = await running(client, gates, "again")
        cancelled = await again.cancel()
        assert cancelled == (version not in ("0.3.40", "0.3.50"))
        if not cancelled:
            assert again.cancel_note is not None and "whatever runs" in again.cancel_note
        gates.open["again"].set()
        await again.settled()


async def test_an_old_server_is_interrupted_globally_only_when_that_was_allowed(gates: Gates) -> None:
    async with SimulatedServer(version="0.3.40") as server:
        server.add_node(gates.node)
        async with quick_client(server, allow_global_interrupt=True) as client:
            job = await running(client, gates)
            async with bound(3):
                assert await job.cancel()
            with pytest.raises(acomfy.JobCancelled):
                await job


# --- What a review found ----------------------------------------------------------------------------------------------


async def test_the_watch_does_not_delete_a_prompt_that_was_posted_twice_to_an_old_server(gates: Gates) -> None:
    async with SimulatedServer(version="0.3.40") as server, quick_client(server) as client:
        server.add_node(gates.node)
        blocker = await running(client, gates)
        with server.faults.answer_as_booting(502):
            task = asyncio.create_task(client.submit(saved(5)))
            await eventually(lambda: any(job.posting for job in client.jobs))
            await asyncio.wait([task], timeout=50 * MS)
        job = await task
        client._watch.look_now()
        looks = server.requests["GET", "/queue"]
        await eventually(lambda: server.requests["GET", "/queue"] >= looks + 2)
        gates.open["gate"].set()
        async with bound(5):
            assert color_of(await (await job).images[0].read()) == 5
        await blocker


@pytest.mark.parametrize("options", [{"number": float("nan")}, {"targets": "12"}, {"extra_data": []}])
async def test_wrong_options_are_refused_by_the_call(client: acomfy.Client, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, acomfy.WorkflowError)):
        client.run(saved(), **options)  # type: ignore[unused-coroutine]


async def test_what_cannot_even_be_sent_is_raised_and_nobody_waits(server: SimulatedServer) -> None:
    async def broken(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        raise TypeError("of the caller's own making")

    async with (
        aiohttp.ClientSession(middlewares=(broken,)) as session,
        quick_client(server, session=session) as client,
        bound(5),
    ):
        with pytest.raises(TypeError, match="own making"):
            await client.run(saved())


async def test_a_run_that_is_cancelled_while_its_prompt_is_looked_for_is_not_posted_again(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    await client.wait_ready()
    with server.faults.answer_as_booting(502):
        task = asyncio.create_task(client.run(saved(9)))
        await asyncio.wait([task], timeout=100 * MS)
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with bound(5):
        await eventually(lambda: client.jobs == ())
    assert server.ledger.executions == 0


async def test_one_history_that_cannot_be_read_costs_no_other_job(
    server: SimulatedServer, client: acomfy.Client, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = client.api.get_history
    bad = await client.submit(saved(1), number=-1)

    async def get_history(prompt_id: str) -> Any:
        if prompt_id == bad.prompt_id:
            raise acomfy.HTTPError(500, "GET", "/history", "broken")
        return await real(prompt_id)

    job = await running(client, gates)
    monkeypatch.setattr(client._once, "get_history", get_history)
    with server.faults.stall_delivery():
        gates.open["gate"].set()
        async with bound(5):
            assert len((await job).images) == 1


async def test_cancelling_a_stalled_prompt_says_that_it_is_off_the_server(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    server.hold()
    job = await client.submit(saved(), stall_timeout=100 * MS)
    with pytest.raises(acomfy.JobStalled):
        await job
    assert await job.cancel()
    assert len(server.queue) == 0
