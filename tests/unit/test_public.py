"""What `import kvmeta` gives and costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kvmeta


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_every_public_name_exists_and_is_listed_in_order() -> None:
    assert all(hasattr(kvmeta, name) for name in kvmeta.__all__)
    assert kvmeta.__all__ == sorted(
        kvmeta.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )


def test_the_sdk_imports_neither_numba_nor_rocksdict() -> None:
    heavy = ["numba", "llvmlite", "rocksdict", "rich", "click", "pyarrow", "kvmeta.engine"]
    assert run(f"import sys, kvmeta; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


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


def test_a_url_is_not_a_directory() -> None:
    with pytest.raises(kvmeta.UnsupportedError, match="kvmeta://"):
        kvmeta.open("kvmeta://localhost:7400")
