"""The simulator as its users see it, with nothing of acomfy between: a raw aiohttp client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from acomfy.simulator import ExecutionBlocker, Interrupted, Node, NodeContext, NodeResult, SimulatedServer, odd_nodes

from .conftest import MS
from .wire import Client, chain, empty_image, text_to_image, with_output

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as server:
        server.add_node(*odd_nodes.ALL)
        yield server


@pytest.fixture
async def client(server: SimulatedServer) -> AsyncIterator[Client]:
    async with Client(server) as client:
        await client.connect()
        yield client


# --- Starting and stopping -----------------------------------------------------------------------------------------


async def test_closing_removes_the_temporary_folders_and_frees_the_port() -> None:
    async with SimulatedServer() as server:
        folder, url = server.folders.paths["output"], server.url
        assert folder.is_dir()
    assert not folder.exists()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(url)


async def test_closing_ends_sockets_without_a_close_frame() -> None:
    server = SimulatedServer()
    await server.start()
    async with Client(server) as client:
        await client.connect()
        await server.aclose()
        assert (await client.closed()) == 1006


async def test_closing_while_a_prompt_runs_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    async with SimulatedServer(step_time=10.0) as server, Client(server) as client:
        await client.post(text_to_image())
        await server.wait_for(lambda: server.queue.running)
    assert asyncio.all_tasks() == before


async def test_output_dir_is_kept_when_the_server_closes(tmp_path: Path) -> None:
    async with SimulatedServer(output_dir=tmp_path / "pictures") as server, Client(server) as client:
        await client.run(with_output(empty_image()))
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == ["ComfyUI_00001_.png"]


async def test_taken_port_is_an_error(server: SimulatedServer) -> None:
    with pytest.raises(OSError):
        await SimulatedServer(port=server.port).start()


# --- The main job --------------------------------------------------------------------------------------------------


async def test_guide_workflow_paints_the_same_picture_each_time_and_another_for_another_seed() -> None:
    pictures = []
    for seed in (5, 5, 6):
        async with SimulatedServer() as server, Client(server) as client:
            entry = await client.run(text_to_image(seed=seed))
            pictures.append(await client.view(entry["outputs"]["9"]["images"][0]))
    assert pictures[0] == pictures[1] != pictures[2]
    with Image.open(io.BytesIO(pictures[0])) as picture:
        assert picture.size == (512, 512)
        assert json.loads(picture.info["prompt"])["3"]["class_type"] == "KSampler"


async def test_each_step_sends_a_preview_scaled_to_the_preview_size(client: Client) -> None:
    await client.run(text_to_image(steps=4, size=(64, 32)))
    previews = [frame for frame in client.frames if isinstance(frame, bytes)]
    assert len(previews) == 4
    with Image.open(io.BytesIO(previews[0][8:])) as preview:
        assert (preview.format, preview.size) == ("JPEG", (512, 256))


async def test_image_to_image_shows_its_source_through_the_painting(client: Client) -> None:
    graph = text_to_image(steps=1, size=(64, 64)) | {
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["20", 0], "vae": ["4", 2]}},
        "20": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0xFF0000}},
    }
    graph["3"]["inputs"]["denoise"] = 0.0
    entry = await client.run(graph)
    with Image.open(io.BytesIO(await client.view(entry["outputs"]["9"]["images"][0]))) as picture:
        assert picture.getpixel((5, 5)) == (255, 0, 0)


async def test_lora_and_batch_go_through_the_sampler(client: Client) -> None:
    graph = text_to_image(steps=1, size=(64, 64), batch=3)
    lora = {"lora_name": "detail.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    graph["30"] = {"class_type": "LoraLoader", "inputs": {"model": ["4", 0], "clip": ["4", 1], **lora}}
    graph["3"]["inputs"]["model"] = ["30", 0]
    entry = await client.run(graph)
    images = [await client.view(image) for image in entry["outputs"]["9"]["images"]]
    assert len({hashlib.sha256(image).hexdigest() for image in images}) == 3


async def test_sampler_takes_its_step_time() -> None:
    async with SimulatedServer(step_time=20 * MS) as server, Client(server) as client:
        begin = time.monotonic()
        await client.run(text_to_image(steps=5, size=(64, 64)))
        assert time.monotonic() - begin >= 5 * 20 * MS


async def test_big_pictures_are_painted_beside_the_event_loop(client: Client) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    await client.run(text_to_image(steps=1, size=(1024, 1024)))
    counting.cancel()
    assert turns > 300  # some 80 are the prompt's own


async def test_hundreds_of_small_prompts_run_in_a_second(client: Client, server: SimulatedServer) -> None:
    begin = time.process_time()  # the machine may be busy with other things
    for color in range(300):
        await client.post(with_output(empty_image(color=color)))
    await server.wait_idle()
    assert time.process_time() - begin < 3000 * MS
    assert server.ledger.executions == 300


async def test_deep_graph_runs_and_is_found_in_the_cache(client: Client, server: SimulatedServer) -> None:
    graph = empty_image()
    for number in range(101, 400):
        source = "1" if number == 101 else str(number - 1)
        graph[str(number)] = {"class_type": "ImageInvert", "inputs": {"image": [source, 0]}}
    graph = with_output(dict(reversed(graph.items())), "399")
    for cached in (0, 301):
        entry = await client.run(graph)
        assert len(entry["status"]["messages"][1][1]["nodes"]) == cached


# --- Image nodes ---------------------------------------------------------------------------------------------------


async def _picture(client: Client, graph: dict[str, Any], node_id: str) -> Image.Image:
    entry = await client.run(graph)
    return Image.open(io.BytesIO(await client.view(entry["outputs"][node_id]["images"][0])))


async def test_images_are_scaled_inverted_and_batched(client: Client) -> None:
    graph = {
        "1": empty_image(color=0x00FF00)["1"],
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {
            "class_type": "ImageScale",
            "inputs": {"image": ["2", 0], "upscale_method": "area", "width": 32, "height": 0, "crop": "disabled"},
        },
        "4": {
            "class_type": "ImageScaleBy",
            "inputs": {"image": ["3", 0], "upscale_method": "lanczos", "scale_by": 2.0},
        },
        "5": {"class_type": "ImageBatch", "inputs": {"image1": ["4", 0], "image2": ["3", 0]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "batch"}},
    }
    entry = await client.run(graph)
    assert len(entry["outputs"]["6"]["images"]) == 2
    for image in entry["outputs"]["6"]["images"]:
        with Image.open(io.BytesIO(await client.view(image))) as picture:
            assert (picture.size, picture.getpixel((3, 3))) == ((64, 64), (255, 0, 255))


async def test_loaded_image_gives_its_transparency_as_mask(client: Client, server: SimulatedServer) -> None:
    picture = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
    picture.paste((10, 20, 30, 255), (0, 0, 8, 16))
    picture.save(server.folders.paths["input"] / "half.png")
    masks: list[Image.Image] = []
    server.add_node(
        Node("Keep", lambda context, mask: masks.extend(mask), required={"mask": ("MASK",)}, output_node=True)
    )
    await client.run(
        {
            "1": {"class_type": "LoadImage", "inputs": {"image": "half.png"}},
            "2": {"class_type": "Keep", "inputs": {"mask": ["1", 1]}},
            "3": {"class_type": "LoadImageMask", "inputs": {"image": "half.png", "channel": "red"}},
            "4": {"class_type": "Keep", "inputs": {"mask": ["3", 0]}},
        }
    )
    assert [(mask.getpixel((0, 0)), mask.getpixel((15, 0))) for mask in masks] == [(0, 255), (10, 10)]


# --- Nodes of one's own --------------------------------------------------------------------------------------------


async def test_decorated_function_becomes_a_node(client: Client, server: SimulatedServer) -> None:
    @server.node("Shout", required={"text": ("STRING",)}, output_node=True)
    def shout(context: NodeContext, text: str) -> NodeResult:
        return NodeResult(ui={"text": [text.upper()]})

    entry = await client.run({"1": {"class_type": "Shout", "inputs": {"text": "hello"}}})
    assert entry["outputs"]["1"] == {"text": ["HELLO"]}
    assert (await client.get("/object_info/Shout"))["Shout"]["input"]["required"] == {"text": ["STRING"]}


async def test_node_reports_progress_with_a_picture_and_notices_an_interrupt(
    client: Client, server: SimulatedServer
) -> None:
    noticed = []

    @server.node("Endless", output_node=True)
    async def endless(context: NodeContext) -> None:
        try:
            while True:
                context.progress(1, 2, Image.new("RGB", (8, 8)))
                await context.sleep(0)
        except Interrupted:
            noticed.append(context.node_id)
            raise

    prompt_id = await client.post({"1": {"class_type": "Endless", "inputs": {}}})
    await server.wait_for(lambda: any(isinstance(frame, bytes) for frame in client.frames))
    await client.send("/interrupt", {"prompt_id": prompt_id})
    entry = await client.ended(prompt_id)
    assert noticed == ["1"]
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert server.ledger[prompt_id].state == "cancelled"


async def test_raising_node_fails_the_prompt(client: Client, server: SimulatedServer) -> None:
    entry = await client.run(chain(empty_image(), "Raise", message="no luck"))
    kind, error = entry["status"]["messages"][-1]
    assert (kind, error["exception_type"], error["exception_message"]) == (
        "execution_error",
        "RuntimeError",
        "no luck\n",
    )
    assert error["traceback"] and error["current_inputs"]["message"] == ["no luck"]


async def test_out_of_memory_is_told_as_comfyui_tells_it(client: Client) -> None:
    entry = await client.run(chain(empty_image(), "OutOfMemory"))
    error = entry["status"]["messages"][-1][1]
    assert error["exception_type"] == "torch.OutOfMemoryError"
    assert "This error means you ran out of memory on your GPU." in error["exception_message"]


async def test_node_that_ignores_interrupts_runs_to_its_end(client: Client, server: SimulatedServer) -> None:
    asked = asyncio.Event()

    @server.node("Deaf", required={"value": ("*", {})}, outputs=("*",))
    async def deaf(context: NodeContext, value: Any) -> Any:
        await asked.wait()
        return value

    prompt_id = await client.post(chain(empty_image(), "Deaf"))
    await server.wait_for(lambda: server.sockets.executing_node == "2")
    await client.send("/interrupt", {})
    asked.set()
    entry = await client.ended(prompt_id)
    assert entry["status"]["messages"][-1][1]["node_id"] == "3"  # blamed on the node that began next


@pytest.mark.parametrize("message", ["", "stop here"])
async def test_blocked_branch_makes_no_output_and_the_prompt_succeeds(client: Client, message: str) -> None:
    entry = await client.run(chain(empty_image(), "BlockBranch", message=message))
    assert entry["status"]["status_str"] == "success" and entry["outputs"] == {}
    errors = [data for kind, data in client.messages if kind == "execution_error"]
    assert [error["exception_message"] for error in errors] == ([f"Execution Blocked: {message}"] if message else [])
    assert all("timestamp" not in error for error in errors)


async def test_blocker_of_a_node_of_ones_own_stops_what_is_behind_it(client: Client, server: SimulatedServer) -> None:
    server.add_node(Node("Gate", lambda context: ExecutionBlocker(), outputs=("IMAGE",)))
    entry = await client.run(with_output({"1": {"class_type": "Gate", "inputs": {}}}))
    assert entry["outputs"] == {}


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("huge", [2**64, -(2**70)]),
        ("null", [None]),
        ("text", ["a", "b", "c"]),
        ("surrogate", ["\ud83d"]),
        ("empty", []),
    ],
)
async def test_odd_output_is_shown_as_it_is(client: Client, kind: str, shown: list[Any]) -> None:
    entry = await client.run({"1": {"class_type": "OddOutput", "inputs": {"kind": kind}}})
    assert entry["outputs"]["1"] == {"value": shown}
    assert next(data for kind, data in client.messages if kind == "executed")["output"] == {"value": shown}


async def test_infinite_output_is_written_as_python_writes_it(client: Client) -> None:
    await client.run({"1": {"class_type": "OddOutput", "inputs": {"kind": "infinity"}}})
    assert any(isinstance(frame, str) and "[Infinity, -Infinity]" in frame for frame in client.frames)


async def test_expansion_runs_nodes_that_are_not_in_the_prompt(client: Client) -> None:
    await client.run(chain(empty_image(), "Expand", seconds=20 * MS))
    executing = [(data["node"], data.get("display_node")) for kind, data in client.messages if kind == "executing"]
    assert set(executing[2:6]) == {("2.0.0.1", "2"), ("2.0.0.2", "2"), ("2.0.0.3", "2"), ("2.0.0.4", "2")}
    last = [data for kind, data in client.messages if kind == "progress_state"][-1]
    assert last["nodes"]["2.0.0.4"]["parent_node_id"] == "2"


async def test_lazy_input_that_is_not_needed_never_runs(client: Client) -> None:
    graph = {
        **empty_image(),
        "2": empty_image(color=5)["1"],
        "3": {"class_type": "LazyMix", "inputs": {"ratio": 1.0, "left": ["1", 0], "right": ["2", 0]}},
    }
    await client.run(with_output(graph, "3"))
    assert [data["node"] for kind, data in client.messages if kind == "executing"] == ["3", "2", "3", "9", None]


async def test_output_node_without_ui_says_null_when_it_is_cached(client: Client) -> None:
    graph = chain(empty_image(), "OutputWithoutUi")
    await client.run(graph)
    assert [data["node"] for kind, data in client.messages if kind == "executed"] == ["3"]
    client.frames.clear()
    await client.run(graph)
    assert [data["output"] for kind, data in client.messages if kind == "executed"][0] is None


async def test_progress_text_is_a_binary_event_3(client: Client) -> None:
    await client.run({"1": {"class_type": "Say", "inputs": {"text": "50 %", "broadcast": False}}})
    assert bytes.fromhex("0000000300000001") + b"150 %" in client.frames
    assert ("acomfy.simulator.said", {"text": "50 %", "node": "1"}) in client.messages


# --- Watching ------------------------------------------------------------------------------------------------------


async def test_ledger_knows_the_bytes_of_every_saved_and_streamed_image(
    client: Client, server: SimulatedServer
) -> None:
    graph = {
        **with_output(empty_image(batch=2)),
        "8": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}},
    }
    prompt_id = await client.post(graph)
    entry = await client.ended(prompt_id)
    streamed = [frame[8:] for frame in client.frames if isinstance(frame, bytes)]
    saved = [await client.view(image) for image in entry["outputs"]["9"]["images"]]
    account = server.ledger[prompt_id]
    assert sorted(account.sha256s) == sorted(hashlib.sha256(image).hexdigest() for image in streamed + saved)
    assert (account.accepted, account.executions, account.state) == (1, 1, "completed")
    assert [image.filename for image in account.images if image.node_id == "8"] == [None, None]


async def test_requests_are_counted_by_route_with_and_without_prefix(client: Client, server: SimulatedServer) -> None:
    await client.get("/history/abc")
    await client.get("/api/history/def")
    await client.get("/queue")
    assert server.requests["GET", "/history/{prompt_id}"] == 2
    assert server.response_bytes["GET", "/queue"] == len('{"queue_running": [], "queue_pending": []}')
    assert server.requests["GET", "/ws"] == 1


async def test_prompts_and_uploads_are_kept(client: Client, server: SimulatedServer) -> None:
    form = aiohttp.FormData()
    form.add_field("image", b"bytes", filename="a.bin")
    await client.send("/upload/image", form)
    await client.run(with_output(empty_image()))
    assert [upload["sha256"] for upload in server.uploads] == [hashlib.sha256(b"bytes").hexdigest()]
    assert server.prompts[0]["client_id"] == client.client_id


async def test_held_worker_takes_only_as_many_prompts_as_are_released(client: Client, server: SimulatedServer) -> None:
    server.hold()
    for color in range(3):
        await client.post(with_output(empty_image(color=color)))
    assert (len(server.queue.pending), server.ledger.executions) == (3, 0)
    server.release(1)
    await server.wait_for(lambda: len(server.queue.history) == 1)
    assert len(server.queue.pending) == 2
    server.release()
    await server.wait_idle()
    assert server.ledger.executions == 3


# --- What HTTP answers ---------------------------------------------------------------------------------------------


async def test_body_over_the_limit_is_413() -> None:
    async with SimulatedServer(max_upload_size=1000) as server, Client(server) as client:
        status, text = await client.send("/prompt", {"prompt": {}, "padding": "x" * 2000})
        assert (status, text) == (413, "Maximum request body size 1000 exceeded.")
        form = aiohttp.FormData()
        form.add_field("image", b"x" * 2000, filename="a.bin")
        assert (await client.send("/upload/image", form))[0] == 413


async def test_history_keeps_as_many_as_it_may(client: Client) -> None:
    async with SimulatedServer(max_history=3) as server, Client(server) as client:
        ids = [await client.post(with_output(empty_image(color=color))) for color in range(6)]
        await server.wait_idle()
        # ComfyUI drops one when there are more than the limit, before it adds: it keeps one more.
        assert list(await client.get("/history")) == ids[-4:]
        assert list(await client.get("/history?max_items=2")) == ids[-2:]


async def test_system_stats_have_comfyuis_fields(client: Client, server: SimulatedServer) -> None:
    stats = await client.get("/system_stats")
    recorded = Path(__file__).parent / "recordings" / "0.3.64" / "p_endpoints.jsonl"
    lines = map(json.loads, recorded.read_text().splitlines())
    real = next(line["json"] for line in lines if line.get("path") == "/system_stats")
    assert stats["system"].keys() == real["system"].keys()
    assert stats["devices"][0].keys() == real["devices"][0].keys()
    assert stats["system"]["comfyui_version"] == server.version


async def test_object_info_of_built_in_nodes_is_that_of_the_recording(client: Client) -> None:
    recorded = Path(__file__).parent / "recordings" / "0.3.64" / "p_endpoints.jsonl"
    lines = map(json.loads, recorded.read_text().splitlines())
    real = next(line["json"] for line in lines if line.get("path") == "/object_info")
    ours = await client.get("/object_info")
    # SaveVideo is declared in ComfyUI's newer way: more keys, and sentences as tooltips.
    compared = [name for name in real if name in ours and name != "SaveVideo"]
    assert len(compared) > 8
    for name in compared:
        shown = {key: ours[name][key] for key in real[name]}
        if name not in ("CheckpointLoaderSimple", "LoadImage", "LoadImageMask"):  # their choices are the server's files
            assert shown == real[name]
        assert {**shown, "input": None} == {**real[name], "input": None}


async def test_oversized_message_from_a_client_closes_its_socket(client: Client) -> None:
    with contextlib.suppress(ConnectionError):
        await client.socket.send_str("x" * (5 * 2**20))
    assert (await client.closed()) in (1009, 1006)


async def test_page_of_another_origin_is_refused(client: Client) -> None:
    headers = {"Origin": "http://evil.example"}
    async with client.session.get(f"{client.url}/prompt", headers=headers) as response:
        assert response.status == 403


async def test_slow_reader_stalls_everybody(server: SimulatedServer, client: Client) -> None:
    async with Client(server) as slow:
        await slow.connect(reading=False)
        graph = {**empty_image(size=(2048, 2048)), "2": {"class_type": "StreamNoise", "inputs": {"images": ["1", 0]}}}

        @server.node("StreamNoise", required={"images": ("IMAGE",)}, output_node=True)
        def stream(context: NodeContext, images: list[Image.Image]) -> None:
            for number in range(12):
                context.progress(number, 12, bytes(2**20), "image/png")

        await slow.post(graph)
        await server.wait_idle()
        client.frames.clear()
        prompt_id = await client.post(with_output(empty_image()))
        await server.wait_for(lambda: prompt_id in server.queue.history)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100 * MS):
                await server.flush()
        assert not [data for kind, data in client.messages if data.get("prompt_id") == prompt_id]
        slow.read()
        await client.until(prompt_id)
