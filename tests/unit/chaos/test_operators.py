"""The operator of chaos: tries again what did not work, and knows what took effect without an answer."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from kvmeta.errors import InputError, NotFoundError, OutcomeUnknownError
from tests.chaos import operators
from tests.chaos.operators import Operator


class View:
    """A cluster that answers each drain with the next of some errors, or None."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)

    def drain(self, node: str) -> None:
        """Answer."""
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer


def changed(monkeypatch: pytest.MonkeyPatch, *answers: Exception | None, timeout_s: float = 60.0) -> str:
    monkeypatch.setattr(operators.time, "sleep", lambda _: None)
    operator = Operator("kvmeta://127.0.0.1:1")
    views: Any = cycle([View(*answers)])
    operator._views = views
    return operator.changed(("drain", "n1"), timeout_s)


def test_a_change_is_tried_until_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not changed(monkeypatch, InputError("too few answer"), InputError("too few answer"), None)


def test_a_change_that_never_succeeds_reports_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed(monkeypatch, InputError("too few answer"), timeout_s=-1) == "too few answer"


def test_a_node_missing_after_a_lost_answer_counts_as_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not changed(monkeypatch, OutcomeUnknownError("lost"), NotFoundError("no node n1"))


def test_a_node_that_never_existed_does_not_count_as_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    told = changed(monkeypatch, NotFoundError("no node n1"), timeout_s=-1)
    assert "no node n1" in told
