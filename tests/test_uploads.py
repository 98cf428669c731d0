"""Files in workflows, from the call to the server's folder: once, as they were, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy
import pytest
from PIL import Image

import acomfy
from acomfy import Masked, PayloadTooLarge, WorkflowError, reading
from acomfy.api import Api
from acomfy.captures import Picture, Pixels
from acomfy.retry import RetryPolicy
from acomfy.simulator import SimulatedServer

from .conftest import MS
from .shell import client, eventually, gates, quick_client, server, tasks_of_the_library

pytestmark = pytest.mark.anyio

__all__ = ["client", "gates", "server"]


def picture(color: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("RGB", size, color)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def loaded(image: Any, **inputs: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": image}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copy", **inputs}},
    }


async def pixels(result: acomfy.Result) -> bytes:
    return (await result.images[0].image()).convert("RGB").tobytes()


class Held:
    """Uploads that wait until the test lets them go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.cancelled = asyncio.Event()
        original = Api.upload_image

        async def upload_image(api: Api, file: Any, filename: str, **options: Any) -> Any:
            self.names.append(filename)
            self.begun.set()
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return await original(api, file, filename, **options)

        monkeypatch.setattr(Api, "upload_image", upload_image)


@pytest.fixture
async def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


@pytest.fixture
async def other() -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer() as other:
        yield other


# --- What arrives --------------------------------------------------------------------------------------------------


async def test_a_file_is_stored_under_the_name_of_its_content(
    client: acomfy.Client,
    server: SimulatedServer,
    tmp_path: Path,
) -> None:
    path = tmp_path / 'it\'s a "file".jpg'
    path.write_bytes(png(picture()))
    result = await client.run(loaded(path))
    assert await pixels(result) == picture().tobytes()
    name = f"{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}.png"
    assert [upload["name"] for upload in server.uploads] == [name]
    assert (server.folders.paths["input"] / "acomfy" / name).read_bytes() == path.read_bytes()
    assert await client.upload(path) == f"acomfy/{name}"


GIVEN: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "image": lambda path: Image.open(path),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "masked": lambda path: Masked(path, Image.new("L", (8, 6))),
}


@pytest.mark.parametrize("kind", GIVEN)
async def test_whatever_a_picture_is_given_as_it_is_that_picture(
    client: acomfy.Client,
    tmp_path: Path,
    kind: str,
) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    value = GIVEN[kind](path)
    assert await pixels(await client.run(loaded(value))) == picture().tobytes()
    assert (await client.upload(value)).startswith("acomfy/")
    if isinstance(value, Image.Image):
        value.close()


async def test_what_is_edited_after_the_call_is_sent_as_it_was(client: acomfy.Client) -> None:
    image = picture()
    graph = loaded(image)
    run = client.run(graph)
    image.paste((0, 0, 0), (0, 0, 8, 6))
    graph["1"]["inputs"]["image"] = "gone.png"
    assert await pixels(await run) == picture().tobytes()


async def test_an_open_file_is_sent_from_where_it_stood_and_stays_there(
    client: acomfy.Client,
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"header" + png(picture()))
    with path.open("rb") as file:
        file.seek(6)
        results = await asyncio.gather(client.run(loaded(file)), client.run(loaded(file, filename_prefix="b")))
        assert file.tell() == 6 and not file.closed
    assert [await pixels(result) for result in results] == [picture().tobytes()] * 2


async def test_a_file_that_is_closed_before_it_was_sent_is_a_workflow_error(
    client: acomfy.Client,
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    with path.open("rb") as file:
        run = client.run(loaded(file))
    with pytest.raises(WorkflowError, match=r"node 1 \(LoadImage\): input 'image': .*closed file"):
        await run


async def test_a_mask_and_its_picture_may_each_be_anything(client: acomfy.Client, tmp_path: Path) -> None:
    mask = Image.new("L", (8, 6))
    mask.paste(255, (0, 0, 4, 6))
    (tmp_path / "mask.png").write_bytes(png(mask))
    graph = loaded(Masked(png(picture()), tmp_path / "mask.png"))
    graph["3"] = {"class_type": "MaskToImage", "inputs": {"mask": ["1", 1]}}
    name = await client.upload(graph["1"]["inputs"]["image"])
    async with client.api.view(name.partition("/")[2], subfolder="acomfy", type="input") as response:
        stored = Image.open(io.BytesIO(await response.read()))
    assert stored.convert("RGB").tobytes() == picture().tobytes()
    assert stored.getchannel("A").tobytes() == mask.point(lambda value: 255 - value).tobytes()


async def test_a_masked_photo_is_turned_as_its_exif_says(client: acomfy.Client, server: SimulatedServer) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    buffer = io.BytesIO()
    picture(size=(8, 6)).save(buffer, "JPEG", exif=exif)
    await client.upload(Masked(buffer.getvalue(), Image.new("L", (6, 8))))
    (path,) = (server.folders.paths["input"] / "acomfy").iterdir()
    with Image.open(path) as stored:
        assert stored.size == (6, 8)


@pytest.mark.parametrize("mask", [b"no picture", Image.new("L", (3, 3))])
async def test_a_mask_that_does_not_fit_is_a_workflow_error(client: acomfy.Client, mask: Any) -> None:
    with pytest.raises(WorkflowError, match="node 1 .*the mask is 3 x 3|node 1 .*cannot identify image") as caught:
        await client.run(loaded(Masked(picture(), mask)))
    assert (caught.value.node_id, caught.value.input_name) == ("1", "image")


async def test_a_file_that_is_not_there_is_told_by_the_call_itself(client: acomfy.Client, tmp_path: Path) -> None:
    for value in (tmp_path / "no.png", tmp_path, Masked(tmp_path / "no.png", b"")):
        for call in (client.run, client.submit):
            with pytest.raises(WorkflowError, match="node 1 .*there is no file '.*no.png'|node 1 .* is no file"):
                call(loaded(value))
    with pytest.raises(WorkflowError, match="the file to upload: there is no file"):
        await client.upload(tmp_path / "no.png")
    jobs = [job async for job in client.map([loaded(tmp_path / "no.png"), loaded(picture())])]
    assert [type(job.exception()) for job in sorted(jobs, key=lambda job: job.index or 0)] == [
        WorkflowError,
        type(None),
    ]


async def test_a_file_that_is_gone_when_its_turn_comes_is_a_workflow_error(
    client: acomfy.Client,
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    run = client.run(loaded(path))
    path.unlink()
    with pytest.raises(
        WorkflowError, match="there is no file '.*a.png'; for a file that the server has, give its name"
    ):
        await run


# --- Earlier outputs -----------------------------------------------------------------------------------------------


async def test_an_output_of_the_same_server_is_named_and_not_sent(
    client: acomfy.Client,
    server: SimulatedServer,
) -> None:
    first = await client.run(loaded(picture(), filename_prefix="sub/a b"))
    uploads, views = len(server.uploads), server.requests["GET", "/view"]
    assert await pixels(await client.run(loaded(first.images[0]))) == picture().tobytes()
    assert await client.upload(first.images[0]) == "sub/a b_00001_.png [output]"
    assert len(server.uploads) == uploads
    assert server.requests["GET", "/view"] == views + 1  # by `pixels`


async def test_a_streamed_output_is_sent(client: acomfy.Client, server: SimulatedServer) -> None:
    graph = {**loaded(picture()), "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}}
    (output,) = (await client.run(graph)).images
    assert await pixels(await client.run(loaded(output))) == picture().tobytes()
    assert server.uploads[-1]["sha256"] == hashlib.sha256(await output.read()).hexdigest()


async def test_an_output_of_another_server_is_brought_over_once(
    client: acomfy.Client,
    server: SimulatedServer,
    other: SimulatedServer,
) -> None:
    async with quick_client(other) as there:
        (output,) = (await there.run(loaded(picture()))).images
        results = await asyncio.gather(*(client.run(loaded(output, filename_prefix=str(n))) for n in range(9)))
        assert {await pixels(result) for result in results} == {picture().tobytes()}
        assert len(server.uploads) == 1
        assert other.requests["GET", "/view"] == 1
        masked = await client.upload(Masked(output, Image.new("L", (8, 6))))
        assert masked.startswith("acomfy/") and len(server.uploads) == 2


async def test_an_output_that_is_gone_is_a_workflow_error(
    client: acomfy.Client,
    other: SimulatedServer,
) -> None:
    async with quick_client(other) as there:
        (output,) = (await there.run(loaded(picture()))).images
        (other.folders.paths["output"] / output.filename).unlink()
        with pytest.raises(WorkflowError, match="node 1 .*copy_00001_.png' of node 2 is gone from the server"):
            await client.run(loaded(output), on_lost="resubmit")


async def test_a_text_is_put_in_as_it_is(client: acomfy.Client, server: SimulatedServer) -> None:
    text = {"1": {"class_type": "PreviewAny", "inputs": {"source": "a_prefix"}}}
    (output,) = (await client.run(text)).texts
    await client.run(loaded(picture(), filename_prefix=output))
    assert server.prompts[-1]["prompt"]["2"]["inputs"]["filename_prefix"] == output.text
    with pytest.raises(TypeError, match="what can be uploaded is"):
        await client.upload(output)


# --- Once ----------------------------------------------------------------------------------------------------------


async def test_fifty_prompts_at_once_upload_a_large_picture_once(
    client: acomfy.Client,
    server: SimulatedServer,
    tmp_path: Path,
) -> None:
    data = png(picture()) + os.urandom(4 << 20)
    path = tmp_path / "large.png"
    path.write_bytes(data)
    values = [path if number % 2 else data for number in range(50)]
    results = await asyncio.gather(
        *(client.run(loaded(value, filename_prefix=str(n))) for n, value in enumerate(values))
    )
    assert len(results) == 50
    assert [upload["sha256"] for upload in server.uploads] == [hashlib.sha256(data).hexdigest()]


async def test_what_an_earlier_client_uploaded_is_found_there(client: acomfy.Client, server: SimulatedServer) -> None:
    data = os.urandom(100_000)
    name = await client.upload(data)
    async with quick_client(server) as later:
        assert await later.upload(data) == name
        assert len(server.uploads) == 1
    stored = server.folders.paths["input"] / name
    stored.write_bytes(data[:-1])  # a server that was stopped while it wrote
    async with quick_client(server) as later:
        assert await later.upload(data) == name.replace(".bin", " (1).bin")
        assert (server.folders.paths["input"] / name.replace(".bin", " (1).bin")).read_bytes() == data


@pytest.mark.parametrize("make", [lambda: picture(size=(64, 64)), lambda: numpy.zeros((64, 64, 3), numpy.uint8)])
async def test_many_prompts_with_one_picture_share_its_copy_as_long_as_it_stays_the_same(
    client: acomfy.Client, server: SimulatedServer, make: Callable[[], Any]
) -> None:
    value = make()
    gc.collect()
    runs = [client.run(loaded(value, filename_prefix=str(number))) for number in range(6)]
    contents = [each for each in gc.get_objects() if isinstance(each, Picture | Pixels)]
    assert len(contents) == 1
    del contents
    before = await pixels((await asyncio.gather(*runs))[-1])
    assert len(server.uploads) == 1
    if isinstance(value, Image.Image):
        value.putpixel((63, 63), (9, 9, 9))
    else:
        value[63, 63] = 9
    after = await pixels(await client.run(loaded(value)))
    assert after != before and after[-3:] == bytes([9, 9, 9])


async def test_two_files_of_one_name_are_two_files(
    client: acomfy.Client,
    server: SimulatedServer,
    tmp_path: Path,
) -> None:
    paths = []
    for folder, color in (("x", (1, 2, 3)), ("y", (4, 5, 6))):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "a.png")
        picture(color).save(paths[-1])
    results = await asyncio.gather(*(client.run(loaded(path, filename_prefix=path.parent.name)) for path in paths))
    assert [await pixels(result) for result in results] == [
        picture(color).tobytes() for color in ((1, 2, 3), (4, 5, 6))
    ]
    assert len(server.uploads) == 2


async def test_a_file_that_changes_between_two_prompts_is_sent_again(
    client: acomfy.Client,
    server: SimulatedServer,
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.png"
    for color in ((1, 2, 3), (3, 2, 1)):
        picture(color).save(path)
        assert await pixels(await client.run(loaded(path))) == picture(color).tobytes()
    assert len(server.uploads) == 2


@pytest.mark.parametrize("on_lost", ["raise", "resubmit"])
async def test_a_job_that_is_done_holds_its_files_no_more(client: acomfy.Client, on_lost: Any) -> None:
    job = await client.submit(loaded(picture()), on_lost=on_lost)
    await job
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Picture)]


@pytest.mark.parametrize("on_lost", ["raise", "resubmit"])
async def test_what_the_server_lost_is_uploaded_again(
    client: acomfy.Client,
    server: SimulatedServer,
    on_lost: Any,
) -> None:
    await client.run(loaded(picture()))
    (path,) = (server.folders.paths["input"] / "acomfy").iterdir()
    path.unlink()
    results = await asyncio.gather(
        *(client.run(loaded(picture(), filename_prefix=str(n)), on_lost=on_lost) for n in range(5))
    )
    assert {await pixels(result) for result in results} == {picture().tobytes()}
    assert len(server.uploads) == 2


async def test_a_run_holds_its_files_no_more_once_they_are_uploaded(
    client: acomfy.Client, server: SimulatedServer
) -> None:
    server.hold()
    running = asyncio.create_task(client.run(loaded(picture())))
    await eventually(lambda: bool(client.jobs) and client.jobs[0].posted_at is not None)
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Picture)]
    server.release()
    assert await pixels(await running) == picture().tobytes()


async def test_a_lost_prompt_is_submitted_anew_with_its_files(client: acomfy.Client, server: SimulatedServer) -> None:
    server.hold()
    job = await client.submit(loaded(picture()), on_lost="resubmit")
    (path,) = (server.folders.paths["input"] / "acomfy").iterdir()
    path.unlink()
    server.delete_prompt(job.prompt_id)
    await eventually(lambda: job.attempt == 2)
    server.release()
    assert await pixels(await job) == picture().tobytes()
    assert len(server.uploads) == 2


async def test_a_prompt_that_is_refused_for_another_reason_uploads_nothing_again(
    client: acomfy.Client,
    server: SimulatedServer,
) -> None:
    graph = loaded(picture())
    graph["3"] = {"class_type": "EmptyImage", "inputs": {"width": -1, "height": 8, "batch_size": 1, "color": 0}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    graph["4"] = {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["3", 0]}}
    graph["2"]["inputs"]["images"] = ["4", 0]
    with pytest.raises(acomfy.PromptRejected):
        await client.run(graph)
    assert len(server.uploads) == 1


async def test_a_picture_that_the_server_cannot_use_is_refused_after_one_more_try(
    client: acomfy.Client,
    server: SimulatedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = server.folders.paths["input"] / "acomfy"

    async def vanishing(api: Api, file: Any, filename: str, **options: Any) -> Any:
        upload = await original(api, file, filename, **options)
        (folder / upload.name).unlink()
        return upload

    original = Api.upload_image
    monkeypatch.setattr(Api, "upload_image", vanishing)
    with pytest.raises(acomfy.PromptRejected, match="Invalid image file: acomfy/"):
        await client.run(loaded(picture()))
    assert len(server.uploads) == 2


# --- What changes meanwhile ----------------------------------------------------------------------------------------


async def test_a_file_that_changes_while_it_is_sent_is_never_stored_under_the_wrong_name(
    client: acomfy.Client,
    server: SimulatedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "a.bin"
    old, new = os.urandom(3 << 20), os.urandom(3 << 20)
    path.write_bytes(old)
    changes = iter([new])
    original = Api.upload_image

    async def upload_image(api: Api, file: BinaryIO, filename: str, **options: Any) -> Any:
        for data in changes:
            path.write_bytes(data)
        return await original(api, file, filename, **options)

    monkeypatch.setattr(Api, "upload_image", upload_image)
    name = await client.upload(path)
    assert name.startswith(f"acomfy/{hashlib.sha256(new).hexdigest()[:32]}")
    for stored in (server.folders.paths["input"] / "acomfy").iterdir():
        assert stored.read_bytes() == new


async def test_a_file_that_changes_all_the_time_is_a_workflow_error(
    client: acomfy.Client,
    server: SimulatedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"first")
    original = Api.upload_image

    async def upload_image(api: Api, file: BinaryIO, filename: str, **options: Any) -> Any:
        path.write_bytes(os.urandom(5))
        return await original(api, file, filename, **options)

    monkeypatch.setattr(Api, "upload_image", upload_image)
    with pytest.raises(WorkflowError, match="the file changed while it was uploaded, each time"):
        await client.upload(path)
    assert server.uploads == []


# --- Limits and faults ---------------------------------------------------------------------------------------------


async def test_too_large_a_file_is_not_sent_where_the_server_tells_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with path.open("wb") as file:
        file.truncate((1 << 20) + 1)
    async with SimulatedServer(max_upload_size=1 << 20) as server, quick_client(server) as client:
        with pytest.raises(PayloadTooLarge) as caught:
            await client.run(loaded(path))
        assert (caught.value.limit, server.requests["POST", "/upload/image"]) == (1 << 20, 0)
        assert (caught.value.size or 0) > 1 << 20
        jobs = [job async for job in client.map([loaded(path), loaded(picture())])]
        assert {type(job.exception()) for job in jobs} == {PayloadTooLarge, type(None)}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
async def test_a_file_that_becomes_a_pipe_is_not_waited_for(client: acomfy.Client, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    job = client.run(loaded(path))
    path.unlink()
    os.mkfifo(path)
    async with asyncio.timeout(5000 * MS):
        with pytest.raises(WorkflowError, match="is no file"):
            await job


async def test_of_too_large_a_file_not_a_byte_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(reading, "_of_file", lambda *_: pytest.fail("it is read"))
    async with SimulatedServer(max_upload_size=1 << 20) as server, quick_client(server) as client:
        with pytest.raises(PayloadTooLarge) as caught:
            await client.run(loaded(path))
    assert (caught.value.size, caught.value.limit) == (1 << 40, 1 << 20)


async def test_too_large_a_file_is_told_by_a_server_that_does_not_tell_before(
    client: acomfy.Client,
    server: SimulatedServer,
) -> None:
    with server.faults.refuse_as_too_large(), pytest.raises(PayloadTooLarge) as caught:
        await client.upload(b"data" * 1000)
    assert caught.value.limit == server.max_upload_size
    assert (caught.value.size or 0) >= 4000


@pytest.mark.parametrize("failures", [2, 3])
async def test_an_upload_that_breaks_is_tried_again_as_often_as_the_policy_says(
    server: SimulatedServer,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
) -> None:
    original, tries = Api.upload_image, []

    async def upload_image(api: Api, file: Any, filename: str, **options: Any) -> Any:
        tries.append(filename)
        upload = await original(api, file, filename, **options)
        if len(tries) <= failures:  # its answer is lost
            raise acomfy.ServerUnreachable(api.url, "cut", maybe_sent=True)
        return upload

    monkeypatch.setattr(Api, "upload_image", upload_image)
    policy = RetryPolicy(tries=3, first_delay=MS)
    async with quick_client(server, retry=policy) as client:
        if failures == 2:
            assert (await client.upload(b"data")).startswith("acomfy/")
        else:
            with pytest.raises(acomfy.ServerUnreachable):
                await client.upload(b"data")
    assert len(tries) == 3 and len(set(tries)) == 1
    assert len(list((server.folders.paths["input"] / "acomfy").iterdir())) == 1


async def test_without_a_server_an_upload_fails_like_a_prompt() -> None:
    async with acomfy.Client("http://127.0.0.1:9", retry=None, connect_timeout=200 * MS) as client:
        for call in (client.upload(b"data"), client.run(loaded(b"data"))):
            with pytest.raises(acomfy.ServerUnreachable):
                await call


# --- Cancelling and closing ----------------------------------------------------------------------------------------


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_cancelled_does_not_stop_the_upload_for_the_others(
    client: acomfy.Client,
    server: SimulatedServer,
    held: Held,
) -> None:
    data = png(picture())
    first = asyncio.create_task(client.run(loaded(data)))
    await held.begun.wait()
    second = asyncio.create_task(client.run(loaded(data)))
    third = asyncio.create_task(client.upload(data))
    await eventually(lambda: len(client.jobs) == 2)
    await cancelled(first)
    await eventually(lambda: len(client.jobs) == 1)
    held.go_on.set()
    assert await pixels(await second) == picture().tobytes()
    assert (await third).startswith("acomfy/")
    assert len(held.names) == 1 and not held.cancelled.is_set()
    assert len(server.prompts) == 1


async def test_the_last_who_is_cancelled_ends_the_upload(
    client: acomfy.Client,
    server: SimulatedServer,
    held: Held,
) -> None:
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(client.run(loaded(b"data"))),
        asyncio.create_task(client.submit(loaded(b"data"))),
        asyncio.create_task(client.upload(b"data")),
    ]
    await held.begun.wait()
    await eventually(lambda: len(client.jobs) == 2)
    for task in tasks:
        await cancelled(task)
    await asyncio.wait_for(held.cancelled.wait(), 5)
    await eventually(lambda: not client.jobs)
    held.go_on.set()
    assert (await client.upload(b"data")).startswith("acomfy/")
    assert server.prompts == [] and len(held.names) == 2


async def test_a_job_that_is_cancelled_while_its_file_is_uploaded_ends_as_cancelled(
    client: acomfy.Client,
    server: SimulatedServer,
    held: Held,
) -> None:
    submitting = asyncio.create_task(client.submit(loaded(b"data")))
    await held.begun.wait()
    (job,) = client.jobs
    assert await job.cancel()
    with pytest.raises(acomfy.JobCancelled):
        await job
    with pytest.raises(acomfy.JobCancelled):
        await submitting
    assert server.prompts == []


@pytest.mark.parametrize("call", ["run", "submit", "upload", "map"])
async def test_closing_the_client_ends_uploads_at_once(
    server: SimulatedServer,
    held: Held,
    call: str,
) -> None:
    client = quick_client(server)

    async def mapped() -> None:
        async for job in client.map([loaded(b"data")]):
            await job

    calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "run": lambda: client.run(loaded(b"data")),
        "submit": lambda: client.submit(loaded(b"data")),
        "upload": lambda: client.upload(b"data"),
        "map": mapped,
    }
    task = asyncio.create_task(calls[call]())
    await held.begun.wait()
    async with asyncio.timeout(1.5):  # without waiting for cancel_timeout
        await client.aclose()
    with pytest.raises(acomfy.ClientClosed):
        await task
    assert held.cancelled.is_set() and tasks_of_the_library() == []
    with pytest.raises(acomfy.ClientClosed):
        await client.upload(b"data")


async def test_closing_while_a_file_is_read_leaves_nothing_waiting(server: SimulatedServer) -> None:
    client = quick_client(server)
    reading, go_on = threading.Event(), threading.Event()

    class SlowFile:
        """As much of a file as is used."""

        def read(self, size: int = -1) -> bytes:
            reading.set()
            go_on.wait(10)
            return b""

        def seek(self, offset: int, whence: int = 0) -> int:
            return 0

        def tell(self) -> int:
            return 0

        def seekable(self) -> bool:
            return True

    calls = [client.upload(cast(BinaryIO, SlowFile())), client.run(loaded(SlowFile()))]
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.to_thread(reading.wait, 10)
    await client.aclose()
    with pytest.raises(acomfy.ClientClosed):
        await tasks[1]
    assert tasks_of_the_library() == []
    go_on.set()
    with pytest.raises(acomfy.ClientClosed):
        await tasks[0]
