"""Nodes that save and show what is no still picture: animations, films, sounds, latents, models, texts.

Classes, inputs and ui keys are those of ComfyUI 0.3.64 (nodes_images.py, nodes_video.py, nodes_audio.py, nodes.py,
nodes_hunyuan3d.py, nodes_preview_any.py, nodes_load_3d.py) and, for ``VHS_VideoCombine``, those of VideoHelperSuite.
What is in the files is told in media_files.py. ``Cube`` is the simulator's own: ComfyUI needs a model to make a MESH.
"""

from __future__ import annotations

import io
import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import media_files
from .files import Folders, encode_png
from .model_nodes import Latent
from .nodes import Batch, Node, NodeContext, NodeResult

_HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
_FPS = ("FLOAT", {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01})


@dataclass(frozen=True)
class Audio:
    """An AUDIO: silence of some length."""

    samples: int
    rate: int
    channels: int


@dataclass(frozen=True)
class Video:
    """A VIDEO: how many pictures, and how fast they go."""

    pictures: int
    fps: float


@dataclass(frozen=True)
class Mesh:
    """A MESH: a cube."""

    size: float


def media_nodes() -> list[Node]:
    """Give the node classes."""
    return [*_animations(), *_films(), *_sounds(), *_others()]


def _prefix(default: str) -> tuple[str, dict[str, Any]]:
    return "STRING", {"default": default}


def _saver(class_type: str, function: Callable[..., Any], required: dict[str, Any], **more: Any) -> Node:
    return Node(class_type, function, required=required, hidden=_HIDDEN, output_node=True, **more)


# --- What all of them do ---------------------------------------------------------------------------------------------


def _texts(context: NodeContext) -> dict[str, str]:
    """Give what ComfyUI writes into every file: the prompt, and what the client sent for the purpose."""
    pnginfo = context.extra_data.get("extra_pnginfo") or {}
    return {"prompt": json.dumps(context.prompt)} | {key: json.dumps(value) for key, value in pnginfo.items()}


def _write(
    context: NodeContext, folder: str, prefix: str, extension: str, data: bytes, size: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """Save a file under the next free name; give its entry."""
    files: Folders = context.files
    directory, stem, subfolder, counter = files.next_names(folder, prefix, size)
    name = files.save(directory, stem.replace("%batch_num%", "0"), counter, data, extension)
    context.record(data, name)
    return {"filename": name, "subfolder": subfolder, "type": folder}


# --- Animations ------------------------------------------------------------------------------------------------------


def _animations() -> list[Node]:
    return [
        _saver(
            "SaveAnimatedWEBP",
            _save_webp,
            {
                "images": ("IMAGE",),
                "filename_prefix": _prefix("ComfyUI"),
                "fps": _FPS,
                "lossless": ("BOOLEAN", {"default": True}),
                "quality": ("INT", {"default": 80, "min": 0, "max": 100}),
                "method": (["default", "fastest", "slowest"],),
            },
            category="image/animation",
            python_module="comfy_extras.nodes_images",
        ),
        _saver(
            "SaveAnimatedPNG",
            _save_apng,
            {
                "images": ("IMAGE",),
                "filename_prefix": _prefix("ComfyUI"),
                "fps": _FPS,
                "compress_level": ("INT", {"default": 4, "min": 0, "max": 9}),
            },
            category="image/animation",
            python_module="comfy_extras.nodes_images",
        ),
    ]


async def _save_webp(
    context: NodeContext, images: Batch, filename_prefix: str, fps: float, lossless: bool, quality: int, method: str
) -> NodeResult:
    exif = Image.Exif()
    tag = 0x010F
    for key, text in _texts(context).items():
        exif[0x0110 if key == "prompt" else tag] = f"{key}:{text}"
        tag -= key != "prompt"
    options = {"exif": exif, "lossless": lossless, "quality": quality}
    return await _save_animation(context, images, filename_prefix, fps, "WEBP", options)


async def _save_apng(
    context: NodeContext, images: Batch, filename_prefix: str, fps: float, compress_level: int
) -> NodeResult:
    info = PngInfo()
    for key, text in _texts(context).items():
        info.add(b"comf", key.encode("latin-1") + b"\0" + text.encode("latin-1"), after_idat=True)
    options = {"pnginfo": info, "compress_level": compress_level}
    return await _save_animation(context, images, filename_prefix, fps, "PNG", options)


async def _save_animation(
    context: NodeContext, images: Batch, prefix: str, fps: float, kind: str, options: dict[str, Any]
) -> NodeResult:
    def encode() -> bytes:
        buffer = io.BytesIO()
        images[0].save(buffer, kind, save_all=True, append_images=images[1:], duration=int(1000 / fps), **options)
        return buffer.getvalue()

    width, height = images[0].size
    data = await context.in_thread(encode, pixels=len(images) * width * height)
    entry = _write(context, "output", prefix, kind.lower(), data, images[0].size)
    return NodeResult(ui={"images": [entry], "animated": [len(images) != 1]})


# --- Films -----------------------------------------------------------------------------------------------------------


def _films() -> list[Node]:
    return [
        Node(
            "CreateVideo",
            lambda context, images, fps, audio=None: Video(len(images), fps),
            required={
                "images": ("IMAGE", {}),
                "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}),
            },
            optional={"audio": ("AUDIO", {})},
            outputs=("VIDEO",),
            display_name="Create Video",
            category="image/video",
            python_module="comfy_extras.nodes_video",
        ),
        _saver(
            "SaveVideo",
            _save_video,
            {
                "video": ("VIDEO", {}),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI", "multiline": False}),
                "format": ("COMBO", {"default": "auto", "options": ["auto", "mp4"]}),
                "codec": ("COMBO", {"default": "auto", "options": ["auto", "h264"]}),
            },
            display_name="Save Video",
            category="image/video",
            python_module="comfy_extras.nodes_video",
        ),
        _saver(
            "SaveWEBM",
            _save_webm,
            {
                "images": ("IMAGE", {}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
                "codec": ("COMBO", {"options": ["vp9", "av1"]}),
                "fps": ("FLOAT", {"default": 24.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
                "crf": ("FLOAT", {"default": 32.0, "min": 0, "max": 63.0, "step": 1}),
            },
            category="image/video",
            python_module="comfy_extras.nodes_video",
        ),
        _saver(
            "VHS_VideoCombine",
            _combine_video,
            {
                "images": ("IMAGE",),
                "frame_rate": ("FLOAT", {"default": 8, "min": 1, "step": 1}),
                "loop_count": ("INT", {"default": 0, "min": 0, "max": 100, "step": 1}),
                "filename_prefix": _prefix("AnimateDiff"),
                "format": (["image/gif", "image/webp", "video/h264-mp4", "video/webm"],),
                "pingpong": ("BOOLEAN", {"default": False}),
                "save_output": ("BOOLEAN", {"default": True}),
            },
            optional={"audio": ("AUDIO",)},
            outputs=("VHS_FILENAMES",),
            output_names=("Filenames",),
            display_name="Video Combine",
            category="Video Helper Suite",
            python_module="custom_nodes.comfyui-videohelpersuite",
        ),
    ]


def _save_video(context: NodeContext, video: Video, filename_prefix: str, format: str, codec: str) -> NodeResult:
    entry = _write(context, "output", filename_prefix, "mp4", media_files.mp4(_texts(context)))
    return NodeResult(ui={"images": [entry], "animated": [True]})


def _save_webm(
    context: NodeContext, images: Batch, filename_prefix: str, codec: str, fps: float, crf: float
) -> NodeResult:
    entry = _write(context, "output", filename_prefix, "webm", media_files.webm(_texts(context)), images[0].size)
    return NodeResult(ui={"images": [entry], "animated": [True]})


async def _combine_video(
    context: NodeContext,
    images: Batch,
    frame_rate: float,
    loop_count: int,
    filename_prefix: str,
    format: str,
    pingpong: bool,
    save_output: bool,
    audio: Audio | None = None,
) -> NodeResult:
    """Save a film, and beside it a picture that holds the workflow; its tags are one comment that holds both."""
    texts = _texts(context)
    folder = "output" if save_output else "temp"
    first = _write(context, folder, filename_prefix, "png", encode_png(images[0], texts), images[0].size)
    kind, _, name = format.partition("/")
    extension = name.rpartition("-")[2]
    if kind == "video":
        workflow = (context.extra_data.get("extra_pnginfo") or {}).get("workflow")
        comment = {"comment": json.dumps({"prompt": texts["prompt"], "workflow": workflow})}
        data = media_files.webm(comment) if extension == "webm" else media_files.mp4(comment)
    else:
        data = await context.in_thread(
            _moving, images, extension, frame_rate, pixels=images[0].width * images[0].height
        )
    entry = _write(context, folder, filename_prefix, extension, data, images[0].size)
    directory = context.files.paths[folder] / entry["subfolder"]
    more = {"format": format, "frame_rate": frame_rate, "workflow": first["filename"]}
    shown = {**entry, **more, "fullpath": str(directory / entry["filename"])}
    return NodeResult(((save_output, [shown["fullpath"]]),), ui={"gifs": [shown]})


def _moving(images: Batch, extension: str, frame_rate: float) -> bytes:
    buffer = io.BytesIO()
    images[0].save(buffer, extension, save_all=True, append_images=images[1:], duration=int(1000 / frame_rate), loop=0)
    return buffer.getvalue()


# --- Sounds ----------------------------------------------------------------------------------------------------------


def _sounds() -> list[Node]:
    audio = {"audio": ("AUDIO",), "filename_prefix": _prefix("audio/ComfyUI")}
    return [
        Node(
            "EmptyAudio",
            lambda context, duration, sample_rate, channels: Audio(
                round(duration * sample_rate), sample_rate, channels
            ),
            required={
                "duration": ("FLOAT", {"default": 60.0, "min": 0.0, "max": 0xFFFFFFFFFFFFFFFF, "step": 0.01}),
                "sample_rate": ("INT", {"default": 44100}),
                "channels": ("INT", {"default": 2, "min": 1, "max": 2}),
            },
            outputs=("AUDIO",),
            display_name="Empty Audio",
            category="audio",
            python_module="comfy_extras.nodes_audio",
        ),
        _sound("SaveAudio", _save_flac, audio, "Save Audio (FLAC)"),
        _sound(
            "SaveAudioMP3",
            _save_mp3,
            {**audio, "quality": (["V0", "128k", "320k"], {"default": "V0"})},
            "Save Audio (MP3)",
        ),
        _sound(
            "SaveAudioOpus",
            _save_opus,
            {**audio, "quality": (["64k", "96k", "128k", "192k", "320k"], {"default": "128k"})},
            "Save Audio (Opus)",
        ),
        _sound("PreviewAudio", _preview_audio, {"audio": ("AUDIO",)}, "Preview Audio"),
    ]


def _sound(class_type: str, function: Callable[..., Any], required: dict[str, Any], display_name: str) -> Node:
    module = "comfy_extras.nodes_audio"
    return _saver(class_type, function, required, display_name=display_name, category="audio", python_module=module)


def _flac(context: NodeContext, audio: Audio) -> bytes:
    return media_files.flac(audio.samples, audio.rate, audio.channels, _texts(context))


def _save_flac(context: NodeContext, audio: Audio, filename_prefix: str) -> NodeResult:
    return NodeResult(ui={"audio": [_write(context, "output", filename_prefix, "flac", _flac(context, audio))]})


def _save_mp3(context: NodeContext, audio: Audio, filename_prefix: str, quality: str) -> NodeResult:
    data = media_files.mp3(audio.samples * 44_100 // audio.rate, _texts(context))
    return NodeResult(ui={"audio": [_write(context, "output", filename_prefix, "mp3", data)]})


def _save_opus(context: NodeContext, audio: Audio, filename_prefix: str, quality: str) -> NodeResult:
    data = media_files.opus(audio.samples * 48_000 // audio.rate, audio.channels, _texts(context))
    return NodeResult(ui={"audio": [_write(context, "output", filename_prefix, "opus", data)]})


def _preview_audio(context: NodeContext, audio: Audio) -> NodeResult:
    prefix = "ComfyUI_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))
    return NodeResult(ui={"audio": [_write(context, "temp", prefix, "flac", _flac(context, audio))]})


# --- Latents, models, texts ------------------------------------------------------------------------------------------


def _others() -> list[Node]:
    return [
        _saver(
            "SaveLatent",
            _save_latent,
            {"samples": ("LATENT",), "filename_prefix": _prefix("latents/ComfyUI")},
            category="_for_testing",
        ),
        Node(
            "Cube",
            lambda context, size: Mesh(size),
            required={"size": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 1000.0})},
            outputs=("MESH",),
        ),
        _saver(
            "SaveGLB",
            _save_glb,
            {"mesh": ("MESH",), "filename_prefix": _prefix("mesh/ComfyUI")},
            category="3d",
            python_module="comfy_extras.nodes_hunyuan3d",
        ),
        Node(
            "Preview3D",
            lambda context, model_file, camera_info=None: NodeResult(ui={"result": [model_file, camera_info]}),
            required={"model_file": ("STRING", {"default": "", "multiline": False})},
            optional={"camera_info": ("LOAD3D_CAMERA", {})},
            output_node=True,
            display_name="Preview 3D",
            category="3d",
            python_module="comfy_extras.nodes_load_3d",
        ),
        Node(
            "PrimitiveString",
            lambda context, value: value,
            required={"value": ("STRING", {"multiline": False})},
            outputs=("STRING",),
            display_name="String",
            category="utils/primitive",
            python_module="comfy_extras.nodes_primitive",
        ),
        Node(
            "PreviewAny",
            lambda context, source: NodeResult(ui={"text": [_as_text(source)]}),
            required={"source": ("*", {})},
            output_node=True,
            display_name="Preview Any",
            category="utils",
            python_module="comfy_extras.nodes_preview_any",
        ),
    ]


def _save_latent(context: NodeContext, samples: Latent, filename_prefix: str) -> NodeResult:
    data = media_files.latent((samples.batch, 4, samples.height // 8, samples.width // 8), _texts(context))
    return NodeResult(ui={"latents": [_write(context, "output", filename_prefix, "latent", data)]})


def _save_glb(context: NodeContext, mesh: Mesh, filename_prefix: str) -> NodeResult:
    data = media_files.glb_cube(mesh.size, _texts(context))
    return NodeResult(ui={"3d": [_write(context, "output", filename_prefix, "glb", data)]})


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value) if not isinstance(value, int | float) and value is not None else str(value)
    except (TypeError, ValueError):
        return str(value)
