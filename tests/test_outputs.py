"""What nodes produced: files, streamed pictures, text, and names that are safe to write."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acomfy.outputs import (
    FileReference,
    Produced,
    StreamedImage,
    TextValue,
    extension,
    from_history,
    in_graph_order,
    media_type,
    media_type_of,
    produced_by,
    rendition,
    safe_filename,
)

from . import strategies as given_by


def file(name: str, **more: Any) -> dict[str, Any]:
    return {"filename": name, "subfolder": "", "type": "output", **more}


def produced(**ui: Any) -> list[Produced]:
    return list(produced_by("9", ui))


# --- Any ui output -------------------------------------------------------------------------------------------------


def test_every_dict_with_a_filename_is_a_file_whatever_its_key() -> None:
    """VideoHelperSuite puts an mp4 under gifs; audio, latents and custom nodes have keys of their own."""
    items = produced(
        images=[file("a.png")],
        gifs=[file("b.mp4", format="video/h264-mp4")],
        audio=[file("c.flac")],
        latents=[file("d.latent")],
        custom=[[file("e.glb")], 3, None, True, "x", {"name": "no file"}],
    )
    assert [(item.key, item.media_type) for item in items if isinstance(item, FileReference)] == [
        ("images", "image/png"),
        ("gifs", "video/mp4"),
        ("audio", "audio/flac"),
        ("latents", "application/octet-stream"),
        ("custom", "model/gltf-binary"),
    ]
    assert len(items) == 5


def test_a_file_keeps_its_place_and_its_entry() -> None:
    entry = {"filename": "a.png", "subfolder": "sub", "type": "temp", "id": "x"}
    (item,) = produced(images=[entry])
    assert item == FileReference("9", "images", "a.png", "sub", "temp", "image/png", False, entry)


@pytest.mark.parametrize("odd", [None, 3, "", [], {}])
def test_an_odd_subfolder_or_type_is_read_as_none(odd: Any) -> None:
    (item,) = produced(images=[{"filename": "a.png", "subfolder": odd, "type": odd}])
    assert isinstance(item, FileReference) and (item.subfolder, item.type) == ("", "output")


@pytest.mark.parametrize(
    "value", [{"filename": ""}, {"filename": None}, {"filename": 3}, {"name": "a.png"}, "a.png", 3]
)
def test_what_has_no_filename_is_no_file(value: Any) -> None:
    assert produced(images=[value]) == []


def test_text_is_text_under_its_own_key_alone() -> None:
    assert produced(text=["hello", ["you"]], string=["no"]) == [
        TextValue("9", "text", "hello"),
        TextValue("9", "text", "you"),
    ]
    assert produced(text="bare") == [TextValue("9", "text", "bare")]


@pytest.mark.parametrize(("flags", "animated"), [([True], True), ([False], False), (True, True), (None, False)])
def test_animated_is_said_of_the_pictures_beside_it(flags: Any, animated: bool) -> None:
    items = produced(images=[file("a.webp")], gifs=[file("b.gif")], animated=flags)
    assert [item.animated for item in items if isinstance(item, FileReference)] == [animated, False]


def test_values_are_found_in_order_however_deep_they_stand() -> None:
    deep: Any = file("deep.png")
    for _ in range(100_000):
        deep = [deep]
    items = produced(images=[file("a.png"), [file("b.png"), [file("c.png")]], deep, file("d.png")])
    assert [item.filename for item in items if isinstance(item, FileReference)] == [
        "a.png",
        "b.png",
        "c.png",
        "deep.png",
        "d.png",
    ]


def test_files_are_found_in_dicts_too() -> None:
    odd = {"first": {"file": file("a.mp4"), "name": "x"}, "more": [{"deep": {"deeper": file("b.mp4")}}]}
    assert [item.filename for item in produced(videos=[odd]) if isinstance(item, FileReference)] == ["a.mp4", "b.mp4"]
    assert produced(text=[{"label": "no text"}]) == []


@pytest.mark.parametrize(
    ("said", "place"),
    [
        (file("sub/a.png"), ("sub", "a.png")),
        (file("more/a.png", subfolder="sub"), ("sub/more", "a.png")),
        (file("../a.png"), ("", "../a.png")),
        (file("/etc/passwd"), ("", "/etc/passwd")),
        (file("sub/"), ("", "sub/")),
        (file("C:\\a.png"), ("", "C:\\a.png")),
    ],
)
def test_a_path_as_a_file_name_is_read_as_a_place(said: dict[str, Any], place: tuple[str, str]) -> None:
    """Custom nodes write it so; ``/view`` drops the directories of a file name, and then finds nothing."""
    (item,) = produced(images=[said])
    assert isinstance(item, FileReference)
    assert (item.subfolder, item.filename) == place


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("3d/a_00001_.glb", ("3d", "a_00001_.glb", "output")),
        ("a.OBJ", ("", "a.OBJ", "output")),
        ("3d/a.glb [temp]", ("3d", "a.glb", "temp")),
        ("up.fbx [input]", ("", "up.fbx", "input")),
    ],
)
def test_the_model_that_a_viewer_shows_is_a_file(path: str, place: tuple[str, str, str]) -> None:
    (item,) = produced(result=[path, {"position": [1, 2]}, None])
    assert isinstance(item, FileReference)
    assert (item.subfolder, item.filename, item.type) == place
    assert item.media_type.startswith("model/")


def test_other_strings_under_result_are_no_files() -> None:
    assert produced(result=["", "hello", "a.png", "temp/x [temp]", None, 3]) == []


@given(given_by.json_objects)
def test_any_ui_output_is_read(ui: dict[str, Any]) -> None:
    for item in produced_by("9", ui):
        assert item.node_id == "9"


# --- Media types ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "format", "key", "expected"),
    [
        ("a.PNG", None, "images", "image/png"),
        ("a.jpeg", "image/png", "images", "image/png"),
        ("a.gif", "video/mp4", "gifs", "video/mp4"),
        ("a.mp4", "video/h264-mp4", "gifs", "video/mp4"),
        ("a", "video/h264-mp4", "gifs", "video/mp4"),
        ("a", "mp4", "gifs", "video/mp4"),
        ("a.latent", None, "latents", "application/octet-stream"),
        ("a.mp4", None, "images", "video/mp4"),
        ("a.unheard", "video/unheard", "gifs", "video/unheard"),
        ("a.unheard", "unheard", "gifs", "application/octet-stream"),
        ("a.unheard", 3, "gifs", "application/octet-stream"),
        ("blake3:00ff", None, "images", "image/png"),
        ("blake3:00ff", None, "audio", "application/octet-stream"),
    ],
)
def test_a_known_format_tells_the_media_type_then_the_extension_then_any_format_then_the_key(
    filename: str, format: object, key: str, expected: str
) -> None:
    assert media_type(filename, format, key) == expected


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"RIFF....WEBPVP8 ", "image/webp"),
        (b"RIFF....WAVEfmt ", "audio/wav"),
        (b"RIFF....what", "application/octet-stream"),
        (b"\0\0\0\x20ftypisom", "video/mp4"),
        (b"\0\0\0\x20ftypavif", "image/avif"),
        (b"\x1a\x45\xdf\xa3", "video/webm"),
        (b"fLaC", "audio/flac"),
        (b"glTF", "model/gltf-binary"),
        (b"", "application/octet-stream"),
        (b"{}", "application/octet-stream"),
    ],
)
def test_the_first_bytes_tell_a_media_type(head: bytes, expected: str) -> None:
    assert media_type_of(head) == media_type_of(memoryview(head + bytes(100))) == expected


# --- Renditions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preview", "channel", "expected"),
    [
        (None, None, None),
        (None, "rgba", None),
        (None, "rgb", ("png", None, "png")),
        (None, "a", ("png", None, "png")),
        ("webp", None, ("webp", 90, "webp")),
        ("webp;75", "rgb", ("webp", 75, "webp")),
        ("jpeg;100", None, ("jpeg", 100, "jpg")),
        ("jpeg", "a", ("webp", 90, "webp")),
    ],
)
def test_a_rendition_is_what_the_server_makes(
    preview: str | None, channel: str | None, expected: tuple[str, int | None, str] | None
) -> None:
    wanted = rendition(preview, channel)
    assert (None if wanted is None else (wanted.format, wanted.quality, wanted.extension)) == expected


@pytest.mark.parametrize("preview", ["", "png", "webp;", "webp;0", "webp;101", "webp; 75", "webp;quality=50", "WEBP"])
def test_a_preview_that_the_server_would_not_make_is_refused(preview: str) -> None:
    with pytest.raises(ValueError, match="preview is 'webp' or 'jpeg'"):
        rendition(preview, None)


def test_a_channel_that_the_server_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="channel is"):
        rendition(None, "alpha")


# --- Streamed pictures ---------------------------------------------------------------------------------------------


def test_streamed_pictures_have_an_extension() -> None:
    types = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/odd")
    assert [extension(media_type) for media_type in types] == ["png", "jpg", "webp", "gif", "bin"]


# --- Order, and history --------------------------------------------------------------------------------------------


def test_outputs_come_in_the_order_of_the_graph_and_keep_each_node_s_own() -> None:
    items: list[Produced] = [
        TextValue("7", "text", "unknown node"),
        StreamedImage("8", 0, memoryview(b""), "image/png"),
        TextValue("3", "text", "b"),
        StreamedImage("8", 1, memoryview(b""), "image/png"),
        TextValue("3", "text", "a"),
    ]
    ordered = in_graph_order(items, ["10", "3", "8"])
    assert ordered == [items[2], items[4], items[1], items[3], items[0]]


def test_history_gives_what_the_executed_events_gave() -> None:
    ui = {"images": [file("a.png")]}
    entry = {
        "outputs": {"2": ui, "4.0.0.3": ui, "5": None, "6": "odd"},
        "meta": {
            "2": {"node_id": "2", "display_node": "2"},
            "4.0.0.3": {"node_id": "4.0.0.3", "display_node": "4"},
        },
    }
    assert from_history(entry) == {"2": ("2", ui), "4.0.0.3": ("4", ui)}


def test_the_meta_of_a_cached_node_may_be_that_of_another_prompt() -> None:
    """Seen in d_cached: node 20 was cached from a prompt in which it had the id 2."""
    entry = {
        "outputs": {"20": {}, "40.0.0.1": {}},
        "meta": {
            "20": {"node_id": "2", "display_node": "2"},
            "40.0.0.1": {"node_id": "4.0.0.1", "display_node": "4"},
        },
    }
    assert from_history(entry) == {"20": ("20", {}), "40.0.0.1": ("40", {})}


@pytest.mark.parametrize("meta", [None, [], {}, {"2": None}, {"2": {}}, {"2": {"node_id": "2", "display_node": 3}}])
def test_history_without_meta_names_the_nodes_themselves(meta: Any) -> None:
    assert from_history({"outputs": {"2": {}}, "meta": meta}) == {"2": ("2", {})}


@pytest.mark.parametrize("outputs", [None, [], "odd"])
def test_history_without_outputs_gives_none(outputs: Any) -> None:
    assert from_history({"outputs": outputs}) == {}


# --- Names of files to write ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a_00001_.png", "a_00001_.png"),
        ("ünï 猫.png", "ünï 猫.png"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/abs.png", "abs.png"),
        ("C:evil.png", "C_evil.png"),
        ("..", "_"),
        ("", "_"),
        ("a/", "_"),
        (".bashrc", "_.bashrc"),
        ("a\0b\n.png", "a_b_.png"),
        ("a\x9b.png", "a_.png"),
        ("a?.png", "a_.png"),
        ("bad\udc80.png", "bad_.png"),
        ("con.png", "_con.png"),
        ("CON", "_CON"),
        ("com1 .txt", "_com1 .txt"),
        ("CONIN$", "_CONIN$"),
        ("console.png", "console.png"),
        ("trailing. . ", "trailing"),
    ],
)
def test_a_name_from_the_server_is_made_safe(name: str, safe: str) -> None:
    assert safe_filename(name) == safe


def test_a_long_name_keeps_its_extension() -> None:
    assert safe_filename("a" * 300 + ".png") == "a" * 196 + ".png"
    assert safe_filename("猫" * 100 + ".png") == "猫" * 65 + ".png"
    assert safe_filename("a" * 300) == "a" * 200
    assert safe_filename("a." + "b" * 300) == "a." + "b" * 198
    assert safe_filename("a" * 199 + "." + "b" * 300) == "a" * 199


@given(st.text(st.characters()) | st.text("./\\ con:1\0"))
def test_a_safe_name_stays_inside_its_directory_and_is_safe_again(name: str) -> None:
    safe = safe_filename(name)
    assert safe == safe_filename(safe)
    assert os.path.basename(safe) == safe and safe not in ("", ".", "..")
    assert len(safe.encode()) <= 200
