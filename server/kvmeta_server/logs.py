"""The server's log: events with fields, on stderr, as text for people or as JSON for machines.

One event is one line, in JSON always; in text only a traceback takes more. The log never ends what it tells
of: where it cannot be written (`kvmeta serve 2>&1 | head`, a full disk) its lines are lost.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog


class Log:
    """Writes events. `kind` is "text" or "json", `level` one of logging's names in lower case."""

    def __init__(self, kind: str = "text", level: str = "info") -> None:
        renderers: list[Any] = [structlog.processors.JSONRenderer()]
        if kind != "json":
            console = structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=0,
                exception_formatter=structlog.dev.plain_traceback,
            )
            renderers = [_on_one_line, console]
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(cast(TextIO, _Stderr())),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                *renderers,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
            cache_logger_on_first_use=True,
        )

    def info(self, event: str, **fields: Any) -> None:
        """Tell of something that is as it should be."""
        self._logger.info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Tell of something that an operator may want to change."""
        self._logger.warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Tell of something that an operator must change."""
        self._logger.error(event, **fields)

    def debug(self, event: str, **fields: Any) -> None:
        """Tell of one call."""
        self._logger.debug(event, **fields)

    def fault(self, where: str, error: BaseException) -> None:
        """Tell of a fault of the program, with its traceback."""
        self._logger.error("fault", where=where, exc_info=error)


def gather(log: Log) -> None:
    """Let what Python and its libraries tell by their own ways go into `log`, for the rest of the process."""
    logging.basicConfig(handlers=[_Gatherer(log)], level=logging.WARNING, force=True)
    logging.captureWarnings(True)

    def ended(end: threading.ExceptHookArgs) -> None:
        if end.exc_value is not None:
            log.fault(end.thread.name if end.thread else "a thread", end.exc_value)

    threading.excepthook = ended


class _Gatherer(logging.Handler):
    """Hands the records of Python's logging to a Log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._log.fault(f"{record.name}: {record.getMessage()}", error)
            return
        tell = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        tell("library", logger=record.name, message=record.getMessage().strip())


class _Stderr:
    """The process's stderr of the moment; what it does not take is lost."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a closed pipe, a full disk; a closed file
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def _on_one_line(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what is not printable, which may come from a client: it could pass for a line of ours."""
    for name, value in event.items():
        if isinstance(value, str) and name != "exception" and not value.isprintable():
            event[name] = "".join(each if each.isprintable() else "\ufffd" for each in value)
    return event
