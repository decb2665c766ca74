"""`kvmeta serve` as an operator meets it: how it starts, why it does not, and what ends it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result

import kvmeta
from kvmeta.cli.main import kvmeta_command
from kvmeta.embedded import EmbeddedStore
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.v1 import kvmeta_pb2_grpc as rpc
from kvmeta_server import command
from tests.patience import HANG_S, until
from tests.serving import PATIENT, ServerProcess


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `kvmeta serve` without the server; return the result and the settings the server would have."""
    called: list[Any] = []
    monkeypatch.setattr("kvmeta_server.serving.serve", called.append)
    monkeypatch.setattr("kvmeta_server.logs.gather", lambda _: None)

    def run(*words: object, env: dict[str, str] | None = None) -> tuple[Result, list[Any]]:
        called.clear()
        return CliRunner().invoke(kvmeta_command, ["serve", *map(str, words)], env=env), called

    return run


def test_flags_variables_and_the_file_make_the_settings(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "kvmeta.toml").write_text('data = "of the file"\n[limits]\ncalls_max = 7\n')
    result, (settings,) = serve(
        "--config", tmp_path / "kvmeta.toml", "--listen", "127.0.0.1:0", "--set", "threads.write=3",
        "--log-format", "json", "--log-level", "warning",
        env={"KVMETA_SERVE_DATA": "of the environment"},
    )  # fmt: skip
    assert result.exit_code == 0
    assert (settings.data, settings.listen, settings.insecure) == ("of the environment", "127.0.0.1:0", False)
    assert (settings.limits.calls_max, settings.threads.write) == (7, 3)
    assert (settings.log.format, settings.log.level) == ("json", "warning")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "kvmeta: data: missing; say where the store is, with --data DIR\n"),
        (["--data", "c", "--set", "nonsense"], "kvmeta: --set nonsense: expected KEY=VALUE"),
        (
            ["--data", "c", "--listen", "0.0.0.0:7400"],
            "kvmeta: --listen: 0.0.0.0:7400 can be reached by others",
        ),
        (["--data", "c", "--listen", "7400"], "kvmeta: --listen: expected HOST:PORT"),
    ],
)
def test_wrong_settings_are_wrong_usage_and_one_line(serve: Any, words: list[str], told: str) -> None:
    result, called = serve(*words)
    assert (result.exit_code, called) == (2, [])
    assert result.stderr.startswith(told)
    assert result.stderr.count("\n") == 1


def test_insecure_allows_an_address_that_others_reach(serve: Any) -> None:
    _, (settings,) = serve("--data", "c", "--listen", "0.0.0.0:7400", "--insecure")
    assert settings.insecure is True


def test_a_missing_package_names_the_pip_command(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvloop" else object())
    result, called = serve("--data", "c")
    assert (result.exit_code, called) == (2, [])
    assert result.stderr == 'kvmeta: kvmeta serve needs uvloop; run: pip install "kvmeta[server]"\n'


@pytest.mark.slow
def test_a_failed_start_is_reported_in_the_log_format(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with EmbeddedStore(tmp_path / "held"):
        for name, code, reason in (("held", 4, "open for writing elsewhere"), ("file", 3, "not a directory")):
            words = ["serve", "--data", str(tmp_path / name), "--listen", "127.0.0.1:0"]
            text = _kvmeta(*words)
            assert text.returncode == code
            assert text.stderr.splitlines()[-1].startswith("kvmeta: ")
            assert reason in text.stderr
            assert "Traceback" not in text.stderr
            machine = _kvmeta(*words, "--log-format", "json")
            failed = [json.loads(line) for line in machine.stderr.splitlines()][-1]
            assert (machine.returncode, failed["event"], failed["exit_code"]) == (code, "failed", code)
            assert reason in failed["message"]


@pytest.mark.slow
def test_a_taken_port_is_reported_and_leaves_the_store_unchanged(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = _kvmeta("serve", "--data", str(tmp_path / "c"), "--listen", address, "--log-format", "json")
    last = json.loads(ended.stderr.splitlines()[-1])
    assert (ended.returncode, last["event"]) == (4, "failed")
    assert last["message"].startswith(f"cannot listen on {address}")
    with kvmeta.open(tmp_path / "c") as store:
        assert store.verify().ok


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_in_order(tmp_path: Path, how: signal.Signals) -> None:
    with ServerProcess(tmp_path / "c") as server:
        with kvmeta.open(server.target, options=PATIENT) as store:
            store.dataset().put("a", kvmeta.Location(1, 2, 3))
        assert server.stop(how) == 0
        told = [event["event"] for event in server.events]
    assert told == ["starting", "opened", "ready", "draining", "closed"]
    with kvmeta.open(tmp_path / "c") as store:
        assert store.dataset().get("a") == kvmeta.Location(1, 2, 3)


@pytest.mark.slow
def test_a_signal_before_a_server_is_ready_ends_it_too(tmp_path: Path) -> None:
    words = ["serve", "--data", str(tmp_path / "c"), "--listen", "127.0.0.1:0", "--log-format", "json"]
    with subprocess.Popen(
        [sys.executable, "-m", "kvmeta", *words], stderr=subprocess.PIPE, text=True
    ) as starting:
        assert starting.stderr is not None
        assert json.loads(starting.stderr.readline())["event"] == "starting"
        starting.send_signal(signal.SIGTERM)
        assert starting.wait(HANG_S) == 0


@pytest.mark.slow
def test_a_call_under_way_ends_before_the_server_does(busy: Busy) -> None:
    busy.server.process.send_signal(signal.SIGTERM)
    assert busy.seen("draining")["calls"] == 1
    with pytest.raises(grpc.RpcError) as refused:
        busy.stub.Describe(pb.DescribeRequest(), timeout=HANG_S)
    assert refused.value.details() == "the server is shutting down"
    busy.go.touch()
    assert busy.call.result() == pb.FlushResponse()
    assert busy.server.process.wait(HANG_S) == 0
    busy.server.stop()
    assert [event["event"] for event in busy.server.events][-2:] == ["draining", "closed"]


@pytest.mark.slow
def test_a_second_signal_ends_a_draining_server_at_once(busy: Busy) -> None:
    busy.server.process.send_signal(signal.SIGTERM)
    busy.seen("draining")
    assert busy.server.stop(signal.SIGTERM) == -signal.SIGTERM
    with pytest.raises(grpc.RpcError) as caught:
        busy.call.result()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert busy.server.events[-1]["event"] == "draining"


_SLOW = """
import sys, time
from pathlib import Path
from kvmeta.cli.main import run
from kvmeta_server.answers import Answers

room = Path(sys.argv[1])

def flush(self, request, flush=Answers.flush):
    (room / "begun").touch()
    while not (room / "go").exists():
        time.sleep(0.01)
    return flush(self, request)

Answers.flush = flush
sys.argv = ["kvmeta", *sys.argv[sys.argv.index("serve"):]]
run()
"""


class Busy:
    """A server with a call under way, a Flush, that ends when `room` has a file `go`."""

    def __init__(self, server: ServerProcess, room: Path) -> None:
        self.server, self.go = server, room / "go"
        self._channel = grpc.insecure_channel(server.target.removeprefix("kvmeta://"))
        self.stub = rpc.StoreServiceStub(self._channel)
        self.call = self.stub.Flush.future(pb.FlushRequest(), timeout=2 * HANG_S)
        self._await((room / "begun").exists)

    def seen(self, event: str) -> dict[str, Any]:
        """Return the log's first line of `event`, when it is there."""

        def lines() -> list[dict[str, Any]]:
            return [each for each in list(self.server.events) if each["event"] == event]

        self._await(lines)
        return lines()[0]

    def _await(self, condition: Callable[[], Any]) -> None:
        def so_or_dead() -> Any:
            return condition() or self.server.process.poll() is not None

        until(so_or_dead, "what is waited for never comes")
        assert condition(), "the server ended"

    def close(self) -> None:
        """Let the client go."""
        self._channel.close()


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Busy]:
    """Give a server with a call under way."""
    with ServerProcess(tmp_path / "c", before=(sys.executable, "-c", _SLOW, str(tmp_path))) as server:
        under_way = Busy(server, tmp_path)
        yield under_way
        under_way.close()


def _kvmeta(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvmeta", *words], capture_output=True, text=True, check=False, timeout=HANG_S
    )


@pytest.mark.slow
def test_a_supervised_server_is_started_again_after_a_read_error_and_drains_at_sigterm(
    tmp_path: Path,
) -> None:
    with ServerProcess(tmp_path / "store", "--supervise") as server:
        with kvmeta.open(server.target, options=PATIENT) as store:
            store.dataset().put([1], np.zeros(1, kvmeta.LOCATION))
        (started,) = [event for event in server.events if event["event"] == "starting"]
        assert started["pid"] != server.process.pid
        os.kill(started["pid"], signal.SIGBUS)  # as a page that cannot be read would
        until(
            lambda: [event["event"] for event in server.events].count("ready") == 2,
            "the server is not started again",
        )
        again = [event["address"] for event in server.events if event["event"] == "ready"][1]
        with kvmeta.open(f"kvmeta://{again}", options=PATIENT) as store:
            assert store.dataset().lookup([1]).found.all()
        assert server.stop() == 0
    assert [event["event"] for event in server.events].count("read error") == 1
