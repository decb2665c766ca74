"""The asyncio SDK behind the blocking contract, so that one suite tests both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, TypeVar

import kvmeta
from kvmeta.aio import AsyncDataset, AsyncStore, AsyncVolumes
from kvmeta.batch import Hits, Inserted, Relocated, ScanPage
from kvmeta.store import Dataset, OnError, Progress, Scan, Store, StoreStats, VerifyReport
from kvmeta.volumes import Volume, Volumes
from tests.patience import HANG_S

T = TypeVar("T")


class BridgedStore(Store):
    """An AsyncStore on a loop of its own thread."""

    def __init__(self, target: str, options: Any = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._store: AsyncStore = kvmeta.aio.open(target, options=options)
        self.volumes = BridgedVolumes(self, self._store.volumes)

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop."""
        if not self._thread.is_alive():
            coroutine.close()
            raise kvmeta.InputError("the store is closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def dataset(self, name: str = "default") -> Dataset:
        return BridgedDataset(self, self.wait(self._store.dataset(name)))

    def create_dataset(self, name: str, **options: Any) -> Dataset:
        return BridgedDataset(self, self.wait(self._store.create_dataset(name, **options)))

    def drop_dataset(self, name: str) -> None:
        self.wait(self._store.drop_dataset(name))

    def datasets(self) -> list[str]:
        return self.wait(self._store.datasets())

    def flush(self) -> None:
        self.wait(self._store.flush())

    def compact(self, *, discard_damaged: bool = False, progress: Progress | None = None) -> None:
        self.wait(self._store.compact(discard_damaged=discard_damaged, progress=progress))

    def verify(self, *, progress: Progress | None = None) -> VerifyReport:
        return self.wait(self._store.verify(progress=progress))

    def stats(self) -> StoreStats:
        return self.wait(self._store.stats())

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        if self._thread.is_alive():
            self.wait(self._store.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(HANG_S)
            self._loop.close()


class BridgedDataset(Dataset):
    """An AsyncDataset, asked through its public methods."""

    def __init__(self, store: BridgedStore, dataset: AsyncDataset) -> None:
        self._store = store
        self._dataset = dataset
        self.name = dataset.name

    def lookup(self, ids: Any, *, on_error: OnError = "raise") -> Hits:
        return self._store.wait(self._dataset.lookup(ids, on_error=on_error))

    def get(self, one_id: Any) -> kvmeta.Location | None:
        return self._store.wait(self._dataset.get(one_id))

    def put(self, ids: Any, locations: Any) -> None:
        self._store.wait(self._dataset.put(ids, locations))

    def insert(self, ids: Any, locations: Any) -> Inserted:
        return self._store.wait(self._dataset.insert(ids, locations))

    def delete(self, ids: Any) -> None:
        self._store.wait(self._dataset.delete(ids))

    def relocate(self, ids: Any, locations: Any, versions: Any) -> Relocated:
        return self._store.wait(self._dataset.relocate(ids, locations, versions))

    def read(self, ids: Any) -> list[bytes | None]:
        return self._store.wait(self._dataset.read(ids))

    def load(self, batches: Iterable[tuple[Any, Any]]) -> int:
        return self._store.wait(self._dataset.load(batches))

    def scan(self, **arguments: Any) -> Iterator[ScanPage]:
        pages = self._dataset.scan(**arguments)

        def each() -> Iterator[ScanPage]:
            async def after() -> ScanPage | None:
                return await anext(pages, None)

            while (page := self._store.wait(after())) is not None:
                yield page

        return each()

    def _lookup(self, ids: Any, *, mask: bool = False) -> Hits:
        raise NotImplementedError

    def _put(self, ids: Any, locations: Any) -> None:
        raise NotImplementedError

    def _insert(self, ids: Any, locations: Any) -> Inserted:
        raise NotImplementedError

    def _delete(self, ids: Any) -> None:
        raise NotImplementedError

    def _relocate(self, ids: Any, locations: Any, versions: Any) -> Relocated:
        raise NotImplementedError

    def scan_page(self, scan: Scan) -> tuple[ScanPage, bool]:
        raise NotImplementedError

    def _volumes(self, numbers: list[int]) -> list[Volume]:
        raise NotImplementedError


class BridgedVolumes(Volumes):
    """An AsyncVolumes."""

    def __init__(self, store: BridgedStore, volumes: AsyncVolumes) -> None:
        self._store = store
        self._volumes = volumes

    def add(self, uri: Any, **named: Any) -> Any:
        return self._store.wait(self._volumes.add(uri, **named))

    def register(self, wanted: Any) -> Any:
        raise NotImplementedError

    def get(self, volume: Any) -> Volume:
        return self._store.wait(self._volumes.get(volume))

    def list(self) -> list[Volume]:
        return self._store.wait(self._volumes.list())

    def move(self, volume: Any, uri: Any) -> Volume:
        return self._store.wait(self._volumes.move(volume, uri))

    def set_state(self, volume: Any, state: str) -> Volume:
        return self._store.wait(self._volumes.set_state(volume, state))
