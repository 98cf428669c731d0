"""``acomfy serve``: simulated ComfyUI servers, on ports of this machine."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import UsageError
from .ends import FAILED, USAGE, fail
from .signals import Interrupts

if TYPE_CHECKING:
    from ..simulator import SimulatedServer

_STEP_TIME = 0.05


def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0 takes a free one.")] = 8188,
    count: Annotated[
        int, typer.Option(metavar="N", min=1, max=256, help="How many servers, on this port and the next ones.")
    ] = 1,
    step_time: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long a sampler step takes.")
    ] = _STEP_TIME,
    latency: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long answers and messages take on their way.")
    ] = 0.0,
    version: Annotated[str, typer.Option(metavar="X.Y.Z", help="The ComfyUI version to behave like.")] = "0.3.64",
    faults: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            metavar="NAME[=VALUE]",
            help="What goes wrong all the time, for example stall-delivery or delay-history=0.2; "
            "'--fault list' names all. Can be given again.",
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", file_okay=False, help="Where SaveImage saves; without it a directory that goes at the end."
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Append to a file what becomes of each prompt, as it happens, one JSON object a line.",
        ),
    ] = None,
) -> None:
    """Serve a simulated ComfyUI until Ctrl-C: a server without a GPU, for trying things out."""
    from ..simulator import SimulatedServer

    if faults and "list" in faults:
        print("\n".join(_fault_lines()))
        return
    options: dict[str, Any] = {"host": host, "step_time": step_time, "version": version, "latency": latency}
    ports = [port and port + number for number in range(count)]
    try:
        with _appending(ledger) as write_ledger:
            options |= {"output_dir": output_dir, "write_ledger": write_ledger}
            servers = [SimulatedServer(**options, port=one) for one in ports]
            for server in servers:
                switch_on(server, faults or ())
            asyncio.run(_serve(servers))
    except (ValueError, UsageError) as exc:
        fail(USAGE, exc)
    except OSError as exc:
        fail(FAILED, f"cannot listen on {host} port {port}: {exc.strerror or exc}")


@contextmanager
def _appending(path: Path | None) -> Iterator[Callable[[str], object] | None]:
    """Open a file for lines, each of which is there at once, even if the process is killed then."""
    if path is None:
        yield None
        return
    try:
        file = path.open("a", encoding="utf-8", buffering=1)
    except OSError as exc:
        raise UsageError(f"--ledger: cannot write {str(path)!r}: {exc.strerror}") from None
    with file:
        yield file.write


async def _serve(servers: list[SimulatedServer]) -> None:
    with Interrupts() as interrupts:
        async with AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server)
                print(f"simulating ComfyUI {server.version} on {server.url} until Ctrl-C")
            print(f"try it: acomfy run --server {servers[0].url} text_to_image", flush=True)
            await interrupts.first.wait()


# --- Faults ----------------------------------------------------------------------------------------------------------


def switch_on(server: SimulatedServer, faults: Iterable[str]) -> None:
    """Switch faults on that last, each named as ``NAME`` or ``NAME=VALUE``.

    Raises:
        UsageError: There is none of that name, or it takes another value; the message says what there is.
    """
    for fault in faults:
        name, equals, text = fault.partition("=")
        method = _lasting(type(server.faults)).get(name)
        if method is None:
            raise UsageError(f"--fault {name!r} is none of: {', '.join(_lasting(type(server.faults)))}")
        values = [_value(fault, text, method)] if equals else []
        try:
            method(server.faults, *values)
        except TypeError:
            raise UsageError(f"--fault {fault!r}: write it as {_written(name, method)}") from None


def _lasting(faults: type) -> dict[str, Callable[..., Any]]:
    """Find the faults that last, by the names that are typed."""
    methods = inspect.getmembers(faults, inspect.isfunction)
    return {
        name.replace("_", "-"): method
        for name, method in methods
        if not name.startswith("_") and method.__annotations__.get("return") == "Lasting"
    }


def _value(fault: str, text: str, method: Callable[..., Any]) -> Any:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    kind = {"int": int, "float": float}.get(parameters[0].annotation, str) if parameters else str
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"--fault {fault!r}: {text!r} is no number") from None


def _written(name: str, method: Callable[..., Any]) -> str:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    if not parameters:
        return name
    first = parameters[0]
    optional = first.default is not first.empty or first.kind is first.VAR_POSITIONAL
    value = f"={first.name.upper()}"
    return f"{name}[{value}]" if optional else f"{name}{value}"


def _fault_lines() -> list[str]:
    from ..simulator import Faults

    lasting = _lasting(Faults)
    width = max(len(_written(name, method)) for name, method in lasting.items())
    return [
        f"{_written(name, method):{width}}  {(inspect.getdoc(method) or '').splitlines()[0]}"
        for name, method in lasting.items()
    ]
