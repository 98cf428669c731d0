"""Every route of a real server, whose address is in ``ACOMFY_SERVER``; a server of one's own, as much is left behind.

::

    ACOMFY_SERVER=http://127.0.0.1:8188 pytest -m live tests/live
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

import acomfy

from ..every_route import answers, rows
from ..graphs import saved

pytestmark = [pytest.mark.anyio, pytest.mark.live]

URL = os.environ.get("ACOMFY_SERVER", "")


@pytest.fixture
async def client() -> AsyncIterator[acomfy.Client]:
    async with acomfy.Client(URL) as client:
        await client.wait_ready()
        yield client


async def version_of(client: acomfy.Client) -> tuple[int, ...]:
    version = (await client.system_stats()).comfyui_version
    assert version is not None
    return tuple(int(part) for part in version.split(".")[:3])


async def test_the_server_has_just_the_routes_that_the_table_gives_its_version(client: acomfy.Client) -> None:
    version = await version_of(client)
    found = {name: answer async for name, answer in answers(client.api)}
    for row in rows():
        for name in set(row.methods) - {"head_asset_hash", *MAY_BE_NOT_FOUND}:
            there = row.since is not None and row.since <= version
            assert is_missing(found[name]) != there, (row, found[name])


MAY_BE_NOT_FOUND = {
    "view",
    "get_view_metadata",
    "get_models",
    "get_model_files",
    "get_model_preview",
    "get_userdata",
    "view_userdata",
    "delete_userdata",
    "move_userdata",
    "get_userdata_list",
}


def is_missing(answer: Any) -> bool:
    return isinstance(answer, acomfy.HTTPError) and (answer.status == 405 or (answer.status == 404 and not answer.body))


async def test_what_the_server_answers_has_the_shapes_that_are_promised(client: acomfy.Client) -> None:
    result = await client.run(saved(0x336699))
    async with asyncio.timeout(5):
        # A real server writes it up to some 10 ms after its success, and tells nobody.
        while (entry := await client.history(result.prompt_id)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert entry.state == "completed" and entry.duration is not None
    assert entry.outputs and entry.targets and entry.number is not None
    assert result.prompt_id in [found.prompt_id for found in await client.history(limit=5)]
    job = await client.job_info(result.prompt_id)
    assert job is not None and (job.state, job.outputs_count) == ("completed", 1)
    page = await client.list_jobs(limit=1)
    assert page.total >= 1 and len(page) == 1
    assert await client.queue() is not None
    stats = await client.system_stats()
    assert stats.devices and stats.ram_total > 0
    assert "checkpoints" in await client.models()
    assert await client.object_info("SaveImage")
    assert set(await client.object_info()) > {"SaveImage", "LoadImage"}
    await client.delete_history(result.prompt_id)
    assert await client.history(result.prompt_id) is None


@pytest.mark.parametrize(
    "name", ["a fox.png", "ünï 日本.png", "quo\"te's.png", "a;b;c.png", "back\\slash", "100%25.png", "x" * 196 + ".png"]
)
async def test_uploads_come_back_under_the_same_name_with_the_same_bytes(client: acomfy.Client, name: str) -> None:
    data = os.urandom(1000)
    upload = await client.upload_image(data, name, subfolder="acomfy-test", overwrite=True)
    assert upload.name == name
    async with client.api.view(upload.name, subfolder=upload.subfolder, type=upload.type) as response:
        assert await response.read() == data


@pytest.mark.parametrize("name", ["a fox.json", "sub/é.json", "100%25.json", "a%2Fb.json"])
async def test_users_files_come_back(client: acomfy.Client, name: str) -> None:
    several = "users" in await client.api.get_users()
    user = await client.api.post_user(str(uuid.uuid4())) if several else None
    path = f"acomfy-test/{uuid.uuid4()}/{name}"
    await client.write_userdata(path, "content", user=user)
    assert await client.read_userdata(path, user=user) == b"content"
    assert path in [file.path for file in await client.userdata("acomfy-test", user=user)]
    assert await client.delete_userdata(path, user=user)
    if several:
        with pytest.raises(acomfy.HTTPError):
            await client.read_userdata(path)


async def test_the_log_tells_of_a_prompt(client: acomfy.Client) -> None:
    logs = client.logs(recent=True)
    await anext(logs)
    await client.run(saved(0x112233))
    async for entry in logs:
        if "got prompt" in entry.text:
            break


async def test_an_asset_is_made_found_and_forgotten(client: acomfy.Client) -> None:
    if not (await client.features()).get("assets"):
        with pytest.raises(acomfy.HTTPError):
            [asset async for asset in client.assets()]
        return
    made = await client.api.post_asset(os.urandom(100), "a;fox.png", tags=["input", "acomfy-test"], name="fox")
    found = [asset async for asset in client.assets(tags_all=["acomfy-test"])]
    assert made["id"] in [asset.id for asset in found]
    await client.api.delete_asset(made["id"])
    with pytest.raises(acomfy.HTTPError):
        await client.api.get_asset(made["id"])
