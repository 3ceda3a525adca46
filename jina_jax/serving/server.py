"""A server in its process or thread: bound first, then loaded, ready, and drained at its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn

from jina_jax.runtime.distributed import spans_processes
from jina_jax.serving.app import make_app
from jina_jax.serving.protocol import BoundedProtocol
from jina_jax.serving.scheduler import Scheduler
from jina_jax.serving.service import Service
from jina_jax.serving.settings import Settings
from jina_jax.serving.state import Phase, State

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

_LOGGER = logging.getLogger("jina_jax.serving")
_BACKLOG = 2048
_KEEP_ALIVE = 75  # seconds; longer than most proxies keep idle connections
_POLL = 0.05  # seconds
_LATE = 2  # seconds in which replies are sent to requests that the drain ended


class Server:
    """A server of one model.

    Args:
      load: returns the model; called in a thread, once the server answers its probes.
      settings: names and bounds.
      host, port: to listen at; port 0 for any that is free.
      log_requests: log a line of JSON per request.
      on_loaded: called once the model is loaded, and its programs are compiled unless that can
        wait; in the thread that loads.

    Attributes:
      state: what the routes share.
      error: what ended the server, or kept the model from being loaded; None for nothing.

    Raises:
      OSError: if the address cannot be used.
    """

    def __init__(
        self,
        load: Callable[[], JinaEmbeddings],
        settings: Settings,
        host: str = "127.0.0.1",
        port: int = 8080,
        *,
        log_requests: bool = False,
        on_loaded: Callable[[], Any] | None = None,
    ):
        self._load, self._settings, self._on_loaded = load, settings, on_loaded
        self.state = State(settings, log_requests=log_requests)
        self._socket = _bind(host, port)
        self.host, self.port = self._socket.getsockname()[:2]
        self.error: BaseException | None = None
        self._uvicorn = _Uvicorn(self._config(), settings.drain, self._begin_to_end, self._end)

    @property
    def url(self) -> str:
        """Where it can be reached."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def run(self) -> int:
        """Serve until a signal or ``stop``; return the process's exit status.

        Raises:
          Exception: that of a model that cannot be loaded.
        """
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self.serve())
        if self.error is not None:
            raise self.error
        return 1 if self.state.phase is Phase.DEAD else 0

    def stop(self) -> None:
        """End as after SIGTERM; from any thread."""
        self._uvicorn.should_exit = True

    async def serve(self) -> None:
        """Serve until a signal or ``stop``."""
        loop = asyncio.get_running_loop()
        # Nobody waits for the thread: a server that is to end does not load its model first.
        threading.Thread(target=self._load_in_thread, args=(loop,), daemon=True).start()
        try:
            await self._uvicorn.serve(sockets=[self._socket])
        finally:
            self._begin_to_end()
            self._end()
            self._socket.close()

    def _config(self) -> uvicorn.Config:
        return uvicorn.Config(
            make_app(self.state),
            http=BoundedProtocol.within(self._settings.read_timeout),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(self._settings.drain) + _LATE,
            backlog=_BACKLOG,
        )

    def _load_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            model = self._loaded()
        except BaseException as error:
            end = functools.partial(self._fail, error)
        else:
            end = functools.partial(self._become_ready, model)
        with contextlib.suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(end)

    def _become_ready(self, model: JinaEmbeddings) -> None:
        try:
            scheduler = Scheduler(model, self._settings, self.state.metrics, self._die)
        except Exception as error:
            self._fail(error)
            return
        self.state.become_ready(Service(model, self._settings, self.state.metrics, scheduler))
        _LOGGER.info("ready at %s", self.url)
        if self._settings.lazy:
            warm = functools.partial(model.warmup, self._settings.warmup_length, threads=1)
            threading.Thread(target=warm, name="jina-jax-warmup", daemon=True).start()

    def _fail(self, error: BaseException) -> None:
        self.error, self.state.phase = error, Phase.FAILED
        self.stop()

    def _loaded(self) -> JinaEmbeddings:
        """Load the model, and compile its programs unless that can wait."""
        model = self._load()
        model.config.task_id(self._settings.default_task)
        if spans_processes(model.engine.mesh):
            raise ValueError("model: expected a mesh of this process alone, got one of several")
        if not self._settings.lazy:
            model.warmup(self._settings.warmup_length)
        model.encode("ready")
        _LOGGER.info("%r, %d programs", model, model.engine.compiled)
        if self._on_loaded is not None:
            self._on_loaded()
        return model

    def _begin_to_end(self) -> None:
        if self.state.phase in (Phase.LOADING, Phase.READY):
            self.state.phase = Phase.DRAINING

    def _end(self) -> None:
        """End what is under way; requests that wait are answered with status 503."""
        if self.state.loaded is not None:
            self.state.loaded.scheduler.stop()

    def _die(self) -> None:
        self.state.phase = Phase.DEAD
        self.stop()


class _Uvicorn(uvicorn.Server):
    """Uvicorn, which ends at once at the second signal of any kind, and does not raise it again."""

    def __init__(
        self,
        config: uvicorn.Config,
        drain: float,
        on_exit: Callable[[], None],
        on_late: Callable[[], None],
    ):
        super().__init__(config)
        self._drain, self._on_exit, self._on_late = drain, on_exit, on_late

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_exit()
        late = asyncio.get_running_loop().call_later(self._drain, self._on_late)
        ending = asyncio.ensure_future(super().shutdown(sockets))
        while not ending.done() and not self.force_exit:
            await asyncio.wait({ending}, timeout=_POLL)
        late.cancel()
        if not ending.done():  # uvicorn would wait for connections, in some releases of Python
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            ending.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.signal(name, self.handle_exit) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_exit()


@contextlib.contextmanager
def run(
    model: JinaEmbeddings, *, host: str = "127.0.0.1", port: int = 0, **settings: Any
) -> Iterator[Server]:
    """Serve a model in a thread, for tests and notebooks.

    >>> with jina_jax.serving.run(model) as server:
    ...     client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")

    Args:
      model: the model, which can be used beside the server.
      host, port: to listen at; port 0 for any that is free.
      **settings: of ``Settings``.

    Yields:
      The server, once it is ready.

    Raises:
      RuntimeError: if the model cannot be served; its cause is the reason.
    """
    server = Server(lambda: model, Settings(**settings), host, port)
    thread = threading.Thread(
        target=_keep_error, args=(server,), name="jina-jax-serve", daemon=True
    )
    thread.start()
    try:
        while server.state.phase is Phase.LOADING and thread.is_alive():
            thread.join(0.01)
        if server.state.phase is not Phase.READY:
            raise RuntimeError("the server did not start") from server.error
        yield server
    finally:
        server.stop()
        thread.join()
        if server.state.loaded is not None:
            server.state.loaded.scheduler.join(_LATE)


def _keep_error(server: Server) -> None:
    """Run a server in a thread, in which nobody could catch an exception."""
    try:
        server.run()
    except BaseException as error:
        server.error = error


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from None
    found.listen(_BACKLOG)
    return found


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
