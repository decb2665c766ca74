"""The door: help, plug-ins, how errors leave, and what is not imported."""

import errno
import subprocess
import sys
from importlib.metadata import EntryPoint

import click
import pytest

import kvmeta.errors
from kvmeta.cli import failure, main


def python(code, **named):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **named)


def test_help_lists_the_commands_and_the_exit_codes(run):
    result = run("--help")
    assert result.exit_code == 0
    for name in ("pack", "index", "get", "lookup", "cat", "scan", "stat", "verify", "compact", "volumes"):
        assert f"\n  {name} " in result.stdout
    assert "\n  serve    Serve a store to clients over gRPC.\n" in result.stdout
    for code in failure.CODES:
        assert f"\n  {code} " in result.stdout


def test_the_help_prints_each_example_on_its_own_line(run):
    lines = run("--help").stdout.splitlines()
    examples = [line for line in lines if line.startswith("  kvmeta ")]
    assert [line.split()[1] for line in examples] == ["pack", "index", "get", "cat"]
    assert not any("\\b" in line or "\b" in line for line in lines)


def test_every_kind_of_error_has_its_exit_code():
    kinds = [
        each
        for each in vars(kvmeta.errors).values()
        if isinstance(each, type) and issubclass(each, kvmeta.errors.KvmetaError)
    ]
    assert {kind.__name__ for kind in kinds} == set(failure._CODE_OF)
    assert set(failure._CODE_OF.values()) <= set(failure.CODES)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (kvmeta.errors.NotFoundError("gone"), 1),
        (kvmeta.errors.InputError("wrong"), 2),
        (kvmeta.errors.UnsupportedError("cannot"), 2),
        (kvmeta.errors.CorruptionError("torn"), 3),
        (kvmeta.errors.FormatError("foreign"), 3),
        (kvmeta.errors.StoreLockedError("locked"), 4),
        (kvmeta.errors.StorageFullError("full"), 4),
        (kvmeta.errors.UnavailableError("no server there"), 4),
        (kvmeta.errors.DeadlineError("no answer in time"), 4),
        (kvmeta.errors.OutcomeUnknownError("may or may not have taken effect"), 4),
        (type("NewError", (kvmeta.errors.UnavailableError,), {})("of a plug-in"), 4),
        (OSError(errno.EIO, "Input/output error", "/disk"), 4),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/disk"), 1),
        (ZeroDivisionError("ours"), 70),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_an_error_prints_one_line_and_exits_with_its_code(run, opener, error, code):
    opener.failure = error
    result = run("stat", "--store", "x")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("kvmeta: ")
    assert result.stderr.count("\n") == 1


def test_an_error_message_of_several_lines_is_printed_on_one(run, opener):
    opener.failure = kvmeta.errors.InputError("first\n  second")
    assert run("stat", "--store", "x").stderr == "kvmeta: first second\n"


@pytest.mark.parametrize(
    ("error", "code"), [(kvmeta.errors.InputError("wrong"), 2), (ValueError("ours"), 70)]
)
def test_debug_shows_the_traceback_and_keeps_the_exit_code(run, opener, error, code):
    opener.failure = error
    result = run("stat", "--store", "x", env={"KVMETA_DEBUG": "1"})
    assert result.exit_code == code
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("kvmeta: ")


def test_a_fault_of_the_program_names_the_exception_and_how_to_see_more(run, opener):
    opener.failure = ZeroDivisionError("ours")
    result = run("stat", "--store", "x")
    assert result.stderr == (
        "kvmeta: a fault of the program, ZeroDivisionError: ours (KVMETA_DEBUG=1 shows where)\n"
    )


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ('no store at x; mode="a" makes one', "no store at x; kvmeta index makes one"),
        ("(it has: a); create_dataset makes one", "(it has: a); kvmeta index --create-dataset makes one"),
        ("register it with store.volumes.add", "register it with kvmeta volumes add"),
        ('Check it, or open with mode="r"', "Check it, or use commands that only read"),
        ("are damaged; run verify to see which", "are damaged; run kvmeta verify to see which"),
    ],
)
def test_advice_is_given_in_the_words_of_the_command_line(run, opener, message, told):
    opener.failure = kvmeta.errors.NotFoundError(message)
    assert run("stat", "--store", "x").stderr == f"kvmeta: {told}\n"


@pytest.mark.parametrize(
    ("reason", "code"),
    [(None, 3), (kvmeta.errors.CorruptionError("torn"), 3), (kvmeta.errors.UnavailableError("off"), 4)],
)
def test_an_incomplete_batch_has_the_code_of_its_reason(reason, code):
    error = kvmeta.errors.IncompleteBatchError("part", None, None)
    error.__cause__ = reason
    assert failure.failure_of(error).exit_code == code


def test_an_unknown_command_is_wrong_usage(run):
    assert run("frobnicate").exit_code == 2


# --- plug-ins --------------------------------------------------------------------------------------------


@click.command()
def hello():
    """Say hello."""
    click.echo("hello")


not_a_command = object()


@pytest.fixture
def plugins(monkeypatch):
    def install(**targets):
        points = {name: EntryPoint(name, value, main.PLUGIN_GROUP) for name, value in targets.items()}
        monkeypatch.setattr(main, "_plugins", lambda: points)

    return install


def test_a_plug_in_is_listed_without_being_loaded_and_runs_when_called(run, plugins):
    plugins(hello=f"{__name__}:hello", broken="no.such.module:thing")
    listed = run("--help").stdout
    assert "\n  hello " in listed
    assert "(from no.such.module)" in listed
    assert run("hello").stdout == "hello\n"


def test_a_plug_in_that_fails_to_load_is_named_in_the_error(run, plugins):
    plugins(broken="no.such.module:thing", odd=f"{__name__}:not_a_command")
    result = run("broken")
    assert result.exit_code == 70
    assert "kvmeta broken` does not load" in result.stderr
    assert "not a click command" in run("odd").stderr


def test_a_plug_in_cannot_take_a_built_in_name(run, plugins, catalog):
    plugins(stat=f"{__name__}:hello")
    assert "hello" not in run("stat", "--store", catalog).stdout


# --- as a process ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_help_imports_nothing_heavy():
    code = (
        "import sys; from kvmeta.cli.main import kvmeta_command\n"
        "try: kvmeta_command(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numba', 'rocksdict', 'rich', 'grpc', 'msgspec', 'kvmeta.embedded', 'kvmeta.sources'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert python(code).stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_python_m_kvmeta_runs_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "kvmeta", "--help"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("Usage: kvmeta ")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["get_command", "parse_args", "main"])
def test_ctrl_c_before_a_command_runs_prints_no_traceback(where):
    code = (
        "import sys\n"
        "from kvmeta.cli import main\n"
        "def interrupted(*_, **__): raise KeyboardInterrupt\n"
        f"main.Commands.{where} = interrupted\n"
        "sys.argv = ['kvmeta', 'stat', '--help'] if sys.argv[1:] else ['kvmeta', '--help']\n"
        "main.run()\n"
    )
    for words in ([], ["stat"]):
        result = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (130, "kvmeta: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_closed_pipe_ends_the_command_quietly(lines):
    code = (
        "import click, sys\n"
        "from kvmeta.cli import main\n"
        "@click.command()\n"
        "def shout():\n"
        f"    for _ in range({lines}): click.echo('x' * 100)\n"
        "    sys.stdin.read()\n"
        "    click.echo('more')\n"
        "main._BUILT_IN['shout'] = ('__main__', 'shout')\n"
        "sys.argv = ['kvmeta', 'shout']\n"
        "main.run()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "x" * 100 + "\n"
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
