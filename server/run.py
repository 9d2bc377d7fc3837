"""Run: a server from its settings to its end: the socket, uvicorn, and what SIGTERM does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

from loratory.errors import InputError
from loratory.executor.cpu_threads import set_cpu_threads
from loratory.server.settings import ServerSettings
from loratory.server.settings_check import check_settings

LOG = logging.getLogger("loratory.server")


def bind(host: str, port: int) -> socket.socket:
    """A socket on ``host`` and ``port`` (0: any that is free). Raises `InputError` where there is none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"--host {host!r} is no address of this machine ({error.strerror}): check it") from None
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        made.close()
        raise InputError(
            f"port {port} of {host} cannot be used ({error.strerror}): end what listens there, or give another --port"
        ) from None
    return made


def raise_open_files() -> None:
    """Let this process open as many files as it may: every stream is one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(settings: ServerSettings) -> None:
    """Run a server until SIGTERM or SIGINT has ended it. Raises `InputError` for what the settings get wrong.

    The first signal drains: new requests get 503, those in progress have ``drain_s`` seconds. The second ends at once.
    """
    check_settings(settings)
    listening = bind(settings.host, settings.port)
    with listening:
        set_cpu_threads()
        try:
            import fastapi  # noqa: F401 - a sentence for its absence comes before a model is loaded
            import torch  # noqa: F401
            import transformers  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            raise InputError(f'the server needs {error.name}: pip install "loratory[serve]"') from None
        from loratory.server.access_log import log_to_stderr
        from loratory.server.lifetime import Lifetime
        from loratory.server.server import build_server

        raise_open_files()
        with log_to_stderr(settings.log_json):
            server = build_server(settings)
            try:

                async def run() -> None:
                    await Lifetime(server, listening).run(lambda url: _tell(server.name, url, settings))

                asyncio.run(run())
            finally:
                server.close()
            LOG.info("the server has stopped")


def _tell(name: str, url: str, settings: ServerSettings) -> None:
    LOG.info("serving %s at %s under the policy %s", name, url, settings.policy)
    local = url.startswith(("http://127.", "http://[::1]"))
    if not local and not settings.api_keys:
        LOG.warning("whoever reaches this machine can use the server: give --api-key, or --host 127.0.0.1")
