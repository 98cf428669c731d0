"""Checkpoint, CLIP, latent, sampler and VAE, simulated: they carry what is wanted, and `picture.paint` paints it.

A latent is a description: its size, its batch, and, once sampled, prompt, seed, steps and guidance. The sampler takes
its time and shows the picture as it sharpens from noise; decoding paints it. The same workflow gives the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from PIL import Image

from .execution import encode_preview
from .nodes import Batch, Node, NodeContext

CHECKPOINTS = (
    "v1-5-pruned-emaonly.safetensors",
    "v1-5-pruned-emaonly.ckpt",
    "sd_xl_base_1.0.safetensors",
    "flux1-dev-fp8.safetensors",
)
LORAS = ("detail.safetensors", "watercolor.safetensors")

# fmt: off
_SAMPLERS = [
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2",
    "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm",
    "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2",
    "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
]
# fmt: on
_SCHEDULERS = [
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
    "kl_optimal",
]
_STRENGTH = ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01})

# The longer side of a painted preview, before it is scaled to what the server sends. Without real time between steps it
# is painted once, tiny, and each step lifts a veil of noise: painting would be most of the work.
_PREVIEW = 192
_QUICK_PREVIEW = 48
_MANY = 1 << 20


@dataclass(frozen=True)
class Model:
    """A MODEL or CLIP: a checkpoint's name and the LoRAs on it."""

    name: str
    loras: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Conditioning:
    """A CONDITIONING: the text."""

    text: str


@dataclass(frozen=True)
class Latent:
    """A LATENT: what is to be painted, and how far it is.

    Attributes:
        source: The pictures it was encoded from; None for an empty latent.
        denoise: How much of the source is painted over; 0 while it is not sampled.
    """

    width: int
    height: int
    batch: int = 1
    source: tuple[Image.Image, ...] | None = field(default=None, compare=False)
    prompt: str = ""
    negative: str = ""
    seed: int = 0
    steps: int = 0
    cfg: float = 8.0
    denoise: float = 0.0


def model_nodes(checkpoints: list[str], loras: list[str]) -> list[Node]:
    """Give the node classes of the text-to-image family; the lists are the models that the server has."""
    size = {"default": 512, "min": 16, "max": 16384, "step": 8}
    return [
        Node(
            "CheckpointLoaderSimple",
            lambda context, ckpt_name: (Model(ckpt_name), Model(ckpt_name), Model(ckpt_name)),
            required=lambda: {"ckpt_name": (list(checkpoints), {})},
            outputs=("MODEL", "CLIP", "VAE"),
            display_name="Load Checkpoint",
            category="loaders",
        ),
        Node(
            "LoraLoader",
            _load_lora,
            required=lambda: {
                "model": ("MODEL", {}),
                "clip": ("CLIP", {}),
                "lora_name": (list(loras), {}),
                "strength_model": _STRENGTH,
                "strength_clip": _STRENGTH,
            },
            outputs=("MODEL", "CLIP"),
            display_name="Load LoRA",
            category="loaders",
        ),
        Node(
            "CLIPTextEncode",
            lambda context, text, clip: Conditioning(text),
            required={"text": ("STRING", {"multiline": True, "dynamicPrompts": True}), "clip": ("CLIP", {})},
            outputs=("CONDITIONING",),
            display_name="CLIP Text Encode (Prompt)",
            category="conditioning",
        ),
        Node(
            "EmptyLatentImage",
            lambda context, width, height, batch_size: Latent(width, height, batch_size),
            required={
                "width": ("INT", size),
                "height": ("INT", size),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
            },
            outputs=("LATENT",),
            display_name="Empty Latent Image",
            category="latent",
        ),
        Node(
            "KSampler",
            _sample,
            required={
                "model": ("MODEL", {}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
                "sampler_name": (_SAMPLERS, {}),
                "scheduler": (_SCHEDULERS, {}),
                "positive": ("CONDITIONING", {}),
                "negative": ("CONDITIONING", {}),
                "latent_image": ("LATENT", {}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            },
            outputs=("LATENT",),
            category="sampling",
        ),
        Node(
            "VAEDecode",
            _decode,
            required={"samples": ("LATENT", {}), "vae": ("VAE", {})},
            outputs=("IMAGE",),
            display_name="VAE Decode",
            category="latent",
        ),
        Node(
            "VAEEncode",
            _encode,
            required={"pixels": ("IMAGE",), "vae": ("VAE",)},
            outputs=("LATENT",),
            display_name="VAE Encode",
            category="latent",
        ),
    ]


def _load_lora(
    context: NodeContext, model: Model, clip: Model, lora_name: str, strength_model: float, strength_clip: float
) -> tuple[Model, Model]:
    return (
        replace(model, loras=(*model.loras, (lora_name, strength_model))),
        replace(clip, loras=(*clip.loras, (lora_name, strength_clip))),
    )


async def _sample(
    context: NodeContext,
    model: Model,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Conditioning,
    negative: Conditioning,
    latent_image: Latent,
    denoise: float,
) -> Latent:
    wanted = replace(
        latent_image,
        prompt=positive.text,
        negative=negative.text,
        seed=seed,
        steps=steps,
        cfg=cfg,
        denoise=denoise,
    )
    preview = _previews(context, wanted)
    for step in range(1, steps + 1):
        await context.sleep(context.step_time)
        context.progress(step, steps, await preview(step / steps))
    return wanted


def _previews(context: NodeContext, latent: Latent) -> Callable[[float], Awaitable[bytes]]:
    """Give the function that shows a latent at a sharpness: painted anew, or, without step time, veiled quickly."""
    if context.step_time and context.in_real_time:

        async def painted(sharpness: float) -> bytes:
            picture = await context.in_thread(_paint, latent, 0, _fit(latent, _PREVIEW), sharpness, pixels=_MANY)
            preview: bytes = encode_preview(picture, context.preview_size)
            return preview

        return painted
    size = _fit(latent, _QUICK_PREVIEW)
    finished = _paint(latent, 0, size, 1.0)
    noise = Image.frombytes("RGB", size, random.Random(latent.seed).randbytes(3 * size[0] * size[1]))

    async def veiled(sharpness: float) -> bytes:
        return encode_preview(Image.blend(noise, finished, sharpness), context.preview_size)

    return veiled


def _encode(context: NodeContext, pixels: Batch, vae: Model) -> Latent:
    width, height = pixels[0].size
    return Latent(width, height, len(pixels), tuple(pixels))


async def _decode(context: NodeContext, samples: Latent, vae: Model) -> Batch:
    pixels = samples.width * samples.height
    return [
        await context.in_thread(_paint, samples, index, (samples.width, samples.height), 1.0, pixels=pixels)
        for index in range(samples.batch)
    ]


def _fit(latent: Latent, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(latent.width, latent.height))
    return max(1, round(latent.width * scale)), max(1, round(latent.height * scale))


def _paint(latent: Latent, index: int, size: tuple[int, int], sharpness: float) -> Image.Image:
    """Paint one picture of a latent: its source, its prompt's picture, or the one shining through the other."""
    from .picture import paint  # it draws with fonts and filters that nobody loads before a picture is wanted

    source = None if latent.source is None else latent.source[index].resize(size)
    if latent.denoise == 0.0:
        return source or Image.new("RGB", size, (127, 127, 127))
    painted = paint(
        latent.prompt,
        latent.seed,
        *size,
        sharpness=sharpness,
        negative=latent.negative,
        batch_index=index,
        steps=latent.steps,
        cfg=latent.cfg,
    )
    return painted if source is None else Image.blend(source, painted, latent.denoise)
