"""Files that stand in a graph, without any server: what counts as one, what is kept of it, and what it is called."""

from __future__ import annotations

import copy
import io
import json
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acomfy import Masked, Workflow, WorkflowError
from acomfy.captures import Content, Data, LocalFile, OpenFile, Picture, Pixels, capture
from acomfy.encoding import image_of, masked, write_png
from acomfy.inputs import fill, stored_name, take_one
from acomfy.workflow import EncodedGraph, encode

PNG = b"\x89PNG\r\n\x1a\n"


def loads(value: Any, **inputs: Any) -> dict[str, Any]:
    return {
        "10": {"class_type": "LoadImage", "inputs": {"image": value, **inputs}, "_meta": {"title": "Start"}},
        "3": {"class_type": "KSampler", "inputs": {"seed": 1}},
    }


def encoded(value: Any) -> EncodedGraph:
    return encode(loads(value), frozenset())


def the_content(value: Any) -> Content:
    (file,) = encoded(value).files
    return file.content


def an_image(size: tuple[int, int] = (5, 4)) -> Image.Image:
    return Image.effect_noise(size, 80).convert("RGB")


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


# --- In a graph ----------------------------------------------------------------------------------------------------


def test_a_mark_stands_in_the_place_of_a_file_until_its_name_is_known() -> None:
    graph = encoded(b"data")
    (file,) = graph.files
    assert (file.node_id, file.input_name) == ("10", "image")
    assert json.loads(graph.json)["10"]["inputs"]["image"] == file.mark
    filled = json.loads(fill(graph.json, graph.files, ['acomfy/"ä\\.png']))
    assert filled == loads('acomfy/"ä\\.png')


def test_files_are_found_however_deep_they_stand() -> None:
    graph = encode(loads([b"a", {"x": (b"b", 1)}], other=b"c"), frozenset())
    assert [file.input_name for file in graph.files] == ["image", "image", "other"]
    filled = json.loads(fill(graph.json, graph.files, ["A", "B", "C"]))
    assert filled["10"]["inputs"] == {"image": ["A", {"x": ["B", 1]}], "other": "C"}


def test_eleven_marks_are_told_apart() -> None:
    graph = encode(loads([bytes([number]) for number in range(11)]), frozenset())
    names = [f"name {number}" for number in range(11)]
    assert json.loads(fill(graph.json, graph.files, names))["10"]["inputs"]["image"] == names


def test_a_graph_without_files_has_none_also_where_orjson_cannot_write_it() -> None:
    assert encoded("example.png").files == ()
    assert encoded(2**70).files == ()


def test_the_graph_that_was_given_stays_as_it_was() -> None:
    graph = loads(b"data")
    encode(graph, frozenset())
    assert graph == loads(b"data")


def test_files_stand_in_inputs_alone() -> None:
    graph = loads("a.png")
    graph["10"]["_meta"]["title"] = b"data"
    with pytest.raises(WorkflowError, match="'_meta' holds bytes, which JSON has not"):
        encode(graph, frozenset())


@given(st.binary(max_size=40), st.text(max_size=20))
def test_whatever_the_server_calls_a_file_the_filled_graph_holds_just_that(data: bytes, name: str) -> None:
    graph = encode(loads(data, text=name), frozenset())
    assert json.loads(fill(graph.json, graph.files, [name])) == loads(name, text=name)


# --- What is captured ----------------------------------------------------------------------------------------------


def test_what_can_be_edited_is_captured_as_it_is_now() -> None:
    array, image, data = numpy.zeros((2, 2), numpy.uint8), Image.new("L", (2, 2)), bytearray(b"old")
    contents = [the_content(value) for value in (array, image, data, memoryview(data))]
    array[:] = 255
    image.paste(255, (0, 0, 2, 2))
    data[:] = b"new"
    pixels, picture, *rest = contents
    assert isinstance(pixels, Pixels) and isinstance(picture, Picture)
    assert image_of(pixels).getextrema() == image_of(picture).getextrema() == (0, 0)
    assert all(isinstance(content, Data) and content.data == b"old" for content in rest)


def test_bytes_are_not_copied_and_are_the_same_content_each_time() -> None:
    data = b"data" * 100
    first = the_content(data)
    assert isinstance(first, Data) and first.data is data
    assert the_content(data) is first


def test_a_path_is_taken_from_where_the_program_stands_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert the_content(Path("a.png")) == LocalFile(str(tmp_path / "a.png"))


def test_an_open_file_is_read_from_where_it_stands_now(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        file.seek(4)
        content = the_content(file)
        file.seek(0)
        assert isinstance(content, OpenFile) and content.start == 4


def test_uploads_of_web_frameworks_are_open_files(tmp_path: Path) -> None:
    held = io.BytesIO(b"data")
    for upload in (SimpleNamespace(file=held, filename="a.png"), held):
        content = the_content(upload)
        assert isinstance(content, Data) and content.data == b"data"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (io.StringIO("text"), r"open for reading text; open it for reading bytes \('rb'\)"),
        (SimpleNamespace(read=lambda size: b"", readable=lambda: False), r"not open for reading; open it .*\('rb'\)"),
        (SimpleNamespace(read=lambda size: b""), "cannot seek; read it, and give the bytes"),
        (numpy.zeros((3, 8, 9), numpy.uint8), r"the shape \(3, 8, 9\) is not one picture"),
        (numpy.zeros((2, 4, 4, 3), numpy.uint8), "is not one picture"),
        (numpy.zeros((0, 4), numpy.uint8), "is not one picture"),
        (Image.new("RGB", (0, 4)), "a picture of 0 x 4 pixels is none"),
        (numpy.zeros((4, 4), numpy.int32), "an array of <i4 is no picture; make it uint8"),
        (Masked(b"a", "name on the server"), r"the mask of Masked is a picture \(a Path, bytes, ...\), not str"),
        (Masked(Masked(b"a", b"b"), b"c"), "the image of Masked is a picture"),
    ],
)
def test_what_cannot_be_used_is_refused_by_node_and_input(value: Any, problem: str) -> None:
    with pytest.raises(WorkflowError, match=rf"node 10 \(LoadImage, 'Start'\): input 'image': .*{problem}") as caught:
        encoded(value)
    assert (caught.value.node_id, caught.value.input_name) == ("10", "image")


@pytest.mark.parametrize("value", [numpy.float32(1), numpy.int64(1), object(), {1}, 1j, Image])
def test_what_is_no_file_is_no_json_either(value: Any) -> None:
    assert capture(value) is None
    with pytest.raises(WorkflowError, match="which JSON has not"):
        encoded(value)
    with pytest.raises(TypeError, match="what can be uploaded is a Path"):
        take_one(value)


@pytest.mark.parametrize("value", ["a.png", 5, None, 1.5, True, ["1", 0]])
def test_a_name_of_the_servers_is_nothing_to_upload(value: Any) -> None:
    with pytest.raises(TypeError, match="what can be uploaded is a Path"):
        take_one(value)


# --- Workflows that hold files -------------------------------------------------------------------------------------


def test_a_workflow_with_files_is_edited_compared_and_copied_like_any_other(tmp_path: Path) -> None:
    workflow = Workflow(loads("example.png"))
    for value in (tmp_path / "a.png", b"data", numpy.zeros((2, 2)), an_image(), Masked(b"a", numpy.ones((2, 2)))):
        changed = workflow.replace({"Start.image": value})
        assert workflow == loads("example.png")
        assert changed["10"]["inputs"]["image"] is value
        assert changed == changed.copy() == loads(value) == pickle.loads(pickle.dumps(changed))
        assert copy.deepcopy(changed) == changed
        assert changed != workflow
        assert changed.replace({"3.seed": 2}) != changed
        assert changed.to_dict()["10"]["inputs"]["image"] is value
        assert repr(changed) == "<Workflow of 2 nodes>"
        for write in (changed.to_json, changed.content_hash):
            with pytest.raises(WorkflowError, match=r"node 10 .*'image' holds .*; it is a file, which run and submit"):
                write()


def test_arrays_are_compared_by_what_they_hold() -> None:
    array = numpy.arange(4, dtype=numpy.uint8).reshape(2, 2)
    assert Workflow(loads(array)) == loads(array.copy())
    for other in (array + 1, array.reshape(4, 1), array.astype(numpy.int16), [[0, 1], [2, 3]]):
        assert Workflow(loads(array)) != loads(other)


def test_masked_says_what_it_is_without_its_contents() -> None:
    assert repr(Masked(Path("secret"), b"secret")) == "Masked(PosixPath, bytes)"
    assert Masked(b"a", b"b") == Masked(b"a", b"b") != Masked(b"a", b"c")
    assert Masked(b"a", b"b") != b"a"


# --- Names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "filename", "extension"),
    [
        (PNG, "", "png"),
        (PNG, "a.PNG", "png"),
        (PNG, "a.jpg", "png"),
        (b"\xff\xd8\xff\xe0", "a.jpeg", "jpeg"),
        (b"\xff\xd8\xff\xe0", "a", "jpg"),
        (b"RIFF....WEBPVP8 ", "", "webp"),
        (b"\0\0\0\x18ftypisom", "", "mp4"),
        (b"\0\0\0\x18ftypisom", "a.m4v", "m4v"),
        (b"\x1a\x45\xdf\xa3", "a.mkv", "mkv"),
        (b"fLaC", "sound.bin", "flac"),
        (b"OggS", "a.opus", "opus"),
        (b"\0\0\0\0", "sd.latent", "latent"),
        (b"\0\0\0\0", "a.safetensors", "safetensors"),
        (b"v 1 0 0", "model.obj", "obj"),
        (b"", "", "bin"),
        (b"?", "a.tar.gz", "gz"),
        (b"?", "x.a b", "bin"),
        (b"?", "x.../..", "bin"),
        (b"?", "x." + "y" * 40, "bin"),
    ],
)
def test_the_extension_is_told_by_the_content_or_else_by_the_name(head: bytes, filename: str, extension: str) -> None:
    assert stored_name("0123456789abcdef" * 4, head, filename) == f"{'0123456789abcdef' * 2}.{extension}"


@given(st.binary(max_size=20), st.text(max_size=30))
def test_a_name_is_safe_whatever_the_file_is_and_is_called(head: bytes, filename: str) -> None:
    stem, dot, extension = stored_name("ab" * 32, head, filename).partition(".")
    assert stem == "ab" * 16 and dot and extension.isascii() and extension.isalnum()


# --- Pictures ------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([1, 2, 3, 4]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(1, 99)
)
def test_a_png_holds_each_pixel(channels: int, width: int, height: int, seed: int, strip: int) -> None:
    array = numpy.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=numpy.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("acomfy.encoding._STRIP_SIZE", strip)
        content = capture(array)
        assert isinstance(content, Pixels)
        image = decoded(write_png(image_of(content)))
    assert (image.size, image.mode) == ((width, height), ("L", "LA", "RGB", "RGBA")[channels - 1])
    assert image.tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f8"])
def test_floats_are_from_0_to_1(kind: str) -> None:
    array = numpy.linspace(0, 1, 256).reshape(16, 16).astype(kind)
    assert the_image(array).tobytes() == bytes(range(256))
    assert the_image(array[None, :, :, None]).tobytes() == bytes(range(256))  # as ComfyUI has its pictures
    assert the_image(array[::-1, ::2].copy()).tobytes() == the_image(array[::-1, ::2]).tobytes()
    assert the_image(numpy.array([[-0.05, 1.05]], kind)).tobytes() == b"\0\xff"


def the_image(value: Any) -> Image.Image:
    content = the_content(value)
    assert isinstance(content, Pixels | Picture)
    return image_of(content)


@pytest.mark.parametrize("array", [numpy.array([[0.0, 255.0]]), numpy.array([[-1.0, 1.0]]), numpy.array([[numpy.nan]])])
def test_floats_of_another_range_are_refused(array: Any) -> None:
    with pytest.raises(ValueError, match="the floats of an array are from 0 to 1; these are from"):
        the_image(array)


def test_arrays_of_other_makers_are_read_by_numpys_protocols() -> None:
    array = numpy.arange(12, dtype=numpy.uint8).reshape(2, 2, 3)

    class Tensor:
        shape = (2, 2, 3)

        def __array__(self) -> Any:
            return array

    class Bare:
        __array_interface__ = {"shape": (2, 2, 3), "typestr": "|u1", "data": array.tobytes(), "version": 3}

    class OnADevice:
        shape = (2, 2, 3)

        def __array__(self) -> Any:
            raise TypeError("use Tensor.cpu()")

    for value in (array, Tensor(), Bare(), numpy.asfortranarray(array), array.view()):
        assert the_image(value).tobytes() == array.tobytes()
    with pytest.raises(WorkflowError, match=r"the OnADevice cannot be read: use Tensor.cpu\(\)"):
        encoded(OnADevice())


def test_a_mask_of_booleans_is_black_and_white() -> None:
    assert the_image(numpy.array([[True, False]])).tobytes() == b"\xff\0"


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16"]
)
def test_a_picture_of_any_common_mode_becomes_a_png(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    assert decoded(write_png(the_image(image))).size == (3, 2)


def test_sixteen_bits_become_eight() -> None:
    image = Image.fromarray(numpy.array([[0, 32896, 65535]], numpy.uint16))
    assert the_image(image).tobytes() == bytes([0, 128, 255])


def test_a_transparent_palette_stays_transparent() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 1
    assert the_image(image).tobytes() == bytes([255, 0, 0, 255, 0, 255, 0, 0])


def test_a_picture_of_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="a picture of mode F has no place in a PNG"):
        the_image(Image.new("F", (2, 2)))


def test_a_mask_is_white_where_the_picture_becomes_transparent() -> None:
    image, mask = an_image((2, 1)), Image.new("L", (2, 1))
    mask.putpixel((1, 0), 255)
    result = masked(image, mask)
    assert result.getchannel("A").tobytes() == b"\xff\0"
    assert result.convert("RGB").tobytes() == image.tobytes()


def test_a_mask_is_black_where_it_is_transparent_itself() -> None:
    mask = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    mask.putpixel((1, 0), (255, 255, 255, 255))
    assert masked(an_image((2, 1)), mask).getchannel("A").tobytes() == b"\xff\0"


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="the mask is 3 x 3, the picture 2 x 1"):
        masked(an_image((2, 1)), Image.new("L", (3, 3)))


def test_the_png_is_one_that_says_its_lengths_and_checksums_right() -> None:
    data = write_png(an_image())
    at, kinds = len(PNG), []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kinds.append(data[at + 4 : at + 8])
        at += 12 + length
    assert data.startswith(PNG) and at == len(data)
    assert (kinds[0], {*kinds[1:-1]}, kinds[-1]) == (b"IHDR", {b"IDAT"}, b"IEND")
