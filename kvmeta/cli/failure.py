"""How a command fails: the exit codes, and which error means which.

The codes are a contract with scripts: a code's meaning never changes, `--help` prints this table, and a test
checks that every class of `kvmeta.errors` has its place.
"""

from __future__ import annotations

import os
from typing import IO, Any

import click

NOT_FOUND, USAGE, DAMAGED, UNAVAILABLE, SOFTWARE, INTERRUPTED = 1, 2, 3, 4, 70, 130

CODES = {
    0: "done, and everything asked for was found",
    NOT_FOUND: "something asked for was not found: a file, a dataset, a volume, a store",
    USAGE: "wrong usage: an argument, an option or a file of a kind that cannot be handled",
    DAMAGED: "damaged or foreign bytes: in the store, in an archive",
    UNAVAILABLE: "the store, its server or a device is locked, full, read-only or does not answer",
    SOFTWARE: "a fault of the program; KVMETA_DEBUG=1 shows where",
    INTERRUPTED: "interrupted",
}

_CODE_OF = {  # class name in kvmeta.errors -> code; names, because importing the classes imports numpy
    "InputError": USAGE,
    "NotFoundError": NOT_FOUND,
    "StoreLockedError": UNAVAILABLE,
    "FormatError": DAMAGED,
    "CorruptionError": DAMAGED,
    "StorageFullError": UNAVAILABLE,
    "ReadOnlyError": UNAVAILABLE,
    "UnavailableError": UNAVAILABLE,
    "DeadlineError": UNAVAILABLE,
    "OutcomeUnknownError": UNAVAILABLE,
    "IncompleteBatchError": DAMAGED,
    "UnsupportedError": USAGE,
    "EngineNotInstalledError": USAGE,
    "KvmetaError": UNAVAILABLE,
}

_WORDS = {  # what the API calls a thing -> what the command line calls it
    'mode="a" makes one': "kvmeta index makes one",
    'mode="r" reads beside the writer': "commands that only read work beside the writer",
    "; create_dataset makes one": "; kvmeta index --create-dataset makes one",
    "store.volumes.add": "kvmeta volumes add",
    'or open with mode="r"': "or use commands that only read",
    "run verify to see": "run kvmeta verify to see",
}


class Failure(click.ClickException):
    """The end of a command: one line on stderr, `kvmeta: <message>`, and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = code  # click reads it here, though it is typed as the class's

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the line."""
        click.echo(f"kvmeta: {self.message}", file=file, err=file is None)


def failure_of(error: BaseException) -> Failure:
    """Return what an error means to the command line; one that is none of ours is a fault of the program."""
    if isinstance(error, (KeyboardInterrupt, EOFError, click.Abort)):
        notes = getattr(error, "__notes__", [])  # what was done so far, from who knows it
        return Failure("; ".join(["interrupted", *notes]), INTERRUPTED)
    code = _code_of(error)
    if code is not None:
        return Failure(_in_our_words(str(error)), code)
    if isinstance(error, OSError):
        from kvmeta.errors import from_os_error

        return failure_of(from_os_error(error, "using", error.filename or "a file"))
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return Failure(f"a fault of the program, {told} (KVMETA_DEBUG=1 shows where)", SOFTWARE)


def _in_our_words(message: str) -> str:
    for phrase, ours in _WORDS.items():
        message = message.replace(phrase, ours)
    return " ".join(message.split())


def _code_of(error: BaseException) -> int | None:
    names = [base.__name__ for base in type(error).__mro__ if base.__module__ == "kvmeta.errors"]
    if "IncompleteBatchError" in names and error.__cause__ is not None:  # why the first of them failed
        return _code_of(error.__cause__) or DAMAGED
    return next((_CODE_OF[name] for name in names if name in _CODE_OF), None)


def debug_wanted() -> bool:
    """Tell whether KVMETA_DEBUG asks for tracebacks."""
    return os.environ.get("KVMETA_DEBUG", "") not in ("", "0")
