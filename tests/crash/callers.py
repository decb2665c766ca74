"""Calls in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.patience import HANG_S


class Caller:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._error: BaseException | None = None

        def run() -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - the test judges it
                self._error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def error(self) -> BaseException | None:
        """Return what the call raised, once it has ended."""
        self.thread.join(HANG_S)
        assert not self.thread.is_alive(), "the call never ended"
        return self._error


def in_a_thread(call: Callable[[], Any]) -> BaseException | None:
    return Caller(call).error()
