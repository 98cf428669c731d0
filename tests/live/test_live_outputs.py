"""Outputs of every kind from a real server, whose address is in ``ACOMFY_SERVER``: its core nodes, and no model.

::

    ACOMFY_SERVER=http://127.0.0.1:8188 pytest -m live tests/live
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import acomfy

from ..tcp_proxy import Link, TcpProxy

pytestmark = [pytest.mark.anyio, pytest.mark.live]

URL = os.environ.get("ACOMFY_SERVER", "")
WORKFLOW = {"nodes": [], "version": 0.4, "note": "Fuß 🦊"}
PREFIX = {"filename_prefix": "acomfy/live"}


@pytest.fixture
async def client() -> AsyncIterator[acomfy.Client]:
    async with acomfy.Client(URL) as client:
        await client.wait_ready()
        yield client


def graph(class_type: str, source: str, input_name: str, **inputs: Any) -> dict[str, Any]:
    """Make something small that no cache knows, and give it to a node."""
    sources: dict[str, dict[str, Any]] = {
        "EmptyImage": {"width": 64, "height": 64, "batch_size": 4, "color": random.randrange(1 << 24)},
        "EmptyAudio": {"duration": random.randrange(50, 150) / 100, "sample_rate": 48000, "channels": 2},
        "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": random.randrange(1, 9)},
        "PrimitiveString": {"value": f"héllo 🦊 {random.random()}"},
    }
    return {
        "1": {"class_type": source, "inputs": sources[source]},
        "2": {"class_type": class_type, "inputs": {input_name: ["1", 0], **inputs}},
    }


async def fitting(client: acomfy.Client, graph: dict[str, Any]) -> dict[str, Any]:
    """Leave out inputs that this version does not know, and give those that it wants its defaults."""
    for node in graph.values():
        about: Any = await client.object_info(node["class_type"])
        about = about.get(node["class_type"], about)
        for name, spec in about["input"]["required"].items():
            options = spec[1] if len(spec) > 1 else {}
            if name not in node["inputs"] and "default" in options:
                node["inputs"][name] = options["default"]
    return graph


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SaveAnimatedWEBP": ("images", "image/webp", {"fps": 6.0, "lossless": True, "quality": 80, "method": "default"}),
    "SaveAnimatedPNG": ("images", "image/png", {"fps": 6.0, "compress_level": 4}),
    "SaveWEBM": ("images", "video/webm", {"codec": "vp9", "fps": 8.0, "crf": 32.0}),
    "SaveAudio": ("audio", "audio/flac", {}),
    "SaveAudioMP3": ("audio", "audio/mpeg", {"quality": "V0"}),
    "SaveAudioOpus": ("audio", "audio/ogg", {"quality": "64k"}),
    "SaveLatent": ("samples", "application/octet-stream", {}),
}
SOURCES = {"images": "EmptyImage", "audio": "EmptyAudio", "samples": "EmptyLatentImage"}


@pytest.mark.parametrize("class_type", KINDS)
async def test_a_file_of_each_kind_comes_with_what_is_written_in_it(client: acomfy.Client, class_type: str) -> None:
    input_name, media_type, inputs = KINDS[class_type]
    await check(client, graph(class_type, SOURCES[input_name], input_name, **inputs, **PREFIX), media_type)


async def test_a_film_comes_with_what_is_written_in_it(client: acomfy.Client) -> None:
    film = graph("CreateVideo", "EmptyImage", "images", fps=8.0)
    inputs = {"video": ["2", 0], "format": "auto", "codec": "auto", "format.codec": "auto", **PREFIX}
    film["3"] = {"class_type": "SaveVideo", "inputs": inputs}
    await check(client, film, "video/mp4")


async def check(client: acomfy.Client, prompt: dict[str, Any], media_type: str) -> None:
    prompt = await fitting(client, prompt)
    result = await client.run(prompt, extra_data={"extra_pnginfo": {"workflow": WORKFLOW}})
    (output,) = result
    assert (output.media_type, output.type, output.subfolder) == (media_type, "output", "acomfy")
    found = await output.metadata()
    assert (found.prompt, found.workflow) == (prompt, WORKFLOW)
    assert b"".join([chunk async for chunk in output.stream()]) == await output.read()


async def test_a_text_is_shown_and_a_sound_previewed(client: acomfy.Client) -> None:
    prompt = graph("PreviewAny", "PrimitiveString", "source")
    (text,) = (await client.run(prompt)).texts
    assert text.text == prompt["1"]["inputs"]["value"]
    result = await client.run(await fitting(client, graph("PreviewAudio", "EmptyAudio", "audio")))
    assert (len(result.audio), [output.kind for output in result.temp]) == (0, ["audio"])


@pytest.mark.parametrize(
    ("preview", "channel", "format", "mode"),
    [
        ("webp;75", None, "WEBP", "RGB"),
        ("jpeg", None, "JPEG", "RGB"),
        (None, "rgb", "PNG", "RGB"),
        (None, "a", "PNG", "RGBA"),
    ],
)
async def test_the_server_makes_previews(
    client: acomfy.Client, preview: str | None, channel: str | None, format: str, mode: str
) -> None:
    result = await client.run(graph("SaveImage", "EmptyImage", "images", **PREFIX))
    image = await result.images[0].image(preview=preview, channel=channel)
    assert (image.format, image.mode, image.size) == (format, mode, (64, 64))


async def test_a_file_over_a_connection_that_is_cut_every_64_kb_is_the_same(
    client: acomfy.Client, tmp_path: Path
) -> None:
    prompt = graph("SaveLatent", "EmptyLatentImage", "samples", **PREFIX)
    prompt["1"]["inputs"].update(width=1024, height=1024, batch_size=random.randrange(8, 40))
    (output,) = await client.run(prompt)
    expected = hashlib.sha256(await output.read()).hexdigest()
    async with TcpProxy(int(URL.rpartition(":")[2])) as proxy, acomfy.Client(proxy.url) as through:
        (same,) = await through.run(prompt)

        def cut(link: Link) -> None:
            link.cut_after(1 << 16)

        proxy.on_link = cut
        for data in (same.read(), saved(same, tmp_path), streamed(same)):
            proxy.cut(lambda link: not link.is_websocket)
            assert hashlib.sha256(await data).hexdigest() == expected


async def saved(output: acomfy.Output, directory: Path) -> bytes:
    return (await output.save(directory)).read_bytes()


async def streamed(output: acomfy.Output) -> bytes:
    return b"".join([chunk async for chunk in output.stream()])
