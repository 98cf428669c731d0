"""What a client asks its server beside running prompts, on servers old and new."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import acomfy
from acomfy.simulator import SimulatedServer

from .graphs import gated, saved
from .other_servers import answering, respond
from .shell import Gates, client, eventually, gates, quick_client, server, tasks_of_the_library

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]

VERSIONS = ("0.3.40", "0.3.64", "0.33.0")


@asynccontextmanager
async def both(version: str, gates: Gates | None = None, **options: Any) -> AsyncIterator[Any]:
    async with SimulatedServer(version=version, **options) as server, quick_client(server) as client:
        if gates is not None:
            server.add_node(gates.node)
        yield server, client


# --- Queue, history, jobs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_queue_is_given_in_the_order_in_which_it_will_run(version: str, gates: Gates) -> None:
    async with both(version, gates) as (server, client):
        first = await client.submit(gated("a"))
        await gates.reached["a"].wait()
        later = [await client.submit(gated("a"), number=number) for number in (9, 7, 8, 5)]
        queue = await client.queue()
        assert [item.prompt_id for item in queue.running] == [first.prompt_id]
        assert [item.number for item in queue.pending] == [5, 7, 8, 9]
        assert [await client.position(job.prompt_id) for job in (first, *later)] == [0, 4, 2, 3, 1]
        assert await client.position("nobody's") is None
        gates.open["a"].set()


@pytest.mark.parametrize("version", VERSIONS)
async def test_history_is_read_by_prompt_by_page_and_forgotten(version: str) -> None:
    async with both(version) as (server, client):
        ids = [(await client.run(saved(color))).prompt_id for color in range(5)]
        one = await client.history(ids[0])
        assert one is not None and (one.state, one.prompt_id) == ("completed", ids[0])
        assert await client.history("nobody's") is None
        assert [entry.prompt_id for entry in await client.history(limit=2)] == ids[3:]
        assert [entry.prompt_id for entry in await client.history(limit=2, offset=1)] == ids[1:3]
        assert [entry.prompt_id for entry in await client.history(limit=None)] == ids
        pages = [[entry.prompt_id for entry in page] async for page in client.history_pages(2)]
        assert pages == [ids[:2], ids[2:4], ids[4:]]
        await client.delete_history(ids[0], "nobody's")
        await client.delete_history()
        assert [entry.prompt_id for entry in await client.history()] == ids[1:]


@pytest.mark.parametrize("version", VERSIONS)
async def test_jobs_are_listed_alike_with_and_without_the_jobs_api(version: str, gates: Gates) -> None:
    async with both(version, gates) as (server, client):
        done = (await client.run(saved(1))).prompt_id
        running, waiting = [await client.submit(gated("a")) for _ in range(2)]
        await gates.reached["a"].wait()
        page = await client.list_jobs()
        assert {job.prompt_id: job.state for job in page} == {
            waiting.prompt_id: "pending",
            running.prompt_id: "in_progress",
            done: "completed",
        }
        assert page.jobs[2].prompt_id == done  # the others may be of one millisecond
        assert (page.total, page.offset, page.has_more, len(page)) == (3, 0, False, 3)
        part = await client.list_jobs(limit=1, offset=1, descending=False)
        assert ([job.prompt_id != done for job in part], part.total, part.has_more) == ([True], 3, True)
        assert [job.prompt_id for job in await client.list_jobs(states=["pending"])] == [waiting.prompt_id]
        states = [await client.job_info(prompt_id) for prompt_id in (waiting.prompt_id, running.prompt_id, done)]
        assert [job and job.state for job in states] == ["pending", "in_progress", "completed"]
        assert states[2] is not None and states[2].outputs_count == 1 and states[2].duration is not None
        assert await client.job_info("c0ffee00-0000-4000-8000-000000000000") is None
        gates.open["a"].set()


async def test_a_missing_jobs_api_is_asked_for_once_per_connection() -> None:
    async with both("0.3.64") as (server, client):
        await client.wait_ready()
        for _ in range(3):
            await client.list_jobs()
            await client.job_info("x")
        assert server.requests["GET", "/{path}"] == 1
        client._connection.reopen("a test")
        await server.wait_for(lambda: server.requests["GET", "/ws"] == 2)
        await client.wait_ready()
        await eventually(lambda: client._jobs_api is None)
        await client.list_jobs()
        assert server.requests["GET", "/{path}"] == 2


async def test_a_jobs_api_that_a_null_workflow_broke_is_gone_around() -> None:
    async with both("0.33.0") as (server, client):
        job = await client.submit(saved(), extra_data={"extra_pnginfo": {"workflow": None}})
        await job
        assert [found.prompt_id for found in await client.list_jobs()] == [job.prompt_id]
        found = await client.job_info(job.prompt_id)
        assert found is not None and found.state == "completed"


async def test_cancelled_jobs_are_listed_where_the_jobs_api_calls_them_failed(gates: Gates) -> None:
    async with both("0.8.0", gates) as (_, client):
        job = await client.submit(gated("a"))
        await gates.reached["a"].wait()
        await client.interrupt(job.prompt_id)
        with pytest.raises(acomfy.JobInterrupted):
            await job
        assert [found.prompt_id for found in await client.list_jobs(states=["cancelled"])] == [job.prompt_id]


@pytest.mark.parametrize(
    "options", [{"limit": 0}, {"offset": -1}, {"states": ["done"]}, {"states": []}, {"states": "done"}], ids=str
)
async def test_what_cannot_be_listed_is_a_value_error(client: acomfy.Client, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        await client.list_jobs(**options)


# --- The server ----------------------------------------------------------------------------------------------------


async def test_the_server_tells_about_itself(server: SimulatedServer, client: acomfy.Client) -> None:
    server.models["embeddings"] = ["easy.safetensors", "sub/hard.pt"]
    server.model_metadata["loras", "fox.safetensors"] = {"title": "fox"}
    stats = await client.system_stats()
    assert (stats.comfyui_version, stats.devices[0].type) == ("0.3.64", "cpu")
    assert (await client.features())["supports_preview_metadata"] is True
    assert "checkpoints" in await client.models()
    assert await client.models("checkpoints") == tuple(server.models["checkpoints"])
    assert await client.embeddings() == ("easy", "sub/hard")
    assert await client.view_metadata("loras", "fox.safetensors") == {"title": "fox"}
    assert await client.view_metadata("loras", "none.safetensors") is None
    with pytest.raises(acomfy.HTTPError):
        await client.models("nope")


async def test_an_old_server_has_no_features() -> None:
    async with both("0.3.40") as (_, client):
        assert await client.features() == {}


async def test_definitions_are_read_once_however_many_ask(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.wait_ready()
    first, *others = await asyncio.gather(*(client.object_info() for _ in range(50)))
    assert all(found is first for found in others) and "KSampler" in first
    assert list(await client.object_info("KSampler")) == ["KSampler"]
    assert await client.object_info("Nope") == {}
    assert server.requests["GET", "/object_info"] == 1
    assert server.requests["GET", "/object_info/{class_type}"] == 0
    await client.object_info(refresh=True)
    assert server.requests["GET", "/object_info"] == 2


async def test_definitions_of_one_class_are_read_alone(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.wait_ready()
    for _ in range(3):
        assert list(await client.object_info("SaveImage")) == ["SaveImage"]
    assert server.requests["GET", "/object_info"] == 0
    assert server.requests["GET", "/object_info/{class_type}"] == 1


async def test_definitions_are_read_again_after_a_reconnect(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.wait_ready()
    await client.object_info()
    client._connection.reopen("a test")
    await eventually(lambda: client._definitions.known(None) is None)
    await client.object_info()
    assert server.requests["GET", "/object_info"] == 2


async def test_one_who_gives_up_leaves_the_definitions_to_the_others(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    await client.wait_ready()
    with server.faults.freeze():
        tasks = [asyncio.create_task(client.object_info()) for _ in range(2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
    assert "KSampler" in await tasks[1]
    assert tasks[0].cancelled()
    assert server.requests["GET", "/object_info"] == 1


async def test_running_prompts_never_reads_the_definitions(server: SimulatedServer, client: acomfy.Client) -> None:
    for color in range(3):
        await client.run(saved(color))
    assert server.requests["GET", "/object_info"] == 0


async def test_an_interrupt_with_an_id_is_refused_where_it_would_hit_others(gates: Gates) -> None:
    async with both("0.3.40", gates) as (server, client):
        job = await client.submit(gated("a"))
        await gates.reached["a"].wait()
        with pytest.raises(acomfy.ServerError, match="cannot stop the prompt"):
            await client.interrupt("c0ffee00-0000-4000-8000-000000000000")
        assert not server.requests["POST", "/interrupt"]
        await client.interrupt()
        with pytest.raises(acomfy.JobInterrupted):
            await job


async def test_an_interrupt_with_an_id_hits_that_prompt_alone(client: acomfy.Client, gates: Gates) -> None:
    job = await client.submit(gated("a"))
    await gates.reached["a"].wait()
    await client.interrupt("c0ffee00-0000-4000-8000-000000000000")
    await client.free()
    assert not job.done()
    await client.interrupt(job.prompt_id)
    with pytest.raises(acomfy.JobInterrupted):
        await job


async def test_nonsense_names_the_route() -> None:
    nonsense = respond(200, '{"jobs": 7, "system": []}', "application/json")
    async with answering(nonsense) as url, acomfy.Client(url) as client:
        asked = {
            "/queue": client.queue(),
            "/history": client.history(),
            "/api/jobs": client.list_jobs(),
            "/system_stats": client.system_stats(),
            "/models": client.models(),
            "/v2/userdata": client.userdata(),
        }
        for route, coroutine in asked.items():
            with pytest.raises(acomfy.ProtocolError, match=route):
                await coroutine


async def test_a_closed_client_says_so(server: SimulatedServer) -> None:
    client = quick_client(server)
    await client.aclose()
    for coroutine in (client.queue(), client.object_info(), client.userdata(), client.upload_image(b"", "x")):
        with pytest.raises(acomfy.ClientClosed):
            await coroutine
    with pytest.raises(acomfy.ClientClosed):
        client.logs()


# --- Logs ----------------------------------------------------------------------------------------------------------


async def test_the_log_is_followed_from_now_on(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.wait_ready()
    server.sockets.log("before\n")
    logs = client.logs()
    entry = asyncio.create_task(anext(logs))
    await server.wait_for(lambda: server.requests["GET", "/internal/logs/raw"] == 2)
    server.sockets.log("after\n")
    assert (await entry).text == "after\n"
    await logs.aclose()
    await server.wait_for(lambda: not server.sockets.log_readers)


async def test_the_log_may_begin_with_what_the_server_kept(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.wait_ready()
    for number in range(3):
        server.sockets.log(f"{number}\n")
    logs = client.logs(recent=True)
    assert [(await anext(logs)).text for _ in range(3)] == ["0\n", "1\n", "2\n"]
    server.sockets.log("3\n")
    assert (await anext(logs)).text == "3\n"


async def test_no_line_of_the_log_is_missed_or_doubled_over_a_reconnect(
    server: SimulatedServer, client: acomfy.Client
) -> None:
    await client.wait_ready()
    logs, texts = client.logs(), []

    async def read() -> None:
        async for entry in logs:
            texts.append(entry.text)  # noqa: PERF401  # it is looked at meanwhile

    task = asyncio.create_task(read())
    await server.wait_for(lambda: server.requests["GET", "/internal/logs/raw"] == 2)
    for number in range(10):
        server.sockets.log(f"{number}")
        if number == 4:
            server.sockets.cut()
            await server.wait_for(lambda: not server.sockets.by_sid)  # what is written now goes to nobody
    await server.wait_for(lambda: server.requests["GET", "/internal/logs/raw"] == 3)
    server.sockets.log("last")
    await eventually(lambda: "last" in texts)
    assert texts == [*map(str, range(10)), "last"]
    task.cancel()
    await asyncio.wait([task])


async def test_several_read_the_log_and_the_last_one_ends_it(server: SimulatedServer, client: acomfy.Client) -> None:
    await client.wait_ready()
    streams = [client.logs() for _ in range(2)]
    waits = [asyncio.create_task(anext(stream)) for stream in streams]
    await server.wait_for(lambda: server.requests["GET", "/internal/logs/raw"] == 4)
    server.sockets.log("both")
    assert [(await entry).text for entry in waits] == ["both", "both"]
    await streams[0].aclose()
    server.sockets.log("one")
    assert (await anext(streams[1])).text == "one"
    del streams[:]
    await server.wait_for(lambda: not server.sockets.log_readers)


async def test_the_log_ends_with_the_client(server: SimulatedServer) -> None:
    async with quick_client(server) as client:
        await client.wait_ready()
        logs = client.logs()
        entry = asyncio.create_task(anext(logs))
        await server.wait_for(lambda: server.requests["GET", "/internal/logs/raw"] == 2)
    with pytest.raises(StopAsyncIteration):
        await entry
    await logs.aclose()
    assert not tasks_of_the_library()


async def test_a_server_without_the_log_refuses_the_reader() -> None:
    async with answering(respond(404)) as url, acomfy.Client(url) as client:
        with pytest.raises(acomfy.HTTPError):
            await anext(client.logs())


# --- Files ---------------------------------------------------------------------------------------------------------


async def test_a_file_is_uploaded_from_disk_under_its_own_name(
    server: SimulatedServer, client: acomfy.Client, tmp_path: Path
) -> None:
    (tmp_path / "a fox é.png").write_bytes(b"bytes")
    upload = await client.upload_image(tmp_path / "a fox é.png", subfolder="sub")
    assert (upload.name, upload.value) == ("a fox é.png", "sub/a fox é.png")
    with (tmp_path / "a fox é.png").open("rb") as file:
        assert (await client.upload_image(file, type="temp")).value == "a fox é.png [temp]"
    with pytest.raises(ValueError, match="no name"):
        await client.upload_image(b"bytes")
    with pytest.raises(FileNotFoundError):
        await client.upload_image(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a..b.png", "a_b.png"),
        ("../../x.png", "____x.png"),
        ("dir/x.png", "dir_x.png"),
        ("new\nline.png", "new_line.png"),
        ("é" * 200 + ".png", "é" * 98 + ".png"),
        ("." * 300, "_"),
        (".", "_"),
        ("x.png [output]", "x.png (output)"),
        ("[temp]", "(temp)"),
        ("x." + "y" * 300, "x." + "y" * 198),
        ('a "fox" \\ & %20 日本.png', 'a "fox" \\ & %20 日本.png'),
    ],
)
async def test_a_file_of_any_name_can_be_read_back(client: acomfy.Client, name: str, stored: str) -> None:
    upload = await client.upload_image(b"some bytes", name)
    assert upload.name == stored
    async with client.api.view(upload.name, type=upload.type) as response:
        assert await response.read() == b"some bytes"


async def test_a_file_over_the_limit_is_not_sent() -> None:
    async with both("0.3.64", max_upload_size=1000) as (server, client):
        with pytest.raises(acomfy.PayloadTooLarge) as caught:
            await client.upload_image(b"x" * 1001, "x.bin")
        assert caught.value.limit == 1000 and not server.requests["POST", "/upload/image"]


async def test_a_mask_is_laid_over_a_picture_of_the_server(client: acomfy.Client) -> None:
    original = await client.upload_image(png((10, 20, 30, 255)), "o.png")
    masked = await client.upload_mask(png((0, 0, 0, 77)), original, "m.png")
    async with client.api.view(masked.name, type=masked.type) as response:
        with Image.open(io.BytesIO(await response.read())) as image:
            assert image.getpixel((0, 0)) == (10, 20, 30, 77)


def png(color: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("version", ["0.12.0", "0.33.0"])
async def test_assets_are_given_page_by_page_and_by_tag(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acomfy.server_files._PAGE", 2)
    async with both(version, assets=True) as (server, client):
        made = [
            await client.api.post_asset(bytes([n]), f"{n}.png", tags=["input", "even" if n % 2 == 0 else "odd"])
            for n in range(5)
        ]
        found = [asset async for asset in client.assets()]
        assert [asset.id for asset in found] == [asset["id"] for asset in reversed(made)]
        assert found[0].name == "4.png" and found[0].size == 1 and found[0].hash == made[4]["hash"]
        assert [asset.name async for asset in client.assets(tags_all=["even"])] == ["4.png", "2.png", "0.png"]
        assert [asset.name async for asset in client.assets(tags_any=["odd"])] == ["3.png", "1.png"]
        assert [asset.name async for asset in client.assets(tags_none=["odd"], name_contains="2")] == ["2.png"]


@pytest.mark.parametrize("assets", [1.5, True, {"id": "x"}, "ab", None])
async def test_a_page_of_assets_that_is_no_list_has_none(
    client: acomfy.Client, monkeypatch: pytest.MonkeyPatch, assets: Any
) -> None:
    async def page(**_: Any) -> dict[str, Any]:
        return {"assets": assets, "has_more": True}

    monkeypatch.setattr(client.api, "get_assets", page)
    assert [asset async for asset in client.assets()] == []


@pytest.mark.parametrize(("version", "status"), [("0.3.64", 404), ("0.33.0", 503)])
async def test_a_server_without_assets_says_so(version: str, status: int) -> None:
    async with both(version) as (_, client):
        with pytest.raises(acomfy.HTTPError) as caught:
            [asset async for asset in client.assets()]
        assert caught.value.status == status


# --- Users ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.json", "workflows/a fox.json", "100%.json", "a%2Fb.json", "é%25.json", "q?#&+;=.json", "..hidden"]
)
async def test_users_files_keep_their_names_and_contents(client: acomfy.Client, name: str) -> None:
    await client.write_userdata(name, f"in {name}")
    assert await client.read_userdata(name) == f"in {name}".encode()
    assert [file.path for file in await client.userdata()] == [name]
    with pytest.raises(acomfy.HTTPError) as caught:
        await client.write_userdata(name, "x", overwrite=False)
    assert caught.value.status == 409
    await client.move_userdata(name, f"moved/{name}")
    assert [file.path for file in await client.userdata("moved")] == [f"moved/{name}"]
    assert await client.delete_userdata(f"moved/{name}") is True
    assert await client.delete_userdata(f"moved/{name}") is False
    assert await client.userdata("none") == ()


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x"])
async def test_no_path_leads_to_another_route_or_out_of_the_users_files(client: acomfy.Client, name: str) -> None:
    for coroutine in (client.read_userdata(name), client.write_userdata(name, "x"), client.delete_userdata(name)):
        with pytest.raises(acomfy.HTTPError) as caught:
            await coroutine
        assert caught.value.status == 403


async def test_settings_are_merged_and_any_value_is_kept(client: acomfy.Client) -> None:
    await client.set_settings({"a": 1, "b": [None]})
    await client.set_settings({"a": 2})
    await client.api.post_setting("c/d", None)
    assert await client.settings() == {"a": 2, "b": [None], "c/d": None}
    assert await client.api.get_setting("b") == [None]
    assert await client.api.get_setting("z") is None


async def test_each_user_of_a_server_has_settings_and_files_of_his_own() -> None:
    async with both("0.33.0", multi_user=True) as (_, client):
        ann, bob = await client.api.post_user("ann"), await client.api.post_user("bob")
        assert await client.users() == {ann: "ann", bob: "bob"}
        await client.set_settings({"a": 1}, user=ann)
        await client.write_userdata("x", b"1", user=ann)
        assert await client.settings(user=bob) == {}
        assert [file.path for file in await client.userdata(user=ann)] == ["comfy.settings.json", "x"]
        assert await client.userdata(user=bob) == ()
        with pytest.raises(acomfy.AuthenticationError):
            await client.settings()
        with pytest.raises(acomfy.HTTPError):
            await client.api.post_user("ann")


async def test_a_large_file_of_a_user_is_sent_and_read(client: acomfy.Client) -> None:
    data = bytes(range(256)) * 8192
    await client.write_userdata("big.bin", data)
    assert await client.read_userdata("big.bin") == data
    (file,) = await client.userdata()
    assert file.size == len(data) and file.modified_at is not None and file.modified_at > 1e9
