from __future__ import annotations

from pathlib import Path

import pytest
import xxhash

from kvmeta.engine import mark
from kvmeta.engine.mark import SLOT_BYTES, Mark, MarkFile
from kvmeta.errors import CorruptionError, UnavailableError

STORE = bytes(range(16))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "000001.log").write_bytes(b"records")
    (tmp_path / "log" / "CURRENT").write_bytes(b"MANIFEST-1\n")
    return tmp_path


def test_the_last_write_is_read_whichever_slot_it_is_in(store: Path) -> None:
    file = MarkFile(store, STORE, 0)
    for sequence in range(1, 6):
        file.write(Mark(sequence, sequence * 7, 3, 4))
        assert mark.read(store, STORE)[0] == Mark(sequence, sequence * 7, 3, 4) if sequence > 1 else True
    file.close()


def test_a_torn_slot_leaves_the_previous_mark_readable(store: Path) -> None:
    file = MarkFile(store, STORE, 0)
    file.write_durably(Mark(1))
    file.write(Mark(2))
    file.close()
    path = store / "MARK"
    data = bytearray(path.read_bytes())
    newest = mark.read(store, STORE)[1] % 2
    data[newest * SLOT_BYTES + 40] ^= 1
    path.write_bytes(data)
    assert mark.read(store, STORE)[0] == Mark(1)


def test_every_flipped_or_cut_byte_of_a_clean_mark_is_noticed(store: Path) -> None:
    file = MarkFile(store, STORE, 0)
    file.write_durably(Mark(1, 2, 3, 4, clean=True, seal=mark.seal(store)))
    file.close()
    path = store / "MARK"
    whole = path.read_bytes()
    for i in range(0, len(whole), 7):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x20]) + whole[i + 1 :])
        with pytest.raises(CorruptionError, match="MARK"):
            mark.read(store, STORE)
    for size in (0, 1, 511, 512, 1023):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptionError, match="MARK"):
            mark.read(store, STORE)
    path.unlink()
    with pytest.raises(CorruptionError, match="missing"):
        mark.read(store, STORE)


def test_a_mark_of_another_store_is_refused(store: Path) -> None:
    file = MarkFile(store, STORE, 0)
    file.write_durably(Mark(1))
    file.close()
    with pytest.raises(CorruptionError):
        mark.read(store, bytes(16))


@pytest.mark.parametrize("change", ["flip", "cut", "remove", "add", "seal", "no seal"])
def test_a_changed_file_of_a_sealed_log_is_reported(store: Path, change: str) -> None:
    sealed = Mark(seal=mark.seal(store), clean=True)
    mark.check_seal(store, sealed)
    log = store / "log"
    if change == "flip":
        (log / "000001.log").write_bytes(b"recordz")
    elif change == "cut":
        (log / "000001.log").write_bytes(b"record")
    elif change == "remove":
        (log / "000001.log").unlink()
    elif change == "add":
        (log / "000002.log").write_bytes(b"")
    elif change == "seal":
        (store / "SEAL").write_bytes((store / "SEAL").read_bytes().replace(b"7", b"8"))
    else:
        (store / "SEAL").unlink()
    with pytest.raises(CorruptionError, match="SEAL" if "seal" in change else "00000"):
        mark.check_seal(store, sealed)


def test_the_seal_leaves_out_rocksdbs_info_log(store: Path) -> None:
    sealed = Mark(seal=mark.seal(store), clean=True)
    (store / "log" / "LOG").write_bytes(b"a reader was here")
    mark.check_seal(store, sealed)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"files": 5}', b"\xff", b"[" * 100_000], ids=repr)
def test_an_intact_seal_without_a_file_list_is_damage(store: Path, text: bytes) -> None:
    (store / "SEAL").write_bytes(text)
    with pytest.raises(CorruptionError, match="SEAL is damaged"):
        mark.check_seal(store, Mark(clean=True, seal=xxhash.xxh3_64_intdigest(text)))


def test_a_log_file_that_cannot_be_opened_raises_a_typed_error(store: Path) -> None:
    (store / "log" / "000002.log").mkdir()
    with pytest.raises(UnavailableError, match="000002"):
        mark.seal(store)
