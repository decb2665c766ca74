"""A training program in small: PyTorch's DataLoader over a kvmeta store that was opened and used before.

    python loader_program.py TARGET MODE CONTEXT COUNT

TARGET holds COUNT files, file i being `content(i)`, under the IDs 0, 1, …. Every epoch must bring each file
once and right, while another thread of the parent uses the same store; workers must end by themselves, with
status 0. In mode "a" they write too: the ID COUNT + i for each file i they saw.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader

import kvmeta

EPOCHS = 3
BATCH = 64
WORKERS = 2
WAIT_S = 60.0

Sample = tuple[int, bytes, int]  # which file, its bytes, and the process that read it


def content(number: int) -> bytes:
    """Return the bytes of a file."""
    return f"file {number} ".encode() * (1 + number % 50)


class Files:
    """A map-style dataset that fetches whole batches."""

    def __init__(self, target: str, mode: str, count: int) -> None:
        self.store = kvmeta.open(target, mode)
        self.files = self.store.dataset()
        self.ids = np.arange(count, dtype=np.uint64)
        self.mode = mode

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, numbers: list[int]) -> list[Sample]:
        ids = self.ids[numbers]
        hit = self.files.lookup(ids)
        assert hit.found.all()
        if self.mode == "a":
            self.files.put(ids + np.uint64(len(self)), hit.locations)
        read = self.files.read(ids)
        return [(number, bytes(file or b""), os.getpid()) for number, file in zip(numbers, read, strict=True)]


def check(samples: list[Sample]) -> None:
    """Assert that every file is the right one."""
    wrong = [number for number, file, _ in samples if file != content(number)]
    assert not wrong, wrong


@contextmanager
def looking_up(files: Files) -> Iterator[None]:
    """Let a thread read all the while, so that workers start amid its calls."""
    stop, failed = threading.Event(), []
    numbers = list(range(0, len(files), 7))

    def work() -> None:
        try:
            while not stop.wait(0.001):
                hit = files.files.lookup(files.ids)
                assert hit.found.all()
                check(
                    [(i, file or b"", 0) for i, file in zip(numbers, files.files.read(numbers), strict=True)]
                )
        except BaseException as error:  # noqa: BLE001 - told by the thread that asserts
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WAIT_S)
    assert not thread.is_alive()
    assert not failed, failed


def train(files: Files, context: str, persistent: bool) -> None:
    """Run some epochs with workers of `context`."""
    loader: DataLoader[Sample] = DataLoader(
        files,  # type: ignore[arg-type]
        batch_size=BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
        num_workers=WORKERS,
        collate_fn=list,
        multiprocessing_context=context,
        persistent_workers=persistent,
        pin_memory=False,
        timeout=WAIT_S,
    )
    children: set[multiprocessing.process.BaseProcess] = set()
    readers: set[int] = set()
    for _ in range(EPOCHS):
        seen: list[int] = []
        for samples in loader:
            children |= set(multiprocessing.active_children())
            check(samples)
            check(files.__getitems__([number for number, _, _ in samples]))  # the parent's own, meanwhile
            seen += [number for number, _, _ in samples]
            readers |= {pid for _, _, pid in samples}
        assert sorted(seen) == list(range(len(files)))
    del loader
    for child in children:
        child.join(WAIT_S)
    assert {child.exitcode for child in children} == {0}, children
    assert readers == {child.pid for child in children}  # each worker read, and nobody else
    assert len(children) == (WORKERS if persistent else WORKERS * EPOCHS)


def main(target: str, mode: str, context: str, count: int) -> None:
    """Train, with workers that persist and with new ones each epoch."""
    files = Files(target, mode, count)
    check(files.__getitems__(list(range(count))))  # the channel exists, the kernels are loaded
    with looking_up(files):
        train(files, context, persistent=True)
        train(files, context, persistent=False)
    hit = files.files.lookup(files.ids + np.uint64(count))
    assert hit.found.all() if mode == "a" else not hit.found.any()
    check(files.__getitems__(list(range(count))))
    files.store.close()
    print("every epoch was right")  # noqa: T201 - what the test waits for


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
