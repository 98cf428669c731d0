"""Many servers: the pool over simulators on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import acomfy
from acomfy import events
from acomfy.simulator import SimulatedServer

from .conftest import MS
from .graphs import color_of, gated, saved, streamed
from .shell import FailingPosts, Gates, eventually, failing_posts, gates, quick_delays, tasks_of_the_library

__all__ = ["failing_posts", "gates"]

pytestmark = pytest.mark.anyio

CHECKPOINTS = ("sd_xl_base_1.0.safetensors", "flux1-dev-fp8.safetensors")


@asynccontextmanager
async def servers(count: int, gates: Gates | None = None) -> AsyncIterator[list[SimulatedServer]]:
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(SimulatedServer(cache="none")) for _ in range(count)]
        for server in made:
            if gates is not None:
                server.add_node(gates.node)
        yield made


def quick_pool(made: list[SimulatedServer], **options: Any) -> acomfy.Pool:
    """Make a pool whose own times are short."""
    times: dict[str, Any] = {
        "check_interval": 200 * MS,
        "unreachable_timeout": 600 * MS,
        "silence": 200 * MS,
        "connect_timeout": 2000 * MS,
        "reconnect_delays": quick_delays,
    }
    return acomfy.Pool([server.url for server in made], **{**times, **options})


def with_model(name: str, seed: int = 0) -> dict[str, Any]:
    """A prompt that names a model; it need not run for the server to look for it, and for the pool to count it."""
    graph = saved(seed)
    graph["4"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}
    graph["5"] = {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["4", 2]}}
    graph["6"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["4", 2]}}
    graph["2"]["inputs"]["images"] = ["5", 0]
    return graph


def models_in_order(server: SimulatedServer) -> list[str]:
    return [prompt["prompt"]["4"]["inputs"]["ckpt_name"] for prompt in server.prompts]


def switches(server: SimulatedServer) -> int:
    return sum(one != other for one, other in itertools.pairwise(models_in_order(server)))


def executed(made: list[SimulatedServer]) -> Counter[str]:
    """Count how often each prompt was finished, by its colour."""
    return Counter(
        str(body["prompt"]["1"]["inputs"]["color"])
        for server in made
        for body in server.prompts
        if server.ledger[body["prompt_id"]].state == "completed"
    )


def state_of(pool: acomfy.Pool, server: SimulatedServer) -> str:
    return pool.stats().servers[server.url].state


async def is_up(pool: acomfy.Pool, server: SimulatedServer) -> None:
    await eventually(lambda: state_of(pool, server) == "up", within=20_000 * MS)


# --- Used like a client ----------------------------------------------------------------------------------------------


async def test_run_submit_and_map_give_what_a_client_gives() -> None:
    async with servers(3) as made, quick_pool(made) as pool:
        result = await pool.run(saved(0x123456))
        assert color_of(await result.images[0].read()) == 0x123456
        job = await pool.submit(streamed(7))
        assert isinstance(job, acomfy.Job)
        assert color_of(await (await job).images[0].read()) == 7
        assert (await job) is (await job)
        assert job.state == "completed"
        assert job.progress == 1.0
        assert job.exception() is None
        colors = {}
        async for each in pool.map((saved(color) for color in range(30)), limit=10):
            colors[each.index] = color_of(await (await each).images[0].read())
        assert colors == {color: color for color in range(30)}
        assert not pool.jobs
        assert pool.stats().completed == 32
        assert all(server.completed for server in pool.stats().servers.values())
    assert tasks_of_the_library() == []


async def test_events_updates_and_the_place_go_on_from_the_line_to_the_server(gates: Gates) -> None:
    async with servers(1, gates) as made, quick_pool(made, in_flight=1) as pool:
        first = await pool.submit(gated("first"))
        await gates.reached["first"].wait()
        second, third = await pool.submit(saved(2)), await pool.submit(saved(3))
        assert [await job.position() for job in (first, second, third)] == [0, 1, 2]
        seen: list[events.Event] = []
        places: list[int | None] = []

        async def listen() -> None:
            seen.extend([event async for event in third.events()])

        async def look() -> None:
            async for job in third.updates(interval=0):
                place = await job.position()
                places.append(place)

        async with asyncio.TaskGroup() as group:
            group.create_task(listen())
            group.create_task(look())
            await eventually(lambda: places == [2])
            gates.open["first"].set()
        assert isinstance(seen[0], events.ExecutionStart)
        assert isinstance(seen[-1], events.ExecutionSuccess)
        assert places[-1] is None
        assert await first.position() is None


async def test_errors_of_the_prompt_are_its_outcome_and_those_of_the_workflow_are_raised_at_once() -> None:
    async with servers(2) as made, quick_pool(made) as pool:
        with pytest.raises(acomfy.WorkflowError):
            await pool.run({"1": {}})
        with pytest.raises(ValueError, match="not nan"):
            await pool.run(saved(), priority=float("nan"))
        with pytest.raises(TypeError, match="unhashable"):
            await pool.run(saved(), key=[])  # type: ignore[arg-type]
        wrong = saved()
        wrong["1"]["inputs"]["width"] = -1
        job = await pool.submit(wrong)
        with pytest.raises(acomfy.PromptRejected, match="width"):
            await job
        made[0].on("EmptyImage").fails_with("broken")
        made[1].on("EmptyImage").fails_with("broken")
        with pytest.raises(acomfy.JobFailed, match="broken"):
            await pool.run(saved())
        assert sum(len(server.prompts) for server in made) == 1


async def test_what_servers_make_of_one_item_of_a_map_is_its_outcome_and_the_others_go_on(
    failing_posts: FailingPosts,
) -> None:
    async with servers(2) as made, quick_pool(made, max_attempts=2) as pool:
        failing_posts.fail(saved(0))
        jobs = [job async for job in pool.map([saved(0), saved(1), saved(2)], limit=1)]
        assert [type(job.exception()) for job in jobs] == [acomfy.HTTPError, type(None), type(None)]


async def test_a_client_of_the_pool_is_one_server_for_all_steps() -> None:
    async with servers(3) as made, quick_pool(made, in_flight=1) as pool:
        await pool.wait_ready(3)
        async with pool.acquire() as client:
            assert isinstance(client, acomfy.Client)
            for color in range(3):
                await client.run(saved(color))
            assert pool.stats().in_flight == 1
            await asyncio.gather(*(pool.run(saved(100 + color)) for color in range(6)))
        assert pool.stats().in_flight == 0
        (pinned,) = [server for server in made if server.url == client.api.url]
        assert [body["prompt"]["1"]["inputs"]["color"] for body in pinned.prompts] == [0, 1, 2]


async def test_who_no_longer_waits_for_a_server_of_its_own_takes_no_place(gates: Gates) -> None:
    async with servers(1, gates) as made, quick_pool(made, in_flight=1) as pool:
        job = await pool.submit(gated("held"))
        await gates.reached["held"].wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20 * MS), pool.acquire():
                pass
        gates.open["held"].set()
        await job
        async with pool.acquire():
            assert pool.stats().in_flight == 1
        assert pool.stats().in_flight == 0


async def test_a_place_that_comes_free_as_its_wait_is_cancelled_goes_to_the_next() -> None:
    async with servers(1) as made, quick_pool(made, in_flight=1) as pool:
        first = pool.acquire()
        await first.__aenter__()
        cancelled, next_one = (asyncio.create_task(pool.acquire().__aenter__()) for _ in range(2))
        await eventually(lambda: pool.stats().waiting == 2)
        cancelled.cancel()
        await first.__aexit__(None, None, None)  # before the other task sees that it was cancelled
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await next_one
        assert pool.stats().waiting == 0


async def test_a_wait_for_a_server_that_is_cancelled_as_it_is_refused_is_cancelled() -> None:
    async with quick_pool([]) as pool:
        waiting = asyncio.create_task(pool.acquire().__aenter__())
        await eventually(lambda: pool.stats().waiting == 1)
        (entry,) = pool._dispatcher.line
        pool._dispatcher._refuse(entry)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_attach_finds_the_server_that_has_the_prompt(gates: Gates) -> None:
    async with servers(3, gates) as made:
        async with acomfy.Client(made[1].url) as client:
            job = await client.submit(gated("here"))
            await gates.reached["here"].wait()
        async with quick_pool(made) as pool:
            attached = await pool.attach(job.prompt_id)
            gates.open["here"].set()
            assert len((await attached).images) == 1
            own = await pool.submit(gated("own"))
            assert await pool.attach(own.prompt_id) is own
            gates.open["own"].set()
            await own
            with pytest.raises(acomfy.JobLost):
                await (await pool.attach("00000000-0000-4000-8000-000000000000"))


async def test_options_of_the_client_go_to_all_servers_or_to_one() -> None:
    async with servers(2) as made:
        one: dict[str, Any] = {"url": made[0].url, "weight": 3, "in_flight": 4, "client_id": "mine"}
        async with acomfy.Pool([one, made[1].url], stream_classes=()) as pool:
            await pool.run(saved())
            stats = pool.stats().servers
            assert [stats[server.url].weight for server in made] == [3.0, 1.0]
            assert made[0].prompts[0]["client_id"] == "mine"
    secret = acomfy.Pool(["http://user:hidden@x/?token=hidden"])
    assert "hidden" not in f"{secret!r} {secret.stats()}"
    with pytest.raises(KeyError) as caught:
        await secret.remove("http://y/?token=hidden")
    assert "hidden" not in str(caught.value)
    with pytest.raises(TypeError, match="nonsense"):
        acomfy.Pool(["http://x"], nonsense=1)
    with pytest.raises(ValueError, match="in the pool already"):
        acomfy.Pool(["http://x", "http://x/"])
    with pytest.raises(TypeError, match="list of addresses"):
        acomfy.Pool("http://x")


# --- The line --------------------------------------------------------------------------------------------------------


async def test_a_long_map_keeps_the_servers_queues_shallow() -> None:
    async with servers(2) as made, quick_pool(made) as pool:
        longest = 0

        def look() -> None:
            nonlocal longest
            longest = max(longest, *(len(server.queue) for server in made))

        async for job in pool.map((saved(color) for color in range(200)), limit=100):
            look()
            await job
        assert 1 <= longest <= 2
        assert sum(executed(made).values()) == 200


async def test_a_user_with_one_prompt_does_not_wait_for_all_of_another(gates: Gates) -> None:
    async with servers(2, gates) as made, quick_pool(made) as pool:
        await pool.wait_ready(2)
        first = [await pool.submit(gated("a"), key="a") for _ in range(4)]
        first += [await pool.submit(saved(color), key="a") for color in range(96)]
        lone = await pool.submit(with_model(CHECKPOINTS[0]), key="b")
        gates.open["a"].set()
        await asyncio.gather(lone, *first)
        (server,) = [server for server in made if lone.placement and server.url == lone.placement.server]
        place = [body["prompt_id"] for body in server.prompts].index(lone.prompt_id)
        assert place <= 3  # two at once on each server, and one more at most


async def test_a_full_line_refuses_at_once_and_queues_nothing(gates: Gates) -> None:
    async with (
        servers(1, gates) as made,
        quick_pool(made, in_flight=1, max_pending=2, max_pending_per_key=1) as pool,
    ):
        jobs = [await pool.submit(gated("held"), key="a")]
        await gates.reached["held"].wait()
        jobs.append(await pool.submit(saved(), key="a"))
        with pytest.raises(acomfy.QueueFull, match="max_pending_per_key"):
            await pool.submit(saved(), key="a")
        jobs.append(await pool.submit(saved(), key="b"))
        with pytest.raises(acomfy.QueueFull, match=r"2 prompts wait \(max_pending\)"):
            await pool.run(saved(), key="c")
        assert len(pool.jobs) == 3
        gates.open["held"].set()
        await asyncio.gather(*jobs)


async def test_maps_read_their_inputs_no_further_than_the_line_has_room() -> None:
    async def from_elsewhere() -> AsyncIterator[dict[str, Any]]:
        for color in range(20):
            yield saved(color)

    async with servers(1) as made, quick_pool(made, in_flight=1, max_pending=2) as pool:

        async def indexes(workflows: Iterable[dict[str, Any]] | AsyncIterable[dict[str, Any]]) -> list[int | None]:
            return [job.index async for job in pool.map(workflows, limit=10) if await job]

        found = await asyncio.gather(indexes([saved(color) for color in range(20)]), indexes(from_elsewhere()))
        assert [sorted(index for index in each if index is not None) for each in found] == [list(range(20))] * 2


async def test_priority_front_and_reordering_decide_who_is_next(gates: Gates) -> None:
    async with servers(1, gates) as made, quick_pool(made, in_flight=1) as pool:
        held = await pool.submit(gated("held"))
        await gates.reached["held"].wait()
        jobs = [await pool.submit(saved(color)) for color in range(4)]
        jobs.append(await pool.submit(saved(4), priority=1))
        jobs.append(await pool.submit(saved(5), front=True))
        assert pool.reorder(jobs[3], front=True)
        assert pool.reorder(jobs[2], priority=2)
        assert not pool.reorder(held, front=True)
        gates.open["held"].set()
        await asyncio.gather(*jobs)
        colors = [body["prompt"]["1"]["inputs"]["color"] for body in made[0].prompts[1:]]
        assert colors == [2, 4, 3, 5, 0, 1]


async def test_cancelling_what_waits_in_the_line_asks_no_server(gates: Gates) -> None:
    async with servers(1, gates) as made, quick_pool(made, in_flight=1) as pool:
        held = await pool.submit(gated("held"))
        await gates.reached["held"].wait()
        waiting = await pool.submit(saved(1))
        running = asyncio.create_task(pool.run(saved(2)))
        await eventually(lambda: pool.stats().waiting == 2)
        assert await waiting.cancel()
        assert isinstance(waiting.exception(), acomfy.JobCancelled)
        assert await waiting.cancel()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert pool.stats().waiting == 0
        assert await held.cancel()
        assert held.state == "cancelled"
        assert len(made[0].prompts) == 1
        assert made[0].ledger[held.prompt_id].state == "cancelled"


@pytest.mark.parametrize("trouble", ["dead", "silent"])
async def test_a_prompt_on_a_server_that_is_down_is_cancelled_at_once_and_cleared_later(
    gates: Gates, trouble: str
) -> None:
    async with servers(1, gates) as made, quick_pool(made, unreachable_timeout=60.0) as pool:
        jobs = [await pool.submit(gated("held"), on_lost=on_lost) for on_lost in ("raise", "resubmit")]
        await gates.reached["held"].wait()
        await eventually(lambda: len(made[0].queue) == 2)
        async with contextlib.AsyncExitStack() as stack:
            if trouble == "dead":
                await stack.enter_async_context(made[0].faults.down())
            else:
                stack.enter_context(made[0].faults.freeze())
            await eventually(lambda: state_of(pool, made[0]) == "down")
            jobs.append(await pool.submit(saved()))
            assert all(await asyncio.gather(*(job.cancel() for job in jobs)))
            assert [job.state for job in jobs] == ["cancelled"] * 3
        gates.open["other"].set()
        await pool.run(gated("other"))
        assert made[0].ledger[jobs[0].prompt_id].state == ("lost" if trouble == "dead" else "cancelled")
        assert len(made[0].queue) == 0


async def test_a_cancelled_prompt_does_not_wait_for_its_server_to_come_back(gates: Gates) -> None:
    async with servers(1, gates) as made, quick_pool(made, unreachable_timeout=60.0) as pool:
        job = await pool.submit(gated("held"))
        await gates.reached["held"].wait()
        async with made[0].faults.down():
            assert await job.cancel()
            assert isinstance(job.exception(), acomfy.JobCancelled)


async def test_leaving_a_map_early_takes_its_prompts_from_the_line_and_the_servers(gates: Gates) -> None:
    async with servers(2, gates) as made, quick_pool(made) as pool:
        graphs = [saved(), *(gated("held") for _ in range(50))]
        async with contextlib.aclosing(pool.map(graphs, limit=50)) as jobs:
            async for job in jobs:
                await job
                break
        await eventually(lambda: not pool.jobs)
        assert all(not len(server.queue) for server in made)
        assert "completed" not in {
            server.ledger[body["prompt_id"]].state for server in made for body in server.prompts[1:]
        }


async def test_closing_cancels_what_was_run_and_leaves_what_was_submitted(gates: Gates) -> None:
    async with servers(1, gates) as made:
        async with quick_pool(made, in_flight=2) as pool:
            left = await pool.submit(gated("left"))
            await gates.reached["left"].wait()
            run = asyncio.create_task(pool.run(gated("run")))
            await eventually(lambda: len(made[0].queue) == 2)
            waiting = await pool.submit(saved())
            pinning = asyncio.create_task(pool.acquire().__aenter__())
            await eventually(lambda: pool.stats().waiting == 2)
        for ended in (left, waiting):
            with pytest.raises(acomfy.ClientClosed):
                await ended
        for task in (run, pinning):
            with pytest.raises(acomfy.ClientClosed):
                await task
        with pytest.raises(acomfy.ClientClosed):
            await pool.run(saved())
        assert made[0].ledger[left.prompt_id].state == "in_progress"
        assert len(made[0].queue) == 1
        gates.open["left"].set()
    assert tasks_of_the_library() == []


# --- Where prompts go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2, 16, 100])
async def test_two_models_in_turns_on_two_servers_make_few_switches(limit: int) -> None:
    async with servers(2) as made, quick_pool(made) as pool:
        await pool.wait_ready(2)
        graphs = [with_model(CHECKPOINTS[number % 2], number) for number in range(100)]
        async for job in pool.map(graphs, limit=limit):
            await job
        assert sum(map(switches, made)) <= 10
        assert pool.stats().switches == sum(map(switches, made))
        assert min(len(server.prompts) for server in made) >= 20


async def test_one_server_serves_two_models_in_turns_of_many() -> None:
    async with servers(1) as made, quick_pool(made) as pool:
        graphs = [with_model(CHECKPOINTS[number % 2], number) for number in range(60)]
        async for job in pool.map(graphs, limit=60):
            await job
        assert 1 <= switches(made[0]) <= 6


async def test_a_prompt_goes_where_its_nodes_and_models_are_and_says_so() -> None:
    async with servers(3) as made:
        made[0].models["checkpoints"].remove(CHECKPOINTS[0])
        del made[1].classes["VAEDecode"]
        async with quick_pool(made) as pool:
            await pool.wait_ready(3)
            jobs = [await pool.submit(with_model(CHECKPOINTS[0], seed)) for seed in range(6)]
            await asyncio.gather(*jobs)
            assert [len(server.prompts) for server in made] == [0, 0, 6]
            text = str(jobs[0].placement)
            assert f"{made[0].url}: it has no model {CHECKPOINTS[0]!r}" in text
            assert f"{made[1].url}: it has no node class 'VAEDecode'" in text


async def test_the_one_server_of_many_that_can_run_a_prompt_is_found() -> None:
    async with servers(20) as made, quick_pool(made, check_interval=5000 * MS) as pool:
        for server in made:
            if server is not made[13]:
                del server.classes["SaveImageWebsocket"]
        await pool.wait_ready(20)
        jobs = [await pool.submit(saved(color)) for color in range(3)]
        jobs += [await pool.submit(streamed(color)) for color in range(6)]
        await asyncio.gather(*jobs)
        assert len(made[13].prompts) == 6


async def test_what_no_server_has_is_refused_in_a_servers_own_words_and_what_is_new_there_is_found() -> None:
    async with servers(2) as made, quick_pool(made) as pool:
        await pool.wait_ready(2)
        with pytest.raises(acomfy.PromptRejected, match="new.safetensors"):
            await pool.run(with_model("new.safetensors"))
        for server in made:
            server.models["checkpoints"].append("new.safetensors")
        await pool.run(with_model("new.safetensors"))


async def test_a_server_that_lost_a_model_is_not_asked_again_and_another_one_is() -> None:
    async with servers(2) as made, quick_pool(made) as pool:
        await pool.wait_ready(2)
        made[0].models["checkpoints"].remove(CHECKPOINTS[0])
        jobs = [await pool.submit(with_model(CHECKPOINTS[0], seed)) for seed in range(8)]
        await asyncio.gather(*jobs)
        assert not made[0].prompts
        assert len(made[1].prompts) == 8


# --- Servers that come and go ----------------------------------------------------------------------------------------


async def test_the_jobs_of_a_server_that_dies_finish_elsewhere_once(gates: Gates) -> None:
    async with servers(4, gates) as made, quick_pool(made) as pool:
        await pool.wait_ready(4)
        jobs = [await pool.submit(gated("all")) for _ in range(8)]
        await eventually(lambda: all(len(server.queue) == 2 and server.queue.running for server in made))
        jobs += [await pool.submit(saved(color)) for color in range(20)]
        async with made[2].faults.down():
            gates.open["all"].set()
            results = await asyncio.gather(*jobs)
            assert all(len(result.images) == 1 for result in results)
            assert sorted(job.attempt for job in jobs) == [1] * 26 + [2] * 2
            assert executed([made[0], made[1], made[3]]) == Counter(map(str, range(20))) + Counter({"0": 8})
            assert state_of(pool, made[2]) == "down"
        await is_up(pool, made[2])
        await pool.drain(made[0].url)
        count = len(made[2].prompts)
        async for job in pool.map([saved(color) for color in range(30)], limit=12):
            await job
        assert len(made[2].prompts) > count


async def test_inputs_are_uploaded_again_where_a_prompt_moves_to(gates: Gates, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(picture)
    async with servers(2, gates) as made, quick_pool(made, in_flight=1) as pool:
        await pool.wait_ready(2)
        graph = gated("held")
        graph["1"] = {"class_type": "LoadImage", "inputs": {"image": picture}}
        job = await pool.submit(graph, on_lost="resubmit")
        await gates.reached["held"].wait()
        (first,) = [server for server in made if server.prompts]
        (second,) = [server for server in made if server is not first]
        async with first.faults.down():
            gates.open["held"].set()
            result = await job
        assert color_of(await result.images[0].read()) == 0x010203
        assert len(first.uploads) == len(second.uploads) == 1
        assert job.attempt == 2


async def test_what_had_started_is_not_run_again_unless_that_is_wished(gates: Gates) -> None:
    async with servers(2, gates) as made, quick_pool(made) as pool:
        await pool.wait_ready(2)
        job = await pool.submit(gated("held"), on_lost="raise")
        await gates.reached["held"].wait()
        (first,) = [server for server in made if server.prompts]
        await first.faults.restart()
        with pytest.raises(acomfy.JobLost) as caught:
            await job
        assert caught.value.reason == "restarted"
        assert job.attempt == 1


async def test_a_prompt_that_kills_its_servers_stops_after_its_attempts(gates: Gates) -> None:
    async with servers(2, gates) as made, quick_pool(made, max_attempts=2) as pool:
        await pool.wait_ready(2)
        job = await pool.submit(gated("poison"))
        for attempt in (1, 2):
            await eventually(lambda attempt=attempt: job.attempt == attempt and job.state == "in_progress")  # type: ignore[misc]
            (running,) = [server for server in made if server.queue.running]
            await running.faults.restart()
        with pytest.raises(acomfy.JobLost):
            await job
        assert sum(server.ledger.executions for server in made) == 2


async def test_a_server_that_only_does_not_answer_for_a_while_keeps_its_prompts(gates: Gates) -> None:
    async with (
        servers(2, gates) as made,
        quick_pool(made, check_interval=1000 * MS, unreachable_timeout=30_000 * MS) as pool,
    ):
        await pool.wait_ready(2)
        jobs = [await pool.submit(gated("held")) for _ in range(4)]
        await eventually(lambda: all(len(server.queue) == 2 for server in made))
        with made[0].faults.freeze():
            await eventually(lambda: state_of(pool, made[0]) == "shaky", within=20_000 * MS)
            assert not pool.stats().servers[made[0].url].moved
        await is_up(pool, made[0])
        gates.open["held"].set()
        await asyncio.gather(*jobs)
        assert [job.attempt for job in jobs] == [1] * 4


async def test_what_was_given_up_on_a_silent_server_is_taken_off_before_it_is_used_again(gates: Gates) -> None:
    async with servers(2, gates) as made, quick_pool(made) as pool:
        await pool.wait_ready(2)
        jobs = [await pool.submit(gated("held")) for _ in range(4)]
        await eventually(lambda: all(len(server.queue) == 2 and server.queue.running for server in made))
        old = [body["prompt_id"] for body in made[0].prompts]
        with made[0].faults.freeze():
            await eventually(lambda: pool.stats().servers[made[0].url].moved == 2, within=30_000 * MS)
        await is_up(pool, made[0])
        assert {made[0].ledger[prompt_id].state for prompt_id in old} <= {"deleted", "cancelled", "in_progress"}
        gates.open["held"].set()
        await asyncio.gather(*jobs)
        assert "completed" not in {made[0].ledger[prompt_id].state for prompt_id in old}


async def test_a_drained_server_hands_over_what_waits_and_keeps_what_runs(gates: Gates) -> None:
    async with servers(2, gates) as made, quick_pool(made) as pool:
        await pool.wait_ready(2)
        jobs = [await pool.submit(gated("held")) for _ in range(4)]
        await eventually(lambda: all(len(server.queue) == 2 and server.queue.running for server in made))
        removing = asyncio.create_task(pool.remove(made[0].url))
        await eventually(lambda: len(made[0].queue) == 1)
        assert state_of(pool, made[0]) == "draining"
        assert not removing.done()
        gates.open["held"].set()
        await asyncio.gather(*jobs)
        await removing
        assert list(pool.stats().servers) == [made[1].url]
        assert sorted(job.attempt for job in jobs) == [1, 1, 1, 2]
        assert Counter(entry.state for entry in made[0].ledger.values()) == {"completed": 1, "deleted": 1}
        with pytest.raises(KeyError, match="is not in the pool"):
            await pool.drain(made[0].url)


async def test_an_idle_server_takes_over_what_waits_behind_a_long_prompt(gates: Gates) -> None:
    async with servers(2, gates) as made, quick_pool(made, check_interval=5000 * MS) as pool:
        await pool.wait_ready(2)
        made[0].on("EmptyImage").takes(600 * MS).once()
        made[1].on("EmptyImage").takes(600 * MS).once()
        await asyncio.gather(pool.run(saved(1)), pool.run(saved(2)))  # now it knows that prompts take long
        jobs = [await pool.submit(gated(name)) for name in ("long", "short", "waits")]
        await gates.reached["long"].wait()
        await gates.reached["short"].wait()
        (crowded,) = [server for server in made if len(server.queue) == 2]
        (other,) = [server for server in made if server is not crowded]
        prompt_id = jobs[2].prompt_id
        gates.open["waits"].set()
        gates.open["long" if jobs[0].placement and jobs[0].placement.server == other.url else "short"].set()
        await jobs[2]
        assert jobs[2].prompt_id == prompt_id
        assert (jobs[2].attempt, other.ledger[prompt_id].state) == (2, "completed")
        assert crowded.ledger[prompt_id].state == "deleted"
        gates.open["long"].set()
        gates.open["short"].set()
        await asyncio.gather(*jobs)


async def test_servers_are_added_and_resumed_while_prompts_wait() -> None:
    async with servers(2) as made, quick_pool([], unavailable_timeout=None) as pool:
        job = await pool.submit(saved())
        assert str(pool.explain(job)).startswith("waits: there is no server")
        pool.add(made[0].url)
        await job
        await pool.drain(made[0].url)
        job = await pool.submit(saved())
        assert f"{made[0].url}: draining" in str(pool.explain(job))
        pool.resume(made[0].url)
        await job
        pool.add({"url": made[1].url})
        await pool.wait_ready(2)


async def test_a_server_that_boots_is_used_when_it_is_ready() -> None:
    async with servers(2) as made:
        with made[0].faults.answer_as_booting(), made[1].faults.answer_as_booting():
            async with quick_pool(made) as pool:
                job = await pool.submit(saved())
                await eventually(lambda: "Bad Gateway" in pool.stats().servers[made[1].url].trouble)
                assert state_of(pool, made[1]) == "starting"
                made[1].faults.clear()
                await job
                assert not made[0].prompts


async def test_without_any_server_prompts_wait_or_are_refused_as_was_said() -> None:
    async with (
        servers(1) as made,
        quick_pool(made, unavailable_timeout=0) as never,
        quick_pool(made, unavailable_timeout=100 * MS) as short,
        quick_pool(made, unavailable_timeout=None) as ever,
    ):
        for pool in (never, short, ever):
            await pool.wait_ready()
        async with made[0].faults.down():
            for pool in (never, short, ever):
                await eventually(lambda pool=pool: state_of(pool, made[0]) == "down")  # type: ignore[misc]
            with pytest.raises(acomfy.NoServerAvailable, match=made[0].url):
                await never.submit(saved())
            with pytest.raises(acomfy.NoServerAvailable):
                async with never.acquire():
                    pass
            job = await short.submit(saved())
            with pytest.raises(acomfy.NoServerAvailable, match="no answer from"):
                await job
            patient = await ever.submit(saved(9))
        assert color_of(await (await patient).images[0].read()) == 9


async def test_streamed_pictures_that_a_deaf_socket_did_not_bring_are_made_again_over_a_new_one() -> None:
    async with servers(1) as made, quick_pool(made) as pool:
        await pool.run(streamed(1))
        made[0].faults.go_deaf()
        job = await pool.submit(streamed(2))
        assert color_of(await (await job).images[0].read()) == 2
        assert job.attempt == 2


async def test_attaching_does_not_wait_for_a_server_that_is_silent() -> None:
    async with servers(2) as made:
        async with acomfy.Client(made[1].url) as client:
            job = await client.submit(saved(3))
            await job
        async with quick_pool(made) as pool:
            await pool.wait_ready(2)
            with made[0].faults.freeze():
                result = await (await pool.attach(job.prompt_id))
                assert color_of(await result.images[0].read()) == 3
                with pytest.raises(acomfy.NoServerAvailable, match=f"these did not answer: {made[0].url}"):
                    await pool.attach("00000000-0000-4000-8000-000000000000")


async def test_a_lost_answer_to_a_prompt_does_not_run_it_on_two_servers() -> None:
    async with servers(2) as made, quick_pool(made) as pool:
        await pool.wait_ready(2)
        for server in made:
            server.faults.lose_answer_to_next_prompt()
        await asyncio.gather(*(pool.run(saved(color)) for color in range(6)))
        assert executed(made) == Counter(map(str, range(6)))


async def test_a_server_that_refuses_everything_does_not_lose_prompts() -> None:
    async with servers(2) as made:
        with made[0].faults.answer_with_html(401):
            async with quick_pool(made) as pool:
                await asyncio.gather(*(pool.run(saved(color)) for color in range(6)))
                assert "401" in pool.stats().servers[made[0].url].trouble
                assert state_of(pool, made[0]) == "down"


async def test_a_pool_stays_in_the_loop_of_its_first_use(gates: Gates) -> None:
    async with servers(1) as made, quick_pool(made) as pool:

        def elsewhere() -> None:
            asyncio.run(pool.run(saved()))

        with pytest.raises(RuntimeError, match="event loop"):
            await asyncio.to_thread(elsewhere)


async def test_observers_see_jobs_and_downloads() -> None:
    seen: list[Any] = []

    def observer(output: acomfy.Output) -> contextlib.AbstractContextManager[None]:
        seen.append(output)
        return contextlib.nullcontext()

    async with servers(1) as made, quick_pool([]) as pool:
        pool.on_job(seen.append)
        pool.on_download(observer)
        pool.add(made[0].url)
        job = await pool.submit(saved())
        (output,) = (await job).images
        await output.read()
        assert seen == [job, output]


async def test_observers_stop_when_they_are_told_as_those_of_a_client_do() -> None:
    seen: list[Any] = []

    def observer(output: acomfy.Output) -> contextlib.AbstractContextManager[None]:
        seen.append(output)
        return contextlib.nullcontext()

    async with servers(1) as made, quick_pool(made) as pool:
        for stop in (pool.on_job(seen.append), pool.on_download(observer)):
            stop()
        (output,) = (await pool.run(saved())).images
        await output.read()
        assert seen == []


# --- Cancelled anywhere ----------------------------------------------------------------------------------------------


async def run_one(pool: acomfy.Pool) -> None:
    await pool.run(saved(1))


async def map_three(pool: acomfy.Pool) -> None:
    async for job in pool.map([saved(color) for color in range(3)], limit=2):
        await job


async def submit_and_cancel(pool: acomfy.Pool) -> None:
    await (await pool.submit(saved(2))).cancel()


async def acquire_in_turns(pool: acomfy.Pool) -> None:
    async def one() -> None:
        async with pool.acquire() as client:
            await client.run(saved(3))

    await asyncio.gather(*(one() for _ in range(5)))


async def drain_and_resume(pool: acomfy.Pool) -> None:
    url = next(iter(pool.stats().servers))
    try:
        await pool.drain(url)
    finally:
        pool.resume(url)


@pytest.mark.parametrize("use", [run_one, map_three, submit_and_cancel, acquire_in_turns, drain_and_resume])
async def test_what_is_cancelled_at_any_step_ends_and_leaves_nothing(use: Callable[[acomfy.Pool], Any]) -> None:
    async with servers(2) as made, quick_pool(made, in_flight=1) as pool:
        await pool.wait_ready(2)
        for steps in range(60):
            task = asyncio.create_task(use(pool))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=10_000 * MS)
            assert task.cancelled() or task.exception() is None
        await eventually(lambda: not pool.jobs and not pool.stats().waiting and not pool.stats().in_flight)
        await eventually(lambda: not any(len(server.queue) for server in made))
        assert await pool.run(saved(4))
