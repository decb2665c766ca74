"""The servers under test, each a process of its own on a free loopback port: kvmeta, the echo, redis.

They are told to stop by SIGTERM and waited for, so that a store served from the data directory is closed
whole.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import psutil

from bench.timing import Progress

_ROOT = Path(__file__).resolve().parents[1]
_READY_S = 240
_STOP_S = 90


class Server:
    """A process that answers. `pid` is its own."""

    def __init__(self, command: list[str], **pipes: Any) -> None:
        self._process = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, text=True, **pipes)

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def memory_bytes(self) -> tuple[int, int]:
        """Return the resident memory: all of it, and the anonymous part (without mapped files)."""
        whole = psutil.Process(self.pid).memory_info()
        return whole.rss, whole.rss - whole.shared  # on Linux "shared" is what files back

    def stop(self) -> None:
        """Tell the process to end and wait until it has."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Kvmeta(Server):
    """`kvmeta serve` on the store `data`, as a user starts it; `target` is what clients open."""

    def __init__(self, data: Path) -> None:
        words = ["serve", "--data", str(data), "--listen", "127.0.0.1:0", "--log-format", "json"]
        super().__init__([sys.executable, "-m", "kvmeta", *words], stderr=subprocess.PIPE)
        self.target = ""
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        with Progress("kvmeta serve"):
            self._ready.wait(_READY_S)
        if not self.target:
            self.stop()
            raise RuntimeError("kvmeta serve did not get ready:\n" + "".join(self._lines))

    def stop(self) -> None:
        """Tell the server to end and wait until its store is closed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._reader.join(_STOP_S)
        super().stop()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:  # to the end, so that the server never waits for a reader
            self._lines = [*self._lines[-20:], line]
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "ready":
                self.target = f"kvmeta://{event['address']}"
                self._ready.set()
        self._ready.set()


class Echo(Server):
    """bench/echo.py; `address` is HOST:PORT."""

    def __init__(self) -> None:
        super().__init__([sys.executable, "-m", "bench.echo"], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            self.stop()
            raise RuntimeError("the echo server did not start")
        self.address = f"127.0.0.1:{port}"


class Redis(Server):
    """redis-server on `directory`: it holds what dump.rdb there holds, nothing where there is none.

    It never writes the dump unless told to. With `durable` it starts empty, and each write is synced first.
    """

    def __init__(self, directory: Path, *, durable: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=not durable)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = {
            "port": str(self.port), "bind": "127.0.0.1", "dir": str(directory),
            "dbfilename": "dump.rdb", "save": "",
            "rdbcompression": "no",  # hashes do not shrink, and a plain dump is read sooner
            "appendonly": "yes" if durable else "no", "appendfsync": "always",
            "auto-aof-rewrite-percentage": "0",  # nothing but the writes themselves
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        super().__init__(["redis-server", *words], stdout=subprocess.DEVNULL)
        end = time.monotonic() + _READY_S
        with Progress("redis-server"):
            while not self._answers():
                if self._process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    raise RuntimeError("redis-server did not start")
                time.sleep(0.02)

    def _answers(self) -> bool:
        """Return whether it serves: while it reads its dump it accepts connections, but refuses a PING."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def redis_missing() -> str:
    """Return why there is no Redis to compare with; empty where there is one."""
    if shutil.which("redis-server") is None:
        return "there is no redis-server (Debian's package redis-server has it)"
    missing = [name for name in ("redis", "hiredis") if importlib.util.find_spec(name) is None]
    return f"the Python package {missing[0]} is not installed" if missing else ""


def redis_version() -> str:
    """Return the version of redis-server, such as "7.0.15"."""
    words = subprocess.run(["redis-server", "--version"], stdout=subprocess.PIPE, text=True, check=True)
    return next((word[2:] for word in words.stdout.split() if word.startswith("v=")), "?")
