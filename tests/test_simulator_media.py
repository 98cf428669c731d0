"""The simulator's films, sounds, models and texts: whole files of their kind, named and shown as ComfyUI does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import ClientSession

import acomfy
from acomfy.simulator import SimulatedServer

from .shell import Gates, client, gates, server

pytestmark = pytest.mark.anyio

__all__ = ["Gates", "client", "gates", "server"]

WORKFLOW = {"nodes": [], "version": 0.4, "note": "Fuß"}
EXTRA = {"extra_pnginfo": {"workflow": WORKFLOW}}
PICTURES = ("EmptyImage", {"width": 16, "height": 16, "batch_size": 3, "color": 255})
SOUND = ("EmptyAudio", {"duration": 0.5, "sample_rate": 44100, "channels": 2})


def graph(class_type: str, source: tuple[str, dict[str, Any]], input_name: str, **inputs: Any) -> dict[str, Any]:
    first = {"class_type": source[0], "inputs": source[1]}
    return {"1": first, "2": {"class_type": class_type, "inputs": {input_name: ["1", 0], **inputs}}}


PREFIX = {"filename_prefix": "kinds/x"}
COMBINED = {"frame_rate": 8, "loop_count": 0, "pingpong": False, "save_output": True}
GRAPHS: dict[str, tuple[dict[str, Any], str, str]] = {
    "animated webp": (
        graph("SaveAnimatedWEBP", PICTURES, "images", fps=6.0, lossless=True, quality=80, method="default", **PREFIX),
        "images",
        "image/webp",
    ),
    "animated png": (
        graph("SaveAnimatedPNG", PICTURES, "images", fps=6.0, compress_level=4, **PREFIX),
        "images",
        "image/png",
    ),
    "webm": (graph("SaveWEBM", PICTURES, "images", codec="vp9", fps=8.0, crf=32.0, **PREFIX), "images", "video/webm"),
    "vhs mp4": (
        graph("VHS_VideoCombine", PICTURES, "images", format="video/h264-mp4", **COMBINED, **PREFIX),
        "gifs",
        "video/mp4",
    ),
    "vhs webp": (
        graph("VHS_VideoCombine", PICTURES, "images", format="image/webp", **COMBINED, **PREFIX),
        "gifs",
        "image/webp",
    ),
    "flac": (graph("SaveAudio", SOUND, "audio", **PREFIX), "audio", "audio/flac"),
    "mp3": (graph("SaveAudioMP3", SOUND, "audio", quality="V0", **PREFIX), "audio", "audio/mpeg"),
    "opus": (graph("SaveAudioOpus", SOUND, "audio", quality="64k", **PREFIX), "audio", "audio/ogg"),
    "latent": (
        graph("SaveLatent", ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 2}), "samples", **PREFIX),
        "latents",
        "application/octet-stream",
    ),
    "glb": (graph("SaveGLB", ("Cube", {"size": 2.0}), "mesh", **PREFIX), "3d", "model/gltf-binary"),
}
FILM = graph("CreateVideo", PICTURES, "images", fps=8.0) | {
    "3": {"class_type": "SaveVideo", "inputs": {"video": ["2", 0], "format": "auto", "codec": "auto", **PREFIX}}
}
GRAPHS["mp4"] = (FILM, "images", "video/mp4")


@pytest.mark.parametrize("name", GRAPHS)
async def test_a_file_comes_with_its_kind_and_with_what_is_written_in_it(client: acomfy.Client, name: str) -> None:
    prompt, key, media_type = GRAPHS[name]
    result = await client.run(prompt, extra_data=EXTRA)
    (output,) = result
    assert (output.key, output.media_type, output.type, output.subfolder) == (key, media_type, "output", "kinds")
    found = await output.metadata()
    written = WORKFLOW if not name.endswith("webp") or name == "animated webp" else None
    assert (found.prompt, found.workflow) == (prompt if written else None, written)
    assert output.animated is (key == "images")


@pytest.mark.parametrize("name", ["animated webp", "animated png", "vhs webp"])
async def test_animations_are_pictures(client: acomfy.Client, name: str) -> None:
    (output,) = await client.run(GRAPHS[name][0])
    image = await output.image()
    assert image.size == (16, 16)


async def test_a_latent_is_a_safetensors_file_and_a_model_a_glb(client: acomfy.Client) -> None:
    (latent,) = await client.run(GRAPHS["latent"][0])
    data = await latent.read()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header["latent_tensor"]["shape"] == [2, 4, 8, 8]
    assert len(data) == 8 + size + header["latent_tensor"]["data_offsets"][1]
    (model,) = await client.run(GRAPHS["glb"][0])
    data = await model.read()
    assert int.from_bytes(data[8:12], "little") == len(data)
    assert (model.kind, latent.kind) == ("file", "file")


async def test_a_preview_of_a_sound_is_temporary(client: acomfy.Client) -> None:
    result = await client.run(graph("PreviewAudio", SOUND, "audio"))
    assert (len(result.audio), len(result.temp)) == (0, 1)


async def test_a_text_is_shown(client: acomfy.Client) -> None:
    result = await client.run(graph("PreviewAny", ("PrimitiveString", {"value": "héllo 🦊"}), "source"))
    assert [output.text for output in result.texts] == ["héllo 🦊"]


async def test_a_viewer_names_the_file_that_another_node_saved(client: acomfy.Client, tmp_path: Any) -> None:
    prompt = GRAPHS["glb"][0] | {"3": {"class_type": "Preview3D", "inputs": {"model_file": "kinds/x_00001_.glb"}}}
    result = await client.run(prompt)
    saved, shown = result.files
    assert (shown.filename, shown.subfolder, shown.key) == ("x_00001_.glb", "kinds", "result")
    assert await shown.read() == await saved.read()
    assert [path.name for path in await result.save(tmp_path)] == ["x_00001_.glb"]


@pytest.mark.parametrize("version", ["0.3.64", "0.33.0"])
async def test_what_may_hold_scripts_is_defused(version: str) -> None:
    async with SimulatedServer(version=version) as server, ClientSession() as session:
        for name in ("page.html", "drawing.svg", "picture.png", 'odd".txt'):
            (server.folders.paths["output"] / name).write_bytes(b"<x/>")

        async def headers(name: str, **sent: str) -> Any:
            async with session.get(f"{server.url}/view", params={"filename": name}, headers=sent) as response:
                return response.headers

        page, drawing, picture = await headers("page.html"), await headers("drawing.svg"), await headers("picture.png")
        assert page["Content-Type"] == "application/octet-stream"
        assert picture["Content-Type"] == "image/png"
        newer = version == "0.33.0"
        assert page["Content-Disposition"].startswith("attachment;" if newer else "filename=")
        assert drawing["Content-Type"] == ("application/octet-stream" if newer else "image/svg+xml")
        assert ("X-Content-Type-Options" in picture) is newer
        shown = await headers("drawing.svg", **{"Sec-Fetch-Dest": "image"})
        assert (shown["Content-Type"], shown["Content-Disposition"]) == ("image/svg+xml", 'filename="drawing.svg"')
