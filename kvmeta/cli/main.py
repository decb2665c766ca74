"""The command `kvmeta`: its commands, found when they are needed, and the one place where errors end.

    kvmeta --> Commands.invoke --> a command --> kvmeta.open(...)
                     |
                     +-- any exception, Ctrl-C, closed pipe --> one line on stderr and an exit code

Nothing here or in the other files of this room imports numpy, numba or the engine before a command runs, so
that `kvmeta --help` is immediate. Other packages add commands by entry points of the group `kvmeta.commands`,
each a click command; their code is not loaded before one of them is called.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from kvmeta import compiling
from kvmeta.cli.failure import CODES, INTERRUPTED, SOFTWARE, Failure, debug_wanted, failure_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PLUGIN_GROUP = "kvmeta.commands"
_BUILT_IN = {  # command -> module, object
    "pack": ("kvmeta.cli.pack", "pack"),
    "index": ("kvmeta.cli.index", "index"),
    "get": ("kvmeta.cli.get", "get"),
    "lookup": ("kvmeta.cli.lookup", "lookup"),
    "cat": ("kvmeta.cli.cat", "cat"),
    "scan": ("kvmeta.cli.scan", "scan"),
    "stat": ("kvmeta.cli.store", "stat"),
    "verify": ("kvmeta.cli.store", "verify"),
    "compact": ("kvmeta.cli.store", "compact"),
    "volumes": ("kvmeta.cli.volumes", "volumes"),
    "plan": ("kvmeta.cli.plan", "plan"),
    "cluster": ("kvmeta.cli.cluster", "cluster"),
}


class Commands(click.Group):
    """The built-in commands in a reading order, then the plug-ins' by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names without loading a plug-in."""
        return [*_BUILT_IN, *sorted(set(_plugins()) - set(_BUILT_IN))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command; a built-in name cannot be taken by a plug-in."""
        if cmd_name in _BUILT_IN:
            module, name = _BUILT_IN[cmd_name]
            command: click.Command = getattr(import_module(module), name)
            return command
        point = _plugins().get(cmd_name)
        if point is None:
            return None
        try:
            loaded = point.load()
        except Exception as error:
            message = f"the plug-in of `kvmeta {cmd_name}` does not load: {type(error).__name__}: {error}"
            _show_traceback(error)
            raise Failure(message, SOFTWARE) from error
        if not isinstance(loaded, click.Command):
            raise Failure(f"the plug-in of `kvmeta {cmd_name}` is not a click command", SOFTWARE)
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; a plug-in is named with its package, for its help is not loaded.

        Those of this package are as light as the built-in ones and show their help.
        """
        rows = []
        for name in _BUILT_IN:
            command = self.get_command(ctx, name)
            rows.append((name, command.get_short_help_str(formatter.width) if command else ""))
        for name, point in sorted(_plugins().items()):
            if name in _BUILT_IN:
                continue
            package = point.dist.name if point.dist else point.module
            told = f"(from {package})"
            if package == "kvmeta":
                with suppress(Failure):  # an installation that lacks a part still has its help
                    command = self.get_command(ctx, name)
                    told = command.get_short_help_str(formatter.width) if command else told
            rows.append((name, told))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes, from the table that decides them."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in CODES.items()])

    def make_context(self, *args: Any, **named: Any) -> click.Context:
        """Read the command line; Ctrl-C meanwhile (`--help` imports every command) is told like any other."""
        try:
            return super().make_context(*args, **named)
        except KeyboardInterrupt as error:
            raise Failure("interrupted", INTERRUPTED) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every error of ours leaves as one line and a code."""
        with _errors_told(ctx):
            return super().invoke(ctx)


@contextmanager
def _errors_told(ctx: click.Context) -> Iterator[None]:
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # later, at exit, a closed pipe could no longer be answered quietly
    except BrokenPipeError:
        # The reader has seen enough (`| head`). Python would complain once more at exit, flushing to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ctx.exit(0)
    except (click.ClickException, click.exceptions.Exit):
        raise
    except (Exception, KeyboardInterrupt, EOFError) as error:
        _show_traceback(error)  # before the line that sums it up; the exit code stays what it is
        raise failure_of(error) from error


def _show_traceback(error: BaseException) -> None:
    if debug_wanted():
        traceback.print_exception(error)


def _plugins() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # as slow as the rest of the start; built-ins do without

    return {point.name: point for point in entry_points(group=PLUGIN_GROUP)}


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        import kvmeta

        click.echo(f"kvmeta {kvmeta.__version__}")
        ctx.exit()


@click.command(
    "kvmeta", cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
def kvmeta_command() -> None:
    """Remember where billions of small files lie, and hand them out again.

    \b
    kvmeta pack photos/ --into shards/             many small files into a few tars
    kvmeta index shards/ --store catalog           remember where each one lies
    kvmeta get photos/cat.jpg --store catalog      ask where
    kvmeta cat photos/cat.jpg --store catalog      read it

    --store is a directory, or kvmeta://HOST:PORT of a server (see kvmeta serve). KVMETA_STORE names the store
    where --store is not given; KVMETA_DEBUG=1 shows tracebacks.
    """  # noqa: D301 - click looks for the backspace itself, to leave the lines after it as they are


def run() -> None:
    """Run the command line of this process and exit."""
    compiling.tell_by(lambda words: click.echo(words, err=True))
    try:
        kvmeta_command(prog_name="kvmeta")
    except KeyboardInterrupt as error:  # before or after click has its own net up
        failure = Failure("interrupted", INTERRUPTED)
        failure.show()
        raise SystemExit(failure.exit_code) from error
