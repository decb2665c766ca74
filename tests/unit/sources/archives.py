"""Archives for the tests: made by tarfile, or block by block where tarfile would not."""

import io
import tarfile
from pathlib import Path

import google_crc32c

from kvmeta.sources.tar import scan

END = bytes(1024)


def write_tar(path: Path, members: dict[str, bytes], fmt: int = tarfile.PAX_FORMAT, **fields) -> Path:
    with tarfile.open(path, "w", format=fmt, encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for field, value in fields.items():
                setattr(entry, field, value)
            tar.addfile(entry, io.BytesIO(content))
    return path


def header(
    name: bytes,
    size: bytes | int = 0,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    link: bytes = b"",
) -> bytes:
    """Return one header block with a right checksum, whatever its fields say."""
    if isinstance(size, int):
        size = b"%011o\0" % size
    block = bytearray(512)
    block[0 : len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257 : 257 + len(magic)] = magic
    block[345 : 345 + len(prefix)] = prefix
    return with_sum(block)


def with_sum(block: bytearray, signed: bool = False) -> bytes:
    block[148:156] = b" " * 8
    total = sum(each - 256 if signed and each > 127 else each for each in block)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax_records(**records: str | bytes) -> bytes:
    out = b""
    for key, value in records.items():
        value = value.encode() if isinstance(value, str) else value
        body = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        out += str(length).encode() + body
    return out


def extended(records: bytes, kind: bytes = b"x") -> bytes:
    return header(b"PaxHeaders/x", len(records), kind) + padded(records)


def rows_of(path: Path, **options) -> list[tuple[bytes, int, int, int]]:
    """Return (name, offset, length, checksum) of each member, by the scanner."""
    rows = []
    for members in scan(path, **options):
        columns = zip(
            members.offsets.tolist(), members.lengths.tolist(), members.checksums.tolist(), strict=True
        )
        rows += [(members.name(i), *each) for i, each in enumerate(columns)]
    return rows


def rows_by_tarfile(path: Path) -> list[tuple[bytes, int, int, int]]:
    """Return the same by tarfile."""
    rows = []
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
        for entry in tar:
            if entry.isreg() and not entry.issparse():
                content = tar.extractfile(entry).read()
                name = entry.name.encode("utf-8", "surrogateescape").removeprefix(b"./")
                rows.append((name, entry.offset_data, entry.size, google_crc32c.value(content)))
    return rows
