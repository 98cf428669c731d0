"""The main job, end to end, against the simulated server over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import acomfy
from acomfy.simulator import SimulatedServer

from .graphs import color_of, gated, sampled, saved, streamed
from .shell import Gates, client, eventually, gates, quick_client, server, tasks_of_the_library

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]


def requests(server: SimulatedServer, method: str, path: str) -> int:
    return server.requests[method, path]


# --- Both ways to get images -----------------------------------------------------------------------------------------


async def test_saved_images_come_from_view_without_a_look_at_history(server: SimulatedServer) -> None:
    async with acomfy.Client(server.url) as client:
        result = await client.run(saved(0x123456, batch=3))
        colors = [color_of(await output.read()) for output in result.images]
    assert colors == [0x123456] * 3
    assert requests(server, "GET", "/history/{prompt_id}") == 0
    assert requests(server, "GET", "/view") == 3


async def test_bytes_are_fetched_only_when_they_are_asked_for(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.run(saved())
    assert requests(server, "GET", "/view") == 0


async def test_streamed_images_arrive_whole_and_in_order(server: SimulatedServer, client: acomfy.Client) -> None:
    result = await client.run(streamed(0x00FF00, batch=4))
    entry = server.ledger[result.prompt_id]
    assert [output.node_id for output in result.images] == ["2"] * 4
    assert [color_of(await output.read()) for output in result.images] == [0x00FF00] * 4
    assert len(entry.images) == 4


async def test_several_streaming_nodes_in_one_prompt_are_kept_apart(client: acomfy.Client) -> None:
    graph = streamed(1, batch=2)
    graph["3"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 32, "height": 32, "batch_size": 3, "color": 2},
    }
    graph["4"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["3", 0]}}
    result = await client.run(graph)
    assert [color_of(await output.read()) for output in result["2"]] == [1, 1]
    assert [color_of(await output.read()) for output in result["4"]] == [2, 2, 2]


async def test_previews_of_a_sampler_are_no_outputs(client: acomfy.Client) -> None:
    job = await client.submit(sampled(node="SaveImageWebsocket"))
    previews = [event async for event in job.events() if isinstance(event, acomfy.PreviewImage)]
    result = await job
    assert len(result.images) == 1
    assert result.images[0].media_type == "image/png"
    assert previews[-1].node_id == "9"
    assert {preview.node_id for preview in previews} == {"3", "9"}


async def test_a_preview_node_gives_temporary_files_apart(client: acomfy.Client) -> None:
    graph = saved(7)
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    result = await client.run(graph)
    assert [output.node_id for output in result.images] == ["2"]
    assert [output.node_id for output in result.temp] == ["3"]
    assert color_of(await result.temp[0].read()) == 7


async def test_a_cached_prompt_gives_the_same_files(client: acomfy.Client) -> None:
    first = await client.run(saved(5))
    second = await client.run(saved(5))
    assert second.images == first.images
    assert second.cached_nodes == ("1", "2")


async def test_the_guides_prompt_runs_with_its_own_edits(client: acomfy.Client) -> None:
    workflow = acomfy.Workflow(sampled())
    workflow["6"]["inputs"]["text"] = "masterpiece best quality man"
    workflow["3"]["inputs"]["seed"] = 5
    result = await client.run(workflow)
    image = await result.images[0].image()
    assert image.size == (64, 64)
    assert json.loads(image.info["prompt"])["6"]["inputs"]["text"] == "masterpiece best quality man"


async def test_hundreds_of_prompts_at_once_share_one_socket_and_get_their_own_images(
    server: SimulatedServer,
) -> None:
    colors = range(1, 301)
    async with acomfy.Client(server.url) as client:
        results = await asyncio.gather(*(client.run(streamed(color)) for color in colors))
        assert len(server.sockets.by_sid) == 1
    for color, result in zip(colors, results, strict=True):
        assert [color_of(await output.read()) for output in result.images] == [color]
    assert requests(server, "POST", "/prompt") == 300
    assert requests(server, "GET", "/history/{prompt_id}") == 0


async def test_two_clients_at_once_do_not_hear_each_other(server: SimulatedServer) -> None:
    async with quick_client(server) as one, quick_client(server) as two:
        results = await asyncio.gather(*(c.run(streamed(i)) for i in range(20) for c in (one, two)))
    for index, result in enumerate(results):
        assert [color_of(await output.read()) for output in result.images] == [index // 2]


async def test_prompts_of_others_without_a_client_id_change_nothing(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    stranger = {"prompt": streamed(0xABCDEF, batch=3)}
    ours = [asyncio.create_task(client.run(streamed(i, batch=2))) for i in range(1, 11)]
    for _ in range(5):
        await client.api.post_prompt(json.dumps(stranger).encode())
    for index, task in enumerate(ours, 1):
        assert [color_of(await output.read()) for output in (await task).images] == [index, index]


# --- Calls -----------------------------------------------------------------------------------------------------------


async def test_the_graph_is_frozen_by_the_call_and_not_by_the_await(client: acomfy.Client) -> None:
    graph = saved()
    tasks = []
    for color in range(5):
        graph["1"]["inputs"]["color"] = color
        tasks.append(asyncio.create_task(client.run(graph)))
    results = [await task for task in tasks]
    assert [color_of(await result.images[0].read()) for result in results] == [0, 1, 2, 3, 4]


async def test_a_wrong_workflow_is_refused_by_the_call_itself(client: acomfy.Client) -> None:
    with pytest.raises(acomfy.WorkflowFormatError, match="Export"):
        client.run({"nodes": [], "links": []})  # type: ignore[unused-coroutine]
    with pytest.raises(acomfy.WorkflowError, match="nan"):
        client.submit(saved() | {"1": {"class_type": "X", "inputs": {"a": float("nan")}}})  # type: ignore[unused-coroutine]


async def test_a_refused_prompt_names_node_input_and_what_is_allowed(client: acomfy.Client) -> None:
    graph = sampled()
    graph["4"]["inputs"]["ckpt_name"] = "gone.safetensors"
    with pytest.raises(acomfy.PromptRejected) as caught:
        await client.submit(graph)
    (problem,) = caught.value.problems
    assert (problem.node_id, problem.input_name, problem.type) == ("4", "ckpt_name", "value_not_in_list")
    assert "v1-5-pruned-emaonly.safetensors" in str(caught.value)
    assert client.jobs == ()


def partly_invalid() -> dict[str, Any]:
    graph = saved(3)
    graph["3"] = {"class_type": "EmptyImage", "inputs": {"width": -5, "height": 64, "batch_size": 1, "color": 0}}
    graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "bad"}}
    return graph


async def test_a_partly_invalid_prompt_is_cancelled_and_refused(server: SimulatedServer, client: acomfy.Client) -> None:
    for call in (client.run, client.submit):
        with pytest.raises(acomfy.PromptRejected) as caught:
            await call(partly_invalid())
        assert caught.value.partial
        assert [problem.node_id for problem in caught.value.problems] == ["3"]
    assert client.jobs == ()
    assert len(server.queue) == 0


async def test_a_partly_invalid_prompt_runs_the_rest_when_not_strict(client: acomfy.Client) -> None:
    job = await client.submit(partly_invalid(), strict=False)
    result = await job
    assert [output.node_id for output in result.images] == ["2"]
    assert [warning.node_id for warning in job.warnings] == ["3"]


async def test_a_failing_node_raises_with_its_class_title_and_traceback(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    @server.node("Break", required={"image": ("IMAGE",)}, outputs=("IMAGE",))
    def fail(context: Any, image: Any) -> Any:
        raise ValueError("it is broken")

    graph = saved()
    graph["3"] = {"class_type": "Break", "inputs": {"image": ["1", 0]}, "_meta": {"title": "The breaker"}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    with pytest.raises(acomfy.JobFailed) as caught:
        await client.run(graph)
    error = caught.value
    assert (error.node_id, error.class_type, error.title) == ("3", "Break", "The breaker")
    assert error.exception_type == "ValueError"
    assert any("it is broken" in line or "File" in line for line in error.traceback)
    assert "node 3 (Break, 'The breaker')" in str(error)


async def test_front_and_number_set_the_order(server: SimulatedServer, client: acomfy.Client, gates: Gates) -> None:
    blocker = await client.submit(gated("first"))
    await gates.reached["first"].wait()
    last = await client.submit(saved(1), number=1000)
    middle = await client.submit(saved(2), number=500.5)
    front = await client.submit(saved(3), front=True)
    assert [await job.position() for job in (blocker, front, middle, last)] == [0, 1, 2, 3]
    ended: list[acomfy.Job] = []
    for job in (last, middle, front, blocker):
        job.when_done(ended.append)
    gates.open["first"].set()
    await asyncio.gather(*(job.settled() for job in (last, middle, front, blocker)))
    assert ended == [blocker, front, middle, last]


async def test_targets_run_only_the_outputs_asked_for(client: acomfy.Client) -> None:
    graph = saved(1)
    graph["3"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}
    result = await client.run(graph, targets=["3"])
    assert [output.node_id for output in result.images] == ["3"]


async def test_extra_data_is_embedded_where_comfyui_embeds_it(client: acomfy.Client) -> None:
    extra = {"extra_pnginfo": {"workflow": {"nodes": [], "id": "w"}}}
    result = await client.run(saved(9), extra_data=extra)
    image = await result.images[0].image()
    assert json.loads(image.info["workflow"]) == {"nodes": [], "id": "w"}


# --- map -------------------------------------------------------------------------------------------------------------


async def test_map_yields_finished_jobs_with_their_place_in_the_input(client: acomfy.Client) -> None:
    found = {}
    async for job in client.map((saved(color) for color in range(30)), limit=4):
        found[job.index] = color_of(await (await job).images[0].read())
    assert found == {color: color for color in range(30)}


async def test_map_over_an_endless_input_keeps_the_servers_queue_short(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    taken = longest = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal taken
        while True:
            taken += 1
            yield saved(taken)

    done = 0
    async for job in client.map(endless(), limit=3):
        await job
        done += 1
        longest = max(longest, len(client.jobs))
        assert taken - done <= 3
        if done == 50:
            break
    assert longest <= 3
    await eventually(lambda: client.jobs == () and len(server.queue) == 0)


async def test_map_settles_what_is_wrong_with_one_item_and_goes_on(client: acomfy.Client) -> None:
    async def items() -> AsyncIterator[Any]:
        yield saved(1)
        yield {"nodes": [], "links": []}
        yield {"1": {"class_type": "Nope", "inputs": {}}}
        yield saved(2)

    outcomes: dict[int | None, int | str] = {}
    async for job in client.map(items()):
        try:
            outcomes[job.index] = len((await job).images)
        except acomfy.AcomfyError as exc:
            outcomes[job.index] = type(exc).__name__
    assert outcomes == {0: 1, 1: "WorkflowFormatError", 2: "PromptRejected", 3: 1}


# --- Opening and closing ---------------------------------------------------------------------------------------------


async def test_entering_does_not_need_a_server() -> None:
    async with acomfy.Client("http://127.0.0.1:9", connect_timeout=0.05) as client:
        with pytest.raises(acomfy.ServerUnreachable, match="127.0.0.1:9"):
            await client.run(saved())


async def test_a_client_opens_on_first_use_and_is_not_reopened(server: SimulatedServer) -> None:
    client = quick_client(server)
    assert len((await client.run(saved())).images) == 1
    await client.aclose()
    await client.aclose()
    for call in (client.run, client.submit):
        with pytest.raises(acomfy.ClientClosed):
            await call(saved())
    assert tasks_of_the_library() == []


async def test_a_client_is_opened_in_one_task_and_closed_in_another(server: SimulatedServer) -> None:
    client = quick_client(server)
    await asyncio.create_task(client.__aenter__())
    await client.run(saved())
    await asyncio.create_task(client.aclose())
    assert tasks_of_the_library() == []


def test_a_client_belongs_to_one_loop() -> None:
    client = acomfy.Client("http://127.0.0.1:9")

    async def use() -> None:
        async with client:
            pass

    asyncio.run(use())
    with pytest.raises(RuntimeError, match="event loop"):
        asyncio.run(use())


async def test_closing_gives_waiters_client_closed_and_cancels_what_run_submitted(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    kept = await client.submit(gated("kept"))
    await gates.reached["kept"].wait()
    waiting = [asyncio.create_task(client.run(gated(f"{n}"))) for n in range(20)]
    waiter = asyncio.create_task(kept.settled())
    await server.wait_for(lambda: len(server.queue) == 21)
    await client.aclose()
    for task in waiting:
        with pytest.raises(acomfy.ClientClosed):
            await task
    await waiter
    with pytest.raises(acomfy.ClientClosed):
        await kept
    assert len(server.queue) == 1
    assert tasks_of_the_library() == []
    gates.open["kept"].set()
    async with quick_client(server) as other:
        assert len((await (await other.attach(kept.prompt_id))).images) == 1


@pytest.mark.parametrize("frozen", [False, True])
async def test_closing_with_a_thousand_live_jobs_is_quick(server: SimulatedServer, frozen: bool) -> None:
    server.hold()
    client = acomfy.Client(server.url)
    waiting = [asyncio.create_task(client.run(saved(color))) for color in range(1000)]
    await server.wait_for(lambda: len(server.queue) == 1000)
    if frozen:
        server.faults.freeze()
    async with asyncio.timeout(5):
        await client.aclose()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {acomfy.ClientClosed}
    assert len(server.queue) == (1000 if frozen else 0)
    assert tasks_of_the_library() == []
    server.faults.clear()


async def test_attach_finds_running_waiting_and_finished_prompts(
    server: SimulatedServer, client: acomfy.Client, gates: Gates
) -> None:
    done = await client.submit(saved(1))
    await done
    running = await client.submit(gated("a"))
    await gates.reached["a"].wait()
    waiting = await client.submit(saved(2))
    async with quick_client(server) as other:
        jobs = [await other.attach(job.prompt_id) for job in (done, running, waiting)]
        assert [job.state for job in jobs][0] == "completed"
        gates.open["a"].set()
        results = [await job for job in jobs]
    assert [len(result.images) for result in results] == [1, 1, 1]
    assert color_of(await (await waiting).images[0].read()) == 2


async def test_attaching_to_an_unknown_prompt_ends_as_lost(client: acomfy.Client) -> None:
    job = await client.attach("c0ffee00-0000-4000-8000-000000000000")
    with pytest.raises(acomfy.JobLost):
        await job


async def test_wait_ready_returns_when_the_server_answers(server: SimulatedServer) -> None:
    async with quick_client(server) as client:
        await client.wait_ready()
        assert client._connection.live


async def test_client_events_tell_of_the_queue(client: acomfy.Client) -> None:
    await client.wait_ready()
    stream = client.events()
    await client.run(saved())
    async for event in stream:
        if isinstance(event, acomfy.Status):
            break
    await stream.aclose()


async def test_a_callers_session_is_used_and_left_open(server: SimulatedServer) -> None:
    import aiohttp

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        async with quick_client(server, session=session) as client:
            assert len((await client.run(streamed())).images) == 1
        assert not session.closed


async def test_prompts_are_queued_in_the_order_of_their_calls(server: SimulatedServer) -> None:
    async with acomfy.Client(server.url) as client:
        await asyncio.gather(*(client.run(saved(color)) for color in range(30)))
    sent = [body["prompt"]["1"]["inputs"]["color"] for body in server.prompts]
    assert sent[:2] == [0, 1]
    assert max(abs(color - place) for place, color in enumerate(sent)) < 16, "beyond what is under way at once"


async def test_a_prompt_whose_observer_raises_is_not_sent_and_no_job_of_it_is_left(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    def fails(job: acomfy.Job) -> None:
        raise OSError("the disk is full")

    stop = client.on_job(fails)
    with pytest.raises(OSError, match="the disk is full"):
        await client.run(saved())
    assert client.jobs == ()
    stop()
    await client.run(saved())
    assert len(server.prompts) == 1
