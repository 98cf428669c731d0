"""`SimulatedServer`: a ComfyUI without a GPU, on a real port."""

from __future__ import annotations

import asyncio
import difflib
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from aiohttp import web

from .. import events
from .cache import Cache, CacheMode
from .clock import Clock
from .cloud import Cloud
from .execution import Executor
from .faults import Faults
from .files import Folders
from .image_nodes import image_nodes
from .ledger import Ledger, WrittenLedger
from .media_nodes import media_nodes
from .model_nodes import CHECKPOINTS, LORAS, model_nodes
from .nodes import Inputs, Node, check_declaration
from .queue import Item, PromptQueue
from .routes import Routes
from .scripting import Script, Scripts
from .services import Services
from .sockets import Sockets
from .versions import capabilities
from .worker import Worker

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

# As ComfyUI 0.3.64 lists them in GET /models.
_MODEL_FOLDERS = (
    *("checkpoints", "configs", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision", "style_models"),
    *("embeddings", "diffusers", "vae_approx", "controlnet", "gligen", "upscale_models", "custom_nodes"),
    *("hypernetworks", "photomaker", "classifiers", "model_patches", "audio_encoders"),
)


class SimulatedServer:
    """A ComfyUI server without a GPU: real queue, real validation, real caching, pictures made with Pillow.

    It runs in the caller's event loop, on a real port, and speaks ComfyUI's protocol with its quirks::

        async with SimulatedServer(step_time=0.05) as server:
            async with acomfy.Client(server.url) as client:
                result = await client.run(workflow)
            assert server.ledger[result.prompt_id].executions == 1

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one, which ``url`` then tells.
        step_time: Seconds that a sampler step takes; 0 is as fast as it goes.
        version: The ComfyUI version whose behaviour is simulated.
        preview_size: The longer side of a preview, in pixels.
        max_upload_size: The largest request body, in bytes.
        max_history: How many finished prompts the history keeps.
        cache: What is kept between prompts: of the previous one (``classic``), the most recently used (``lru``), or
            nothing (``none``).
        cache_size: How many nodes an ``lru`` cache keeps.
        clock: The time that nodes take and timestamps tell; a `VirtualClock` makes hours pass at once.
        latency: Seconds that every answer and every message take on their way.
        output_dir: Where SaveImage saves; None is a temporary directory that goes when the server is closed.
        multi_user: As with ``--multi-user``: user data belongs to the user whom the ``comfy-user`` header names.
        assets: As with ``--enable-assets``: the server knows files by their content and tags.
        cloud: Behave like Comfy Cloud; see `Cloud`.
        write_ledger: Gets what is entered into the ledger at once, as a line of JSON; `read_ledgers` reads them.

    Attributes:
        prompts: The body of every ``POST /prompt`` that was queued, in order.
        uploads: What became of every upload: name, subfolder, type, size and sha256.
        requests: How often each route was asked for, by method and path (``("GET", "/history/{prompt_id}")``).
        response_bytes: The size of the answers, by the same keys; files and sockets are not counted.
        faults: What can go wrong, to switch on.
        ledger: What was executed and produced, by prompt_id.
        classes: The node classes, by class_type.
        clock: The time that passes for prompts.
        scripts: What `on` made.
        models: Model files by folder; CheckpointLoaderSimple and LoraLoader offer ``checkpoints`` and ``loras``.
        model_metadata: What model files say of themselves, by folder and file name.
        model_previews: WEBP pictures of model files, by folder and file name.
        subgraphs: Published subgraphs by name, each as JSON text.
        node_replacements: What is put in place of old node classes, as ``GET /node_replacements`` tells.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        step_time: float = 0.0,
        version: str = "0.3.64",
        preview_size: int = 512,
        max_upload_size: int = 100 * 2**20,
        max_history: int = 10_000,
        cache: CacheMode = "classic",
        cache_size: int = 100,
        clock: Clock | None = None,
        latency: float = 0.0,
        output_dir: str | Path | None = None,
        multi_user: bool = False,
        assets: bool = False,
        cloud: Cloud | None = None,
        write_ledger: Callable[[str], object] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.version = version
        self.can = capabilities(version)
        self.max_upload_size = max_upload_size
        self.prompts: list[dict[str, Any]] = []
        self.uploads: list[dict[str, Any]] = []
        self.requests: Counter[tuple[str, str]] = Counter()
        self.response_bytes: Counter[tuple[str, str]] = Counter()
        self.ledger = Ledger() if write_ledger is None else WrittenLedger(write_ledger, lambda: self.url)
        self.number = 0
        self.models: dict[str, list[str]] = {folder: [] for folder in _MODEL_FOLDERS}
        self.models["checkpoints"] += CHECKPOINTS
        self.models["loras"] += LORAS
        self.model_metadata: dict[tuple[str, str], dict[str, Any]] = {}
        self.model_previews: dict[tuple[str, str], bytes] = {}
        self.subgraphs: dict[str, str] = {}
        self.node_replacements: dict[str, list[dict[str, Any]]] = {}
        self.multi_user = multi_user
        self.assets = assets
        self.cloud = cloud
        self.classes: dict[str, Node] = {}
        self.folders = Folders()
        self.sockets = Sockets(lambda: len(self.queue), self.features, self.notify, negotiates=self.can.feature_flags)
        if cloud is not None:
            cloud.put_upon(self)
        self.faults = Faults(self)
        self.clock = clock or Clock()
        self.scripts = Scripts(self.clock, self.notify)
        self.queue = PromptQueue(self._queue_changed, max_history)
        self.services = Services(
            self.can,
            self.sockets,
            self.folders,
            self.classes,
            self.ledger,
            step_time,
            preview_size,
            self.faults.thawed,
            self.clock,
            self.scripts,
        )
        self._cache = Cache(cache, cache_size)
        self._worker = Worker(self.queue, Executor(self.services, self._cache), self.faults, self.notify)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._base: Path | None = None
        self._runner: web.AppRunner | None = None
        self._publisher: asyncio.Task[None] | None = None
        self._change = asyncio.Event()
        self._waiting = 0
        self._prefix: str | None = None
        if latency:
            self.faults.delay_answers(latency)
            self.faults.delay_messages(latency)
        self.add_node(*image_nodes(self.folders), *media_nodes())
        self.add_node(*model_nodes(self.models["checkpoints"], self.models["loras"]))

    # --- Starting and stopping -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    @property
    def url(self) -> str:
        """The server's address, as clients take it; only the path when it is mounted in an application."""
        if self._prefix is not None:
            return self._prefix
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def mount(self, app: web.Application, prefix: str) -> None:
        """Serve under a path of an aiohttp application, which starts and stops it, instead of on a port of its own.

        ::

            app = web.Application()
            SimulatedServer().mount(app, "/comfy")
            web.run_app(app)                        # Client("http://127.0.0.1:8080/comfy")

        Faults that take the port away do not, there. Call it before the application runs.
        """
        self._prefix = prefix.rstrip("/")
        app.add_subapp(self._prefix, Routes(self).application())

        async def running(_: web.Application) -> AsyncIterator[None]:
            await self.start()
            yield
            await self.aclose()

        app.cleanup_ctx.append(running)

    def own_path(self, path: str) -> str:
        """Give a request's path below the server's root, without ``/api``."""
        return path.removeprefix(self._prefix or "").removeprefix("/api")

    async def start(self) -> None:
        """Make the folders, listen, and start the worker.

        Raises:
            OSError: The port is taken.
        """
        if self._base is None:
            self._base = Path(tempfile.mkdtemp(prefix="acomfy-simulator-"))
            self.folders.create(self._base, self._output_dir)
        try:
            await self.come_up()
        except OSError:
            await self._remove_folders()
            raise

    async def aclose(self) -> None:
        """Stop everything at once: sockets end without a close frame, and the temporary folders go."""
        await self._stop()
        await self.services.close()
        await self._remove_folders()

    async def _remove_folders(self) -> None:
        if self._base is not None:
            await asyncio.to_thread(shutil.rmtree, self._base, ignore_errors=True)
            self._base = None

    async def come_up(self) -> None:
        """Listen, and start the worker."""
        if self._prefix is None:
            await self._listen()
        if self.cloud is not None:
            await self.cloud.start()
        self._worker.start()
        self.clock.attend(self._working)
        self._publisher = asyncio.create_task(self.sockets.publish())

    async def go_down(self) -> None:
        """End as a killed process does: sockets without a close frame, nothing listens, nothing is remembered."""
        await self._stop()
        for _, prompt_id, *_ in (*self.queue.running.values(), *self.queue.pending):
            self.ledger.settle(prompt_id, "lost")
        self.queue.reset()
        self.sockets.forget()
        self._cache.clear()
        self.folders.clear_temp()
        self.number = 0
        self.services.interrupted = False
        self.notify()

    def _working(self) -> bool:
        """Tell whether a prompt runs or is about to."""
        may_take = self.worker_alive and self._worker.may_take != 0
        return bool(self.queue.running) or (may_take and bool(self.queue.pending))

    def kill_worker(self) -> None:
        """End the worker, as an exception from outside a node does; HTTP and the sockets go on."""
        self._worker.kill()

    async def _listen(self) -> None:
        runner = web.AppRunner(Routes(self).application(), access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, self.host, self.port, reuse_address=True)
        try:
            await site.start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def _stop(self) -> None:
        await self._worker.stop()
        if self.cloud is not None:
            await self.cloud.stop()
        self.clock.leave(self._working)
        if self._publisher is not None:
            self._publisher.cancel()
            await asyncio.wait([self._publisher])
            self._publisher = None
        self.sockets.cut()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --- Node classes ----------------------------------------------------------------------------------------------

    def add_node(self, *nodes: Node) -> None:
        """Add node classes, each in the place of the one with its name if there is one."""
        self.classes.update({node.class_type: node for node in nodes})

    def node(
        self,
        class_type: str,
        *,
        required: Inputs | None = None,
        optional: Inputs | None = None,
        outputs: tuple[str, ...] = (),
        output_node: bool = False,
        concurrent: bool = False,
    ) -> Callable[[Function], Function]:
        """Make a function a node class; see `Node` for the arguments.

        ::

            @server.node("Shout", required={"text": ("STRING",)}, output_node=True)
            def shout(context, text):
                return NodeResult(ui={"text": [text.upper()]})

        Raises:
            TypeError: An input is not declared as `Node` wants it, or the function cannot be called with it.
        """

        def decorate(function: Function) -> Function:
            node = Node(
                class_type,
                function,
                required=required or {},
                optional=optional or {},
                outputs=outputs,
                output_node=output_node,
                concurrent=concurrent,
            )
            check_declaration(node)
            self.add_node(node)
            return function

        return decorate

    def on(self, class_type: str) -> Script:
        """Script what the nodes of a class do, from now on; see `Script`.

        ::

            server.on("KSampler").takes(5).fails_with("no such sampler")
            server.on("CheckpointLoaderSimple").once().fails_with(OutOfMemoryError("the GPU is full"))
            server.on("VAEDecode").where(samples=...).returns(Path("fox.png"))

        Raises:
            ValueError: The server has no such class; `node` makes one.
        """
        if class_type not in self.classes:
            close = difflib.get_close_matches(class_type, self.classes, 1)
            hint = f"did you mean {close[0]!r}?" if close else "server.node(...) makes a class of your own"
            raise ValueError(f"the simulator has no node class {class_type!r}; {hint}")
        return self.scripts.new(self.classes[class_type])

    # --- Watching --------------------------------------------------------------------------------------------------

    async def wait_for(self, predicate: Callable[[], T]) -> T:
        """Wait until a condition holds, looking again whenever anything changed; return what it gave.

        It looks at each change of the queue and the history, each message sent, each request answered and each socket
        opened or closed. Put `asyncio.timeout` around it.
        """
        self._waiting += 1
        try:
            while not (found := predicate()):
                self._change.clear()
                await self._change.wait()
            return found
        finally:
            self._waiting -= 1

    async def wait_idle(self) -> None:
        """Wait until no prompt waits or runs."""
        await self.wait_for(lambda: not len(self.queue))

    async def flush(self) -> None:
        """Wait until every message that the server has queued so far is sent."""
        await self.sockets.flush()

    @property
    def worker_alive(self) -> bool:
        """Whether the worker still takes prompts: an exception from outside a node ends it, as it does ComfyUI's."""
        return self._worker.alive

    @property
    def user_folder(self) -> Path:
        """Where users' files are; it goes when the server is closed."""
        if self._base is None:
            raise RuntimeError("the server has no folders before it is started")
        return self._base / "user"

    def features(self) -> dict[str, Any]:
        """Give the server's feature flags."""
        features: dict[str, Any] = {"supports_preview_metadata": True, "max_upload_size": self.max_upload_size}
        if self.can.node_replacements:
            features |= {"node_replacements": True, "assets": self.assets}
        return features

    def count(self, method: str, path: str) -> None:
        """Enter a request into the books."""
        self.requests[method, path] += 1
        self.notify()

    def count_bytes(self, method: str, path: str, response: web.StreamResponse) -> None:
        """Enter the size of an answer into the books."""
        if isinstance(response, web.Response) and isinstance(response.body, bytes):
            self.response_bytes[method, path] += len(response.body)
        self.notify()

    def notify(self) -> None:
        """Make `wait_for` look again; for nodes of your own that change what it looks at."""
        if self._waiting:
            self._change.set()

    # --- What anybody may do to the queue --------------------------------------------------------------------------

    def accept(self, body: dict[str, Any], item: Item) -> None:
        """Queue a checked prompt, as ``POST /prompt`` does."""
        self.prompts.append(body)
        self.ledger.accept(item[1])
        self.queue.put(item)

    def delete_prompt(self, prompt_id: Any) -> bool:
        """Take a waiting prompt from the queue, as ``POST /queue {"delete": [...]}`` does; False if none waits."""
        deleted = self.queue.delete(prompt_id)
        if deleted:
            self.ledger.settle(prompt_id, "deleted")
        return deleted

    def clear_queue(self) -> None:
        """Take all waiting prompts from the queue, as ``POST /queue {"clear": true}`` does."""
        for _, prompt_id, *_ in self.queue.pending:
            self.ledger.settle(prompt_id, "deleted")
        self.queue.clear()

    def interrupt(self) -> None:
        """Interrupt what runs, as ``POST /interrupt`` does; noticed at its next step, forgotten when nothing runs."""
        self.services.interrupted = True
        self.clock.look()

    def hold(self) -> None:
        """Keep the worker from taking the next prompt, until `release`; what runs goes on."""
        self._worker.may_take = 0

    def release(self, count: int | None = None) -> None:
        """Let the worker take so many prompts more; without a number, end the hold."""
        self._worker.may_take = None if count is None else (self._worker.may_take or 0) + count
        self.queue.wake()

    def cancel_prompt(self, prompt_id: str) -> bool:
        """Take a prompt from the queue or interrupt it, as ``POST /api/jobs/{id}/cancel`` does; False if it is over."""
        if self.delete_prompt(prompt_id):
            return True
        if self.queue.is_running(prompt_id):
            self.interrupt()
            return True
        return False

    def free(self, memory: bool = True) -> None:
        """Empty the cache when the worker comes to it, as ``POST /free`` does."""
        self._worker.free_memory = self._worker.free_memory or memory
        self.queue.wake()

    def _queue_changed(self) -> None:
        self.sockets.send(events.Status(len(self.queue)))
        self.notify()
