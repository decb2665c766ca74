"""Calls and programs: what is asked of a server, without saying how it is sent. One description, two SDKs.

A *program* is a generator. It yields calls that may be under way at once; whoever runs it sends them, gives
each reply to its call's `take`, and sends back one entry a call sent: None, or the error that ended it. After
an error no further call of those yielded is sent. What the program returns is the operation's result.

    connections.py                             programs.py, catalogue.py
    run(program) ── next ────────────────────> yields Calls (encoded as they are taken)
         │  send, a few in flight, try again
         └─ errors ── send ──────────────────> raises, or returns columns
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message

from kvmeta.errors import KvmetaError
from kvmeta.protocol.messages import ColumnMessage, parse
from kvmeta.protocol.methods import METHODS, Method

T = TypeVar("T")
Errors = Sequence[KvmetaError | None]


class Call(NamedTuple):
    """One message to a server, as bytes.

    `take` is given the reply's bytes; it raises InputError where they are not what the protocol says.
    `repeatable`: sending it twice does what sending it once does. `to`: whom to ask, in turn; where it is
    empty, whoever the connection is to.
    """

    method: Method
    request: bytes
    take: Callable[[bytes], None]
    repeatable: bool
    to: tuple[str, ...] = ()


Program = Generator[Iterable[Call], Errors, T]


def call_of(
    name: str, request: Message | ColumnMessage, take: Callable[[bytes], None], to: tuple[str, ...] = ()
) -> Call:
    """Return a call by its name."""
    method = METHODS[name]
    return Call(method, request.SerializeToString(), take, method.may_repeat(request), to)


def ask(name: str, request: Message, to: tuple[str, ...] = ()) -> Program[Any]:
    """Make one call and return its reply."""
    replies: list[Any] = []

    def take(raw: bytes) -> None:
        replies.append(parse(METHODS[name].response, raw))

    yield from send(call_of(name, request, take, to))
    return replies[0]


def send(call: Call) -> Program[None]:
    """Make one call."""
    raise_first((yield [call]))


def raise_first(errors: Errors) -> None:
    """Raise the first of the errors that there is."""
    for error in errors:
        if error is not None:
            raise error
