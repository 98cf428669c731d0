"""Each fault of the simulator, as a raw client sees it on the wire."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from PIL import Image

from acomfy.simulator import NodeContext, SimulatedServer, odd_nodes

from .conftest import MS
from .wire import Client, chain, empty_image, text_to_image, with_output

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        server.add_node(*odd_nodes.ALL)
        yield server
        server.faults.clear()


@pytest.fixture
async def client(server: SimulatedServer) -> AsyncIterator[Client]:
    async with Client(server) as client:
        await client.connect()
        yield client


GRAPH = with_output(empty_image())


# --- Sockets -------------------------------------------------------------------------------------------------------


async def test_dropped_connections_end_without_a_close_frame(client: Client, server: SimulatedServer) -> None:
    server.faults.drop_connections()
    assert await client.closed() == 1006
    await client.connect()
    await client.run(GRAPH)


async def test_deaf_socket_stays_open_and_gets_nothing(client: Client, server: SimulatedServer) -> None:
    server.faults.go_deaf()
    client.frames.clear()
    prompt_id = await client.post(GRAPH)
    await server.wait_for(lambda: prompt_id in server.queue.history)
    await server.flush()
    await client.ping()
    assert client.frames == [] and not client.socket.closed


async def test_new_connection_after_going_deaf_hears_again(client: Client, server: SimulatedServer) -> None:
    server.faults.go_deaf()
    async with Client(server, client.client_id) as again:
        await again.connect()
        await again.run(GRAPH)


async def test_socket_that_reconnects_before_the_old_one_ended_goes_deaf_with_it(
    client: Client, server: SimulatedServer
) -> None:
    async with Client(server, client.client_id) as again:
        await again.connect()
        await client.socket.close()
        await server.wait_for(lambda: client.client_id not in server.sockets.by_sid)
        again.frames.clear()
        prompt_id = await again.post(GRAPH)
        await server.wait_for(lambda: prompt_id in server.queue.history)
        await server.flush()
        await again.ping()
        assert again.frames == []


@pytest.mark.parametrize("status", [403, 404])
async def test_refused_sockets_answer_with_a_status(server: SimulatedServer, status: int) -> None:
    async with Client(server) as client:
        with server.faults.refuse_sockets(status):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                await client.connect()
            assert refusal.value.status == status
            assert await client.get("/prompt")
        await client.connect()


# --- Messages ------------------------------------------------------------------------------------------------------


async def test_stalled_delivery_sends_nothing_until_it_ends(client: Client, server: SimulatedServer) -> None:
    with server.faults.stall_delivery():
        client.frames.clear()
        prompt_id = await client.post(GRAPH)
        await server.wait_for(lambda: prompt_id in server.queue.history)
        await client.ping()
        assert client.frames == []
        assert prompt_id in await client.get("/history")
    await client.until(prompt_id)


async def test_duplicated_frames_come_twice(client: Client, server: SimulatedServer) -> None:
    with server.faults.duplicate_frames():
        prompt_id = await client.post(GRAPH)
        await client.until(prompt_id)
        await server.flush()
        await client.ping()
    kinds = client.kinds(prompt_id)
    assert kinds.count("execution_success") == kinds.count("executed") == 2


async def test_reordered_frames_are_all_there(client: Client, server: SimulatedServer) -> None:
    usual = await client.post(with_output(empty_image(color=1)))
    await client.until(usual)
    with server.faults.reorder_frames(seed=1):
        stall = server.faults.stall_delivery()
        prompt_id = await client.post(with_output(empty_image(color=2)))
        await server.wait_for(lambda: prompt_id in server.queue.history)
        stall.end()
        await server.flush()
        await client.ping()
    assert sorted(client.kinds(prompt_id)) == sorted(client.kinds(usual))
    assert client.kinds(prompt_id) != client.kinds(usual)


async def test_lost_frames_do_not_come(client: Client, server: SimulatedServer) -> None:
    graph = {**empty_image(batch=2), "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}}
    with server.faults.lose_frames("binary"):
        await client.run(graph)
    assert not [frame for frame in client.frames if isinstance(frame, bytes)]
    await client.run(graph)
    assert len([frame for frame in client.frames if isinstance(frame, bytes)]) == 2


async def test_skipped_success_is_in_the_history_alone(client: Client, server: SimulatedServer) -> None:
    with server.faults.skip_success():
        prompt_id = await client.post(GRAPH)
        entry = await client.ended(prompt_id)
    assert "execution_success" not in client.kinds()
    assert entry["status"]["messages"][-1][0] == "execution_success"


async def test_raw_frames_come_as_they_are(client: Client, server: SimulatedServer) -> None:
    server.faults.send_raw("nonsense", client.client_id)
    server.faults.send_raw(b"\x00\x00\x00\x07binary")
    await server.flush()
    await client.ping()
    assert client.frames[-2:] == ["nonsense", b"\x00\x00\x00\x07binary"]


async def test_garbage_is_no_json_no_object_and_no_whole_frame(client: Client, server: SimulatedServer) -> None:
    server.faults.send_garbage(client.client_id)
    await server.flush()
    await client.ping()
    assert "not JSON" in client.frames and b"\x00\x00" in client.frames
    assert not client.socket.closed


async def test_oversize_frame_has_its_size_and_is_json(client: Client, server: SimulatedServer) -> None:
    server.faults.send_oversize_frame(5_000_000)
    await server.wait_for(lambda: len(client.frames[-1]) == 5_000_000)
    assert json.loads(client.frames[-1])["type"] == "acomfy.simulator.padding"


# --- The queue and the history -------------------------------------------------------------------------------------


async def test_delayed_history_is_not_there_at_the_success(client: Client, server: SimulatedServer) -> None:
    with server.faults.delay_history(300 * MS):
        prompt_id = await client.post(GRAPH)
        await server.wait_for(lambda: "execution_success" in client.kinds(prompt_id))
        assert await client.get(f"/history/{prompt_id}") == {}
        assert (await client.get("/queue"))["queue_running"][0][1] == prompt_id
        await client.until(prompt_id)
        assert await client.get(f"/history/{prompt_id}") != {}


async def test_lost_history_forgets_what_was_and_what_comes(client: Client, server: SimulatedServer) -> None:
    await client.run(GRAPH)
    with server.faults.lose_history():
        assert await client.get("/history") == {}
        prompt_id = await client.post(with_output(empty_image(color=1)))
        await client.until(prompt_id)
        assert await client.get("/history") == {}
    await client.run(with_output(empty_image(color=2)))


async def test_evicted_prompt_is_gone_from_the_history(client: Client, server: SimulatedServer) -> None:
    prompt_id = await client.post(GRAPH)
    await client.ended(prompt_id)
    server.faults.evict(prompt_id)
    assert await client.get(f"/history/{prompt_id}") == {}


async def test_somebody_else_deletes_clears_and_interrupts(client: Client, server: SimulatedServer) -> None:
    running = await client.post(chain(empty_image(), "Sleep", seconds=60.0))
    await server.wait_for(lambda: server.sockets.executing_node == "2")
    first, second = [await client.post(with_output(empty_image(color=color))) for color in (1, 2)]
    assert server.delete_prompt(first) and not server.delete_prompt(first)
    server.clear_queue()
    server.interrupt()
    entry = await client.ended(running)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert await client.get("/history") == {running: entry}
    assert [server.ledger[prompt].state for prompt in (running, first, second)] == ["cancelled", "deleted", "deleted"]
    assert not client.kinds(first) and not client.kinds(second)


async def test_delayed_start_loses_an_interrupt_that_comes_before_it(client: Client, server: SimulatedServer) -> None:
    with server.faults.delay_start(300 * MS):
        prompt_id = await client.post(GRAPH)
        await server.wait_for(lambda: server.queue.running)
        await client.send("/interrupt", {"prompt_id": prompt_id})
        entry = await client.ended(prompt_id)
    assert entry["status"]["status_str"] == "success"


async def test_killed_worker_lets_the_prompt_run_for_ever(client: Client, server: SimulatedServer) -> None:
    running = await client.post(chain(empty_image(), "Sleep", seconds=60.0))
    await server.wait_for(lambda: server.sockets.executing_node == "2")
    server.faults.kill_worker()
    waiting = await client.post(GRAPH)
    await client.send("/interrupt", {})
    await client.ping()
    queue = await client.get("/queue")
    assert [item[1] for item in queue["queue_running"]] == [running]
    assert [item[1] for item in queue["queue_pending"]] == [waiting]
    assert not server.worker_alive


async def test_prompt_with_extra_data_null_kills_the_worker(client: Client, server: SimulatedServer) -> None:
    status, _ = await client.send("/prompt", {"prompt": GRAPH, "extra_data": None})
    assert status == 200
    await server.wait_for(lambda: not server.worker_alive)
    assert len(server.queue) == 1


async def test_restarted_server_knows_nothing_and_counts_from_zero(client: Client, server: SimulatedServer) -> None:
    await client.run(GRAPH)
    running = await client.post(chain(empty_image(), "Sleep", seconds=60.0))
    await server.wait_for(lambda: server.sockets.executing_node == "2")
    waiting = await client.post(GRAPH)
    port = server.port
    async with server.faults.down():
        assert await client.closed() == 1006
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get("/prompt")
    assert server.port == port
    assert await client.get("/history") == {}
    assert await client.get("/queue") == {"queue_running": [], "queue_pending": []}
    assert {server.ledger[prompt].state for prompt in (running, waiting)} == {"lost"}
    await client.connect()
    _, text = await client.send("/prompt", {"prompt": GRAPH, "client_id": client.client_id})
    assert json.loads(text)["number"] == 0
    await client.until(json.loads(text)["prompt_id"])
    assert client.messages[-1][0] == "executing"


async def test_restart_wipes_temp_and_keeps_output(client: Client, server: SimulatedServer) -> None:
    await client.run({**GRAPH, "8": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})
    await server.faults.restart()
    assert list(server.folders.paths["temp"].iterdir()) == []
    assert len(list(server.folders.paths["output"].iterdir())) == 1


async def test_frozen_server_accepts_connections_and_answers_nothing(client: Client, server: SimulatedServer) -> None:
    prompt_id = await client.post(text_to_image(steps=500, size=(16, 16)))
    await server.wait_for(lambda: server.sockets.executing_node == "3")
    with server.faults.freeze():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(50 * MS):
                await client.get("/prompt")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(50 * MS):
                await client.ping()
    await client.until(prompt_id)
    assert await client.get("/prompt") == {"exec_info": {"queue_remaining": 0}}


# --- HTTP ----------------------------------------------------------------------------------------------------------


async def test_lost_answer_leaves_the_prompt_in_the_queue(client: Client, server: SimulatedServer) -> None:
    server.faults.lose_answer_to_next_prompt()
    prompt_id = "8c4b1f0e-6a4f-4a1e-9d0a-0d5e2d5c0001"
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await client.post(GRAPH, prompt_id=prompt_id)
    await client.ended(prompt_id)
    await client.run(with_output(empty_image(color=1)))
    assert server.ledger[prompt_id].executions == 1


async def test_refused_prompt_does_not_use_up_the_lost_answer(client: Client, server: SimulatedServer) -> None:
    server.faults.lose_answer_to_next_prompt()
    assert (await client.send("/prompt", {"prompt": {}}))[0] == 400
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await client.post(GRAPH)


async def test_prompt_that_fails_after_queueing_runs_all_the_same(client: Client, server: SimulatedServer) -> None:
    server.faults.fail_next_prompt_after_queueing()
    status, text = await client.send("/prompt", {"prompt": GRAPH, "client_id": client.client_id})
    assert (status, text.splitlines()[0]) == (500, "500 Internal Server Error")
    await server.wait_for(lambda: len(server.queue.history) == 1)


async def test_prompt_that_is_answered_with_a_page_runs_all_the_same(client: Client, server: SimulatedServer) -> None:
    server.faults.answer_next_prompt_with_html()
    status, text = await client.send("/prompt", {"prompt": GRAPH, "client_id": client.client_id})
    assert status == 200 and "<html" in text
    await server.wait_for(lambda: len(server.queue.history) == 1)


async def test_too_large_prompts_are_413(client: Client, server: SimulatedServer) -> None:
    with server.faults.refuse_as_too_large():
        status, text = await client.send("/prompt", {"prompt": GRAPH})
        assert status == 413 and text.startswith("Maximum request body size")
        assert await client.get("/prompt")
    assert server.ledger == {}


@pytest.mark.parametrize("status", [200, 401, 502])
async def test_proxy_page_is_html_whatever_was_asked(client: Client, server: SimulatedServer, status: int) -> None:
    page = server.faults.answer_with_html(status) if status != 502 else server.faults.answer_as_booting()
    for path in ("/prompt", "/api/history/x", "/view?filename=x.png", "/ws"):
        async with client.session.get(client.url + path) as response:
            assert (response.status, response.content_type) == (status, "text/html")
    page.end()
    assert await client.get("/prompt")


async def test_delayed_answers_take_their_time(client: Client, server: SimulatedServer) -> None:
    begin = time.monotonic()
    with server.faults.delay_answers(40 * MS):
        await client.get("/prompt")
    assert time.monotonic() - begin >= 40 * MS


async def _saved_noise(client: Client, server: SimulatedServer) -> tuple[dict[str, str], bytes]:
    @server.node("Noise", outputs=("IMAGE",))
    def noise(context: NodeContext) -> list[Image.Image]:
        return [Image.effect_noise((128, 128), 90).convert("RGB")]

    entry = await client.run(with_output({"1": {"class_type": "Noise", "inputs": {}}}))
    image = entry["outputs"]["9"]["images"][0]
    return image, await client.view(image)


async def test_slow_bytes_are_the_right_bytes(client: Client, server: SimulatedServer) -> None:
    image, data = await _saved_noise(client, server)
    begin = time.monotonic()
    with server.faults.slow_bytes(len(data) / (60 * MS)):
        assert await client.view(image) == data
    assert time.monotonic() - begin >= 50 * MS


async def test_cut_download_breaks_and_its_rest_can_be_asked_for(client: Client, server: SimulatedServer) -> None:
    image, data = await _saved_noise(client, server)
    url = f"{client.url}/view"
    got = b""
    with server.faults.cut_downloads(after=5000):
        while len(got) < len(data):
            async with client.session.get(url, params=image, headers={"Range": f"bytes={len(got)}-"}) as response:
                assert response.status == 206
                try:
                    async for chunk in response.content.iter_any():
                        got += chunk
                except aiohttp.ClientError:
                    assert len(got) < len(data)
    assert got == data
    with Image.open(io.BytesIO(got)) as picture:
        assert picture.size == (128, 128)


async def test_clearing_ends_every_fault(client: Client, server: SimulatedServer) -> None:
    faults = server.faults
    faults.stall_delivery()
    faults.answer_with_html()
    faults.refuse_sockets()
    faults.duplicate_frames()
    faults.lose_answer_to_next_prompt()
    faults.clear()
    prompt_id = await client.post(GRAPH)
    await client.until(prompt_id)
    assert client.kinds(prompt_id).count("execution_success") == 1
