"""What `import kvmeta` gives and costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kvmeta
from kvmeta.engine.options import EngineOptions


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_every_public_name_exists_and_is_listed_in_order() -> None:
    assert all(hasattr(kvmeta, name) for name in kvmeta.__all__)
    assert kvmeta.__all__ == sorted(
        kvmeta.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )


@pytest.mark.slow
def test_the_sdk_imports_neither_numba_nor_rocksdict() -> None:
    heavy = ["numba", "llvmlite", "rocksdict", "rich", "click", "pyarrow", "kvmeta.engine"]
    heavy += ["kvmeta.embedded", "kvmeta_server", "uvloop"]
    for imported in ("kvmeta", "kvmeta.remote", "kvmeta.aio"):
        code = f"import sys, {imported}; print([m for m in {heavy} if m in sys.modules])"
        assert run(code).strip() == "[]"


@pytest.mark.slow
def test_importing_kvmeta_does_not_import_grpc() -> None:
    assert run("import sys, kvmeta; print('grpc' in sys.modules)").strip() == "False"
    assert run("import kvmeta; print(kvmeta.ClientOptions().in_flight, kvmeta.aio.__name__)").split()[1]


def test_every_error_is_a_kvmeta_error() -> None:
    errors = [getattr(kvmeta, name) for name in kvmeta.__all__ if name.endswith("Error")]
    assert len(errors) == 14
    assert all(issubclass(error, kvmeta.KvmetaError) for error in errors)
    assert issubclass(kvmeta.InputError, ValueError)
    assert issubclass(kvmeta.NotFoundError, KeyError)
    assert issubclass(kvmeta.DeadlineError, TimeoutError)
    assert str(kvmeta.NotFoundError("plain text")) == "plain text"


def test_a_missing_engine_names_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(kvmeta.EngineNotInstalledError, match=r'pip install "kvmeta\[engine\]"'):
        kvmeta.open(tmp_path / "store")


def test_a_target_that_cannot_be_opened_raises_a_clear_error(tmp_path: Path) -> None:
    for target, options, kind, told in (
        ("s3://bucket/store", None, kvmeta.UnsupportedError, "s3:// store"),
        ("kvmeta://", None, kvmeta.InputError, "kvmeta://host"),
        ("kvmeta://localhost/path", None, kvmeta.InputError, "kvmeta://host"),
        ("kvmeta://localhost", EngineOptions(), kvmeta.InputError, "ClientOptions for a server"),
        (tmp_path / "store", kvmeta.ClientOptions(), kvmeta.InputError, "EngineOptions for a directory"),
        ("", None, kvmeta.InputError, "expected"),
    ):
        with pytest.raises(kind, match=told):
            kvmeta.open(target, options=options)
    with pytest.raises(kvmeta.InputError, match="mode"):
        kvmeta.open("kvmeta://localhost", mode="x")
    with pytest.raises(kvmeta.UnsupportedError, match=r"asyncio.to_thread"):
        kvmeta.aio.open(str(tmp_path))
