"""The server's log: events with fields, on stderr, as text for people or as JSON for machines."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


class Log:
    """Writes events. `kind` is "text" or "json", `level` one of logging's names in lower case."""

    def __init__(self, kind: str = "text", level: str = "info") -> None:
        renderer: Any = (
            structlog.processors.JSONRenderer()
            if kind == "json"
            else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
        )
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                renderer,
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

    def debug(self, event: str, **fields: Any) -> None:
        """Tell of one call."""
        self._logger.debug(event, **fields)

    def fault(self, where: str, error: BaseException) -> None:
        """Tell of a fault of the program, with its traceback."""
        self._logger.error("fault", where=where, exc_info=error)
