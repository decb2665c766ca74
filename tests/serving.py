"""Servers for tests: in this process, on a loop of their own; and as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta_server import config
from kvmeta_server.backend import LocalBackend
from kvmeta_server.logs import Log
from kvmeta_server.serving import Server
from tests.patience import HANG_S

PATIENT = kvmeta.ClientOptions(timeout_s=HANG_S, connect_timeout_s=HANG_S, failover_s=HANG_S)
"""Of a client whose calls end because they are done or refused, and not because a machine is slow."""


def free_port() -> int:
    """Return a loopback port that nobody has, out of those that the system gives to nobody by itself.

    A server that is to come back to its port finds it free, however many clients there are meanwhile.
    """
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def served(store: EmbeddedStore, **settings: Any) -> Iterator[str]:
    """Serve `store` on a loop of its own and give its target; a setting is its path with __ for the dot."""
    with running(store, **settings) as server:
        yield f"kvmeta://{server.address}"


@contextmanager
def running(store: EmbeddedStore, **settings: Any) -> Iterator[Server]:
    """Serve `store` as `served` does, and give the server."""
    pairs = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    chosen = config.load(None, {}, {"data": "unused"}, ["listen=127.0.0.1:0", *pairs])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> Server:
        server = Server(chosen, LocalBackend(store), Log("text", "error"))
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(HANG_S)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(HANG_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(HANG_S)
        loop.close()


class ServerProcess:
    """`kvmeta serve` in a process of its own; `target` is what clients open."""

    def __init__(self, data: Path, *arguments: str, port: int = 0, before: tuple[str, ...] = ()) -> None:
        command = [*before, sys.executable, "-m", "kvmeta", "serve", "--data", str(data)]
        command += ["--listen", f"127.0.0.1:{port}", "--log-format", "json", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        self.events: list[dict[str, Any]] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(HANG_S) or not self.target:
            self.stop(signal.SIGKILL)
            raise AssertionError(f"the server did not get ready: {self.events}")

    @property
    def target(self) -> str:
        """Return kvmeta://host:port, empty before the server is ready."""
        return next((f"kvmeta://{each['address']}" for each in self.events if each["event"] == "ready"), "")

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        status = self.process.wait(HANG_S)
        self._reader.join(HANG_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "text", "line": line.rstrip()}
            if event["event"] != "compiling":  # which depends on what ran here before
                self.events.append(event)
            if event["event"] == "ready":
                self._ready.set()
        self._ready.set()
