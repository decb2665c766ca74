"""Believing: whether what etcd holds goes on from what this node knows, and what it knows.

An etcd that was emptied, or set back to an older state, cannot know it. Its map and its tables tell: those
that are known here are not among their ancestors (history.py). Then nothing of it is believed.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvmeta.errors import UnavailableError
from kvmeta.protocol.volume_pages import VolumePages
from kvmeta_server.cluster.cluster_map import ClusterMap, decode
from kvmeta_server.cluster.seams import Value
from kvmeta_server.cluster.tables import Tables, decode_tables


class Belief:
    """The newest that is known; `refusal` says why nothing that etcd holds is believed, "" where it is."""

    def __init__(self, url: str, prefix: str) -> None:
        self._url = url
        self._prefix = prefix
        self.map: ClusterMap | None = None
        self.tables: Tables | None = None
        self.volumes = VolumePages()
        self.pages_serial = 0
        """Up to which serial of the tables all changes of volumes are known."""
        self.refusal = ""

    def go_on_with(
        self, cluster_map: ClusterMap | None, tables: Tables | None, pages: Mapping[int, bytes] | None = None
    ) -> None:
        """Start from a map, tables and pages of volumes that were remembered."""
        self.map, self.tables, self.volumes = cluster_map, tables, VolumePages(pages)
        self.pages_serial = 0 if tables is None else tables.serial

    def learn(self, tables: Tables) -> int:
        """Take over tables that another node tells of, where they go on from those known here.

        Returns the serial of those that are known then.
        """
        if (
            self.tables is not None
            and tables.serial > self.tables.serial
            and tables.descends_from(self.tables)
        ):
            self.tables = tables
        return 0 if self.tables is None else self.tables.serial

    def take_pages(self, pages: Mapping[int, bytes], serial: int) -> None:
        """Take pages of volumes over, all that changed up to a serial of the tables."""
        self.pages_serial = serial
        for page, raw in pages.items():
            if self.volumes.pages.get(page) != raw:
                self.volumes.take(page, raw)

    def map_in(self, held: Value | None, *, cached: bool = True) -> ClusterMap:
        """Return the map that etcd holds; UnavailableError where it does not go on from the known one."""
        if cached and self.refusal:
            raise UnavailableError(self.refusal)
        ours = self.map
        if held is None:
            if ours is None:
                raise UnavailableError(f"etcd at {self._url} has no cluster at {self._prefix}")
            raise UnavailableError(self._not_believed(f"has no map of cluster {ours.name!r}"))
        theirs = decode(held.data)
        if ours is None:
            return theirs
        if theirs.cluster_id != ours.cluster_id:
            raise UnavailableError(
                self._not_believed(
                    f"has another cluster of the name {ours.name!r}, {theirs.cluster_id.hex()}"
                )
            )
        if not theirs.descends_from(ours.epoch, ours.digest):
            behind = ours.descends_from(theirs.epoch, theirs.digest)
            what = "an older map" if behind else "a map of another history"
            raise UnavailableError(
                self._not_believed(
                    f"has {what}, of epoch {theirs.epoch}, and this node knows that of {ours.epoch}"
                )
            )
        return theirs

    def tables_in(self, held: Value | None, *, cached: bool = True) -> Tables:
        """Return the tables that etcd holds; UnavailableError where they do not go on from the known ones."""
        if cached and self.refusal:
            raise UnavailableError(self.refusal)
        ours = self.tables
        if held is None:
            raise UnavailableError(self._not_believed("has no tables of datasets and volumes"))
        theirs = decode_tables(held.data)
        if self.map is not None and theirs.cluster_id != self.map.cluster_id:
            raise UnavailableError(self._not_believed("has the tables of another cluster"))
        if ours is not None and not theirs.descends_from(ours):
            raise UnavailableError(
                self._not_believed(
                    f"has tables, serial {theirs.serial}, that do not go on from those known, {ours.serial}"
                )
            )
        return theirs

    def _not_believed(self, what: str) -> str:
        return (
            f"etcd at {self._url} {what}: was it emptied, or restored from a snapshot? Reads and writes "
            "go on; members, datasets and volumes cannot be changed. kvmeta cluster recover shows what to do"
        )
