"""The image nodes of ComfyUI that need no model, done with Pillow."""

from __future__ import annotations

import hashlib
import json
import random
import string
from typing import Any

from PIL import Image, ImageChops, ImageOps

from .files import Folders, encode_png
from .nodes import Batch, Node, NodeContext, NodeResult

_SCALE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
_RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def image_nodes(folders: Folders) -> list[Node]:
    """Give the node classes that make, load, change and save images."""
    return [
        Node(
            "EmptyImage",
            _empty_image,
            required={
                "width": ("INT", {"default": 512, "min": 1, "max": 16384, "step": 1}),
                "height": ("INT", {"default": 512, "min": 1, "max": 16384, "step": 1}),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}),
            },
            outputs=("IMAGE",),
            category="image",
        ),
        _load_image(folders),
        _load_image_mask(folders),
        Node(
            "ImageScale",
            _image_scale,
            required={
                "image": ("IMAGE",),
                "upscale_method": (_SCALE_METHODS,),
                "width": ("INT", {"default": 512, "min": 0, "max": 16384, "step": 1}),
                "height": ("INT", {"default": 512, "min": 0, "max": 16384, "step": 1}),
                "crop": (["disabled", "center"],),
            },
            outputs=("IMAGE",),
            display_name="Upscale Image",
            category="image/upscaling",
        ),
        Node(
            "ImageScaleBy",
            _image_scale_by,
            required={
                "image": ("IMAGE",),
                "upscale_method": (_SCALE_METHODS,),
                "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
            },
            outputs=("IMAGE",),
            display_name="Upscale Image By",
            category="image/upscaling",
        ),
        Node(
            "ImageInvert",
            lambda context, image: [ImageChops.invert(picture) for picture in image],
            required={"image": ("IMAGE",)},
            outputs=("IMAGE",),
            display_name="Invert Image",
            category="image",
        ),
        Node(
            "ImageBatch",
            _image_batch,
            required={"image1": ("IMAGE",), "image2": ("IMAGE",)},
            outputs=("IMAGE",),
            display_name="Batch Images",
            category="image",
        ),
        Node(
            "SaveImage",
            _save_image,
            required={"images": ("IMAGE", {}), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            hidden=_HIDDEN,
            output_node=True,
            display_name="Save Image",
            category="image",
        ),
        Node(
            "PreviewImage",
            _preview_image,
            required={"images": ("IMAGE",)},
            hidden=_HIDDEN,
            output_node=True,
            display_name="Preview Image",
            category="image",
        ),
        Node(
            "SaveImageWebsocket",
            _save_image_websocket,
            required={"images": ("IMAGE",)},
            output_node=True,
            # ComfyUI's node answers the time: it is never found in the cache.
            is_changed=lambda **_: float("nan"),
            category="api/image",
            python_module="custom_nodes.websocket_image_save",
        ),
    ]


def _empty_image(context: NodeContext, width: int, height: int, batch_size: int, color: int) -> Batch:
    rgb = (color >> 16 & 0xFF, color >> 8 & 0xFF, color & 0xFF)
    return [Image.new("RGB", (width, height), rgb)] * batch_size


# --- Loading -------------------------------------------------------------------------------------------------------


def _load_image(folders: Folders) -> Node:
    return Node(
        "LoadImage",
        _load,
        required=lambda: {"image": (folders.names(), {"image_upload": True})},
        outputs=("IMAGE", "MASK"),
        validate=lambda image: _exists(folders, image),
        is_changed=lambda image: _file_hash(folders, image),
        display_name="Load Image",
        category="image",
    )


def _load_image_mask(folders: Folders) -> Node:
    channels = ["alpha", "red", "green", "blue"]
    return Node(
        "LoadImageMask",
        _load_mask,
        required=lambda: {"image": (folders.names(), {"image_upload": True}), "channel": (channels,)},
        outputs=("MASK",),
        validate=lambda image: _exists(folders, image),
        is_changed=lambda image, channel: _file_hash(folders, image),
        display_name="Load Image (as Mask)",
        category="mask",
    )


def _exists(folders: Folders, image: Any) -> bool | str:
    return True if folders.locate(str(image)).is_file() else f"Invalid image file: {image}"


def _file_hash(folders: Folders, image: str) -> str:
    return hashlib.sha256(folders.locate(image).read_bytes()).hexdigest()


def _open(context: NodeContext, image: str) -> Image.Image:
    with Image.open(context.files.locate(image)) as file:
        picture = ImageOps.exif_transpose(file)
        return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _load(context: NodeContext, image: str) -> tuple[Batch, Batch]:
    picture = _open(context, image)
    return [picture.convert("RGB")], [_mask(picture, "A")]


def _load_mask(context: NodeContext, image: str, channel: str) -> Batch:
    picture = _open(context, image)
    return [_mask(picture, channel[0].upper())]


def _mask(picture: Image.Image, band: str) -> Image.Image:
    if band not in picture.getbands():
        return Image.new("L", (64, 64))  # ComfyUI nodes.py LoadImage: an empty mask of this size without alpha
    mask = picture.getchannel(band)
    return ImageChops.invert(mask) if band == "A" else mask  # a mask is 1 where the picture is transparent


# --- Changing ------------------------------------------------------------------------------------------------------


async def _image_scale(
    context: NodeContext, image: Batch, upscale_method: str, width: int, height: int, crop: str
) -> Batch:
    old_width, old_height = image[0].size
    if width == 0 and height == 0:
        return image
    width = width or max(1, round(old_width * height / old_height))
    height = height or max(1, round(old_height * width / old_width))
    return await _scaled(context, image, upscale_method, (width, height), crop == "center")


async def _image_scale_by(context: NodeContext, image: Batch, upscale_method: str, scale_by: float) -> Batch:
    width, height = (max(1, round(side * scale_by)) for side in image[0].size)
    return await _scaled(context, image, upscale_method, (width, height), False)


async def _scaled(context: NodeContext, image: Batch, method: str, size: tuple[int, int], crop: bool) -> Batch:
    resampling = _RESAMPLING[method]

    def scale() -> Batch:
        if crop:
            return [ImageOps.fit(picture, size, resampling) for picture in image]
        return [picture.resize(size, resampling) for picture in image]

    scaled: Batch = await context.in_thread(scale, pixels=len(image) * size[0] * size[1])
    return scaled


def _image_batch(context: NodeContext, image1: Batch, image2: Batch) -> Batch:
    size = image1[0].size
    return image1 + [picture if picture.size == size else ImageOps.fit(picture, size) for picture in image2]


# --- Saving --------------------------------------------------------------------------------------------------------


async def _save_image(context: NodeContext, images: Batch, filename_prefix: str = "ComfyUI") -> NodeResult:
    return await _save(context, "output", images, filename_prefix, 4)


async def _preview_image(context: NodeContext, images: Batch) -> NodeResult:
    mark = "".join(random.choices(string.ascii_lowercase, k=5))
    return await _save(context, "temp", images, f"ComfyUI_temp_{mark}", 1)


async def _save(context: NodeContext, folder: str, images: Batch, prefix: str, level: int) -> NodeResult:
    files: Folders = context.files
    directory, stem, subfolder, counter = files.next_names(folder, prefix, images[0].size)
    pnginfo = context.extra_data.get("extra_pnginfo") or {}
    chunks = {"prompt": json.dumps(context.prompt)} | {key: json.dumps(value) for key, value in pnginfo.items()}
    saved = []
    for number, picture in enumerate(images):
        width, height = picture.size
        data = await context.in_thread(encode_png, picture, chunks, level, pixels=width * height)
        name = files.save(directory, stem.replace("%batch_num%", str(number)), counter + number, data)
        context.record(data, name)
        saved.append({"filename": name, "subfolder": subfolder, "type": folder})
    return NodeResult(ui={"images": saved})


async def _save_image_websocket(context: NodeContext, images: Batch) -> None:
    for number, picture in enumerate(images):
        width, height = picture.size
        data = await context.in_thread(encode_png, picture, pixels=width * height)
        context.progress(number, len(images), data, "image/png")
        context.record(data)
        await context.sleep(0)
