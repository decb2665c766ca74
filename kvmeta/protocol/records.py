"""Volumes, figures and findings as messages, and back."""

from __future__ import annotations

from dataclasses import fields

from kvmeta.errors import InputError
from kvmeta.store import Damage, DatasetStats, StoreStats, VerifyReport
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.volumes import Volume, VolumeRow

STATE_OF = {
    "online": pb.VOLUME_STATE_ONLINE,
    "offline": pb.VOLUME_STATE_OFFLINE,
    "retired": pb.VOLUME_STATE_RETIRED,
}
CODEC_OF = {
    "raw": pb.CODEC_UNSPECIFIED,
    "gzip": pb.CODEC_GZIP,
    "deflate": pb.CODEC_DEFLATE,
    "zstd": pb.CODEC_ZSTD,
}
_STATE_NAMES = {state: name for name, state in STATE_OF.items()}
_CODEC_NAMES = {codec: name for name, codec in CODEC_OF.items()}
_ID_BYTES = 16
_DATASET_FIELDS = tuple(field.name for field in fields(DatasetStats) if field.name != "ttl_s")


def volume_message(volume: Volume) -> pb.Volume:
    """Return a volume as a message."""
    return _volume_message(int(volume), volume)


def row_message(row: VolumeRow) -> pb.Volume:
    """Return a volume as it is kept as a message."""
    return _volume_message(row.number, row)


def _volume_message(number: int, volume: Volume | VolumeRow) -> pb.Volume:
    return pb.Volume(
        number=number,
        uri=volume.uri,
        name=volume.name,
        state=STATE_OF[volume.state],
        size_bytes=volume.size_bytes,
        codec=CODEC_OF[volume.codec],
    )


def volume(message: pb.Volume) -> Volume:
    """Return the volume of a message; one in a state that this version does not know is offline."""
    return Volume(*_fields_of(message))


def row(message: pb.Volume) -> VolumeRow:
    """Return the volume of a message as it is kept."""
    number, uri, name, state, size, codec = _fields_of(message)
    return VolumeRow(number, uri, name, state, size, codec)  # type: ignore[arg-type]


def _fields_of(message: pb.Volume) -> tuple[int, str, str, str, int | None, str]:
    size = message.size_bytes if message.HasField("size_bytes") else None
    state = _STATE_NAMES.get(message.state, "offline")
    codec = _CODEC_NAMES.get(message.codec, f"codec {message.codec}")
    return message.number, message.uri, message.name, state, size, codec


def state_name(state: pb.VolumeState) -> str:
    """Return the name of a volume's state; InputError where it is none."""
    if state not in _STATE_NAMES:
        raise InputError(f"state: expected ONLINE, OFFLINE or RETIRED, got {state}")
    return _STATE_NAMES[state]


def codec_name(codec: pb.Codec) -> str:
    """Return the name of a volume's codec; InputError where it is none."""
    if codec not in _CODEC_NAMES:
        raise InputError(f"codec: expected {', '.join(pb.Codec.keys())}, got {codec}")
    return _CODEC_NAMES[codec]


def stats_message(stats: StoreStats) -> pb.StatsResponse:
    """Return a store's figures as a message."""
    return pb.StatsResponse(
        path=stats.path,
        format=stats.format,
        read_only=stats.read_only,
        wal_sequence=stats.wal_sequence,
        log_bytes=stats.log_bytes,
        volumes=stats.volumes,
        datasets=[_dataset_message(dataset) for dataset in stats.datasets],
    )


def stats(message: pb.StatsResponse) -> StoreStats:
    """Return the figures of a message."""
    return StoreStats(
        path=message.path,
        format=message.format,
        read_only=message.read_only,
        wal_sequence=message.wal_sequence,
        log_bytes=message.log_bytes,
        volumes=message.volumes,
        datasets=tuple(_dataset(dataset) for dataset in message.datasets),
    )


def damage_message(damage: Damage) -> pb.Damage:
    """Return a damaged stretch as a message."""
    return pb.Damage(
        path=damage.path,
        dataset=damage.dataset,
        page=damage.page,
        first=_id_bytes(damage.first),
        last=_id_bytes(damage.last),
        reason=damage.reason,
    )


def report(messages: list[pb.VerifyReport]) -> VerifyReport:
    """Return the report whose pages `messages` are."""
    damages = tuple(_damage(damage) for message in messages for damage in message.damages)
    return VerifyReport(messages[0].segments, messages[0].pages, damages)


def _dataset_message(stats: DatasetStats) -> pb.DatasetStats:
    figures = {name: getattr(stats, name) for name in _DATASET_FIELDS}
    return pb.DatasetStats(ttl_s=stats.ttl_s, **figures)


def _dataset(message: pb.DatasetStats) -> DatasetStats:
    figures = {name: getattr(message, name) for name in _DATASET_FIELDS}
    return DatasetStats(ttl_s=message.ttl_s if message.HasField("ttl_s") else None, **figures)


def _damage(message: pb.Damage) -> Damage:
    return Damage(
        path=message.path,
        dataset=message.dataset,
        page=message.page if message.HasField("page") else None,
        first=int.from_bytes(message.first, "big") if message.HasField("first") else None,
        last=int.from_bytes(message.last, "big") if message.HasField("last") else None,
        reason=message.reason,
    )


def _id_bytes(mixed: int | None) -> bytes | None:
    return None if mixed is None else mixed.to_bytes(_ID_BYTES, "big")
