"""The log: one event a line, for people and for machines, whatever befalls it."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kvmeta_server import logs
from kvmeta_server.logs import Log


@pytest.fixture
def gathered() -> Iterator[None]:
    """Undo what `gather` does to the process."""
    root, hook = logging.getLogger(), threading.excepthook
    handlers, level = root.handlers[:], root.level
    logs.gather(Log("json"))
    yield
    logging.captureWarnings(False)
    root.handlers[:], threading.excepthook = handlers, hook
    root.setLevel(level)


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_json_has_one_object_a_line_with_the_events_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log("json")
    log.info("ready", address="127.0.0.1:1", path="odd\n\udcff")
    log.fault("Lookup", ValueError("bad\nluck"))
    ready, fault = events(capsys)
    assert (ready["event"], ready["level"], ready["path"]) == ("ready", "info", "odd\n\udcff")
    assert ready["timestamp"].endswith("Z")
    assert (fault["where"], fault["level"]) == ("Lookup", "error")
    assert fault["exception"].endswith("ValueError: bad\nluck")


def test_foreign_text_cannot_forge_a_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    Log("text").warning("refused", message="\x1b[2Kx\n2026-01-01 [info] ready", plain="name of ärger")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "\N{REPLACEMENT CHARACTER}[2Kx\N{REPLACEMENT CHARACTER}2026-01-01" in err
    assert "name of ärger" in err
    assert "\x1b" not in err


def test_a_fault_in_text_comes_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise KeyError("lost")
    except KeyError as error:
        Log("text").fault("job", error)
    err = capsys.readouterr().err
    assert "fault" in err
    assert "Traceback (most recent call last)" in err
    assert "KeyError: 'lost'" in err


def test_events_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log("json", "warning")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [each["event"] for each in events(capsys)] == ["c", "d"]


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError("closed file")]
)
def test_a_failing_log_output_loses_only_its_lines(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Broken:
        def write(self, _: str) -> None:
            raise error

        def flush(self) -> None:
            raise error

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stderr", Broken())
    Log("text").info("ready")
    Log("json").fault("call", RuntimeError("x"))


@pytest.mark.usefixtures("gathered")
def test_messages_of_libraries_and_python_become_events(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("grpc").error("two\nlines %d", 3)
    logging.getLogger("asyncio").error("never retrieved", exc_info=ValueError("lost"))
    thread = threading.Thread(target=lambda: 1 / 0, name="kvmeta-x")
    thread.start()
    thread.join()
    told, lost, ended = events(capsys)
    assert (told["event"], told["logger"], told["message"]) == ("library", "grpc", "two\nlines 3")
    assert lost["where"] == "asyncio: never retrieved"
    assert "ValueError: lost" in lost["exception"]
    assert ended["where"] == "kvmeta-x"
    assert "ZeroDivisionError" in ended["exception"]


@pytest.mark.slow
def test_python_warnings_become_events() -> None:
    code = (
        "import warnings\nfrom kvmeta_server import logs\n"
        "logs.gather(logs.Log('json'))\nwarnings.warn('old', UserWarning)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "old" in json.loads(ended.stderr)["message"]
