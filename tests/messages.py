"""Columns in the protobuf library's own messages, as a client in another language has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvmeta.protocol.columns import ABSENT, PLAIN, Column, pack
from kvmeta.v1 import kvmeta_pb2 as pb


def packed(column: np.ndarray, compression: pb.Compression = PLAIN) -> pb.Packed:
    """Return a column as a message."""
    form, data = pack(column, compression)
    return pb.Packed(lz4=bytes(data)) if form == "lz4" else pb.Packed(plain=bytes(data))


def column_of(message: Any) -> Column:
    """Return the column of a Packed."""
    form = message.WhichOneof("form")
    return ABSENT if form is None else Column(form, getattr(message, form))
