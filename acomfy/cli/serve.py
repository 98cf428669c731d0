"""``acomfy serve``: a simulated ComfyUI on a port."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .ends import FAILED, USAGE, fail
from .signals import Interrupts

if TYPE_CHECKING:
    from ..simulator import SimulatedServer

_STEP_TIME = 0.05


def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0 takes a free one.")] = 8188,
    step_time: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long a sampler step takes.")
    ] = _STEP_TIME,
    version: Annotated[str, typer.Option(metavar="X.Y.Z", help="The ComfyUI version to behave like.")] = "0.3.64",
    output_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", file_okay=False, help="Where SaveImage saves; without it a directory that goes at the end."
        ),
    ] = None,
) -> None:
    """Serve a simulated ComfyUI until Ctrl-C: a server without a GPU, for trying things out."""
    from ..simulator import SimulatedServer

    try:
        server = SimulatedServer(host=host, port=port, step_time=step_time, version=version, output_dir=output_dir)
        asyncio.run(_serve(server))
    except ValueError as exc:
        fail(USAGE, exc)
    except OSError as exc:
        fail(FAILED, f"cannot listen on {host} port {port}: {exc.strerror or exc}")


async def _serve(server: SimulatedServer) -> None:
    with Interrupts() as interrupts:
        async with server:
            print(f"simulating ComfyUI {server.version} on {server.url} until Ctrl-C")
            print(f"try it: acomfy run --server {server.url} text_to_image", flush=True)
            await interrupts.first.wait()
