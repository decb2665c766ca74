"""Background work: flushes and merges, as a queue of small steps that a thread, a test or a simulator drives.

A step is one flush or one window of one merge. Flushes come first, because writers wait for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from kvmeta.engine import compaction, filenames
from kvmeta.engine import load as bulk
from kvmeta.engine.compaction import Choice, RunShape
from kvmeta.engine.damage import Lost
from kvmeta.engine.manifest import MergeRecord, RunRecord, TreeRecord
from kvmeta.engine.memtable import Memtable
from kvmeta.engine.merge import Advance, Merge, advanced
from kvmeta.engine.run import Run
from kvmeta.engine.segment_header import SegmentRecord
from kvmeta.engine.segment_writer import SegmentWriter
from kvmeta.engine.state import State, Stretches
from kvmeta.engine.tree import Tree
from kvmeta.engine.wal import Position
from kvmeta.errors import CorruptionError

_IDLE_S = 1.0


class Background:
    """The queue of an engine. `lock` is held during each step; holding it keeps the set of segments still."""

    def __init__(self, engine: State) -> None:
        self.lock = threading.RLock()
        self._engine = engine
        self._merges: dict[int, Merge] = {}  # open ones by output run; what is under way the manifest says
        self._turn = 0
        self._wake = threading.Condition()
        self._news = 0  # counts notifications, so that none is missed between a look and a wait
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self, *, thread: bool) -> None:
        """With `thread`, work on by itself; otherwise only `step` and the calls below do."""
        if thread:
            self._thread = threading.Thread(target=self._work, name="kvmeta-background", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End after the current step and drop unfinished segments; merges resume at the next open."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self.lock:
            for merge in self._merges.values():
                merge.abandon()
            self._merges.clear()

    def notify(self) -> None:
        """Wake whoever waits for work or for room."""
        with self._wake:
            self._news += 1
            self._wake.notify_all()

    def _wait(self, news: int) -> None:
        """Wait for a notification after the `news`-th, for a second at most."""
        with self._wake:
            if self._news == news and not self._stopping:
                self._wake.wait(_IDLE_S)

    def forget(self, tree: Tree) -> None:
        """Drop a tree's open merges and their unfinished segments. The caller holds `lock`."""
        for record in tree.record.merges:
            self._drop(record)

    def _drop(self, record: MergeRecord) -> None:
        merge = self._merges.pop(record.output, None)
        if merge is not None:
            merge.abandon()

    def wait_for_room(self, tree: Tree) -> None:
        """Return when few enough of the tree's memtables wait for their flush and runs for their merge."""
        options = self._engine.options
        while True:
            news = self._news
            if len(tree.frozen) <= options.frozen_memtables_max and tree.upper_runs <= options.upper_runs_max:
                return
            if self._thread is None:
                if not self.step():
                    return
                continue
            self._wait(news)
            self._engine.check_writable()
            self._engine.check_tree(tree)

    def step(self) -> bool:
        """Do one piece of work; return False where there is none."""
        with self.lock:
            self._engine.check_writable()
            trees = list(self._engine.trees.values())
            for tree in trees:
                if tree.frozen:
                    self._flush_oldest(tree)
                    return True
            if self._freeze_for_wal(trees):
                return True
            for tree in trees:
                self._start_merge(tree, self._due(tree))
            merges = [(tree, record) for tree in trees for record in tree.record.merges]
            if merges:  # in turn, so that neither a long merge nor many short ones hold the others up
                self._turn += 1
                self._merge_step(*merges[self._turn % len(merges)])
            return bool(merges)

    def flush(self) -> None:
        """Write every memtable as a run."""
        self._engine.check_writable()
        trees = list(self._engine.trees.values())
        self._engine.freeze(trees)
        for tree in trees:
            while tree.frozen and self._engine.has_tree(tree):
                self._flush_oldest(tree)

    def compact(self, *, discard: bool = False, progress: Callable[[float], None] | None = None) -> None:
        """Flush, then merge all runs of every dataset into one; quarantined runs stay as they are.

        With `discard`, they are merged as well and what is damaged in them is given up. `progress` is called
        with the share of the current merge that is done.
        """
        self.flush()
        for tree in list(self._engine.trees.values()):
            self._merge_all(tree, progress, discard=discard)

    def drop(self, tree: Tree, stretches: Stretches) -> None:
        """Rewrite the tree without the rows whose high halves lie in `stretches` (first and last, in order).

        Nobody may write there meanwhile.
        """
        self._refuse_damaged(tree)  # before all else is rewritten for nothing
        self.flush()
        self._merge_all(tree, None, drop=stretches)
        self._refuse_damaged(tree)

    def _refuse_damaged(self, tree: Tree) -> None:
        """Raise where a run is quarantined: it is not merged, so what it holds cannot be dropped."""
        damaged = [segment for run in tree.runs if run.quarantined for segment in run.segments]
        if damaged:
            raise CorruptionError(
                f"{damaged[0].path} and what belongs to it is damaged, so nothing was dropped from it; "
                "restore it, or compact with discard_damaged",
                damaged[0].path,
            )

    def give_up(self, tree: Tree, lost: Lost) -> bool:
        """Write a segment anew without what is lost of it, so that its IDs are answered from what is left.

        Return False where that has to wait: a merge is at the run, or more of the segment is damaged by now.
        """
        run = self._idle_run(tree, lost)
        if run is None:
            return False
        written: list[SegmentRecord] = []
        merge = self._open_merge(tree, *_alone(run, lost.segment))
        try:
            done = False
            while not done:  # the run is quarantined, so nothing moves it meanwhile
                self._engine.check_writable()
                advance = merge.step(0, 0)
                if advance is not None:
                    written += () if advance.segment is None else (advance.segment,)
                    done = advance.done
            filenames.sync_directory(filenames.segments(self._engine.path))
            with self.lock:
                now = self._idle_run(tree, lost)  # a page that went bad meanwhile was left out, too
                if now is not None:
                    instead = tuple(written)
                    written.clear()  # from here on the manifest may name them
                    self._engine.set_tree(tree, _with_segment(tree.record, now, lost.segment, instead))
        finally:
            merge.abandon()
            self._engine.remove_segments(segment.number for segment in written)
        self.notify()
        return now is not None

    def _idle_run(self, tree: Tree, lost: Lost) -> Run | None:
        """Return the run of which just that is lost, if no merge is at it."""
        with self.lock:
            self._engine.check_tree(tree)
            idle = tree.idle_runs(damaged=True)
            return next((run for run in idle if run.damage().get(lost.segment) == lost.pages), None)

    def _merge_all(
        self,
        tree: Tree,
        progress: Callable[[float], None] | None,
        *,
        discard: bool = False,
        drop: Stretches = (),
    ) -> None:
        output: int | None = None  # of the merge of everything, once it is started
        share: float | None = 0.0
        while share is not None:
            with self.lock:  # step by step, so that flushes get between
                output, share = self._compact_step(tree, output, discard=discard, drop=drop)
            if progress is not None and share is not None:
                progress(share)

    def _compact_step(
        self, tree: Tree, output: int | None, *, discard: bool, drop: Stretches
    ) -> tuple[int | None, float | None]:
        """Do one step towards the merge of everything, or of it; return its output run and the share.

        Merges under way hold only some of the runs and are finished first; it starts as the last of them
        ends, under the same lock, so that none can come between. The share is None when all is done.
        """
        self._engine.check_writable()
        if not self._engine.has_tree(tree):
            return output, None
        ours = [merge for merge in tree.record.merges if output in (None, merge.output)]
        if output is not None and not ours:
            return output, None
        share = self._merge_step(tree, ours[0]) if ours else 0.0
        if output is None and not tree.record.merges:
            tombstones = any(segment.record.tombstones for run in tree.runs for segment in run.segments)
            rewrite = tombstones or tree.dataset.ttl_s is not None or discard or bool(drop)
            choice = compaction.everything(self._shapes(tree, damaged=discard), rewrite=rewrite)
            self._start_merge(tree, choice, discard=discard, drop=drop)
            if not tree.record.merges:
                return None, None
            return tree.record.merges[0].output, 0.0
        return output, share

    def _work(self) -> None:
        while not self._stopping:
            news = self._news
            try:
                worked = self.step()
            except Exception as error:  # noqa: BLE001 - whatever it is, writers that wait must learn of it
                if not self._stopping:
                    self._engine.stop_writes(error)
                return
            if worked:
                self.notify()
            else:
                self._wait(news)

    def _freeze_for_wal(self, trees: list[Tree]) -> bool:
        """Freeze the memtable that holds the oldest WAL record where too much was written since."""
        appended = self._engine.appended_rows()
        for tree in trees:
            oldest = tree.oldest_memtable()
            if oldest and appended - oldest.appended_before > self._engine.options.wal_rows_max:
                self._engine.freeze([tree])
                return True
        return False

    def _flush_oldest(self, tree: Tree) -> None:
        engine = self._engine
        with self.lock:
            if not tree.frozen or not engine.has_tree(tree):
                return
            memtable = tree.frozen[0]
            writers: list[SegmentWriter] = []
            try:
                for writer in engine.files.write(
                    memtable.sorted_rows(), filter_bits=engine.options.filter_bits_per_row
                ):
                    writers.append(writer)
                segments = tuple(writer.seal() for writer in writers)
                filenames.sync_directory(filenames.segments(engine.path))
            except BaseException as error:
                bulk.abandon([writers])
                engine.stop_writes(error)
                raise
            run = RunRecord(engine.take_number(), bottom=False, from_high=0, segments=segments)
            record = replace(tree.record, flushed=memtable.last_sequence, runs=(*tree.record.runs, run))
            engine.set_tree(tree, record, flushed=memtable, anchor=self._anchor(memtable))
        self.notify()

    def _anchor(self, flushed: Memtable) -> Position:
        """Return up to where the WAL can go once `flushed` is a run."""
        position = self._engine.position()  # taken first: whatever is appended meanwhile lies behind it
        held = [tree.unflushed_before(without=flushed) for tree in self._engine.trees.values()]
        return min([position, *(before for before in held if before is not None)])

    def _shapes(self, tree: Tree, *, damaged: bool = False) -> list[RunShape]:
        records = [run.record for run in tree.idle_runs(damaged=damaged)]
        return [RunShape(run.number, run.rows, run.bottom) for run in records]

    def _due(self, tree: Tree) -> Choice | None:
        options = self._engine.options
        return compaction.choose(
            self._shapes(tree),
            bottom_free=not any(merge.bottom for merge in tree.record.merges),
            upper_runs_max=options.upper_runs_max,
            memtable_rows=options.memtable_rows_max,
            fan_out=options.fan_out,
            bottom_ratio=options.bottom_ratio,
        )

    def _start_merge(
        self,
        tree: Tree,
        choice: Choice | None,
        *,
        discard: bool = False,
        drop: Stretches = (),
    ) -> None:
        if choice is not None:
            number = self._engine.take_number()
            record = MergeRecord(choice.inputs, number, choice.bottom, discard=discard, drop=drop)
            self._engine.set_tree(tree, replace(tree.record, merges=(*tree.record.merges, record)))

    def _open_merge(self, tree: Tree, record: MergeRecord, inputs: tuple[Run, ...]) -> Merge:
        options = self._engine.options
        filtered = not record.bottom or tree.dataset.bottom_filter
        filter_bits = options.filter_bits_per_row if filtered else 0
        return Merge(
            record,
            inputs,
            self._engine.files,
            filter_bits=filter_bits,
            step_rows=options.merge_step_rows,
        )

    def _inputs(self, tree: Tree, record: MergeRecord) -> tuple[Run, ...]:
        return tuple(run for run in tree.runs if run.record.number in record.inputs)

    def _merge_step(self, tree: Tree, record: MergeRecord) -> float:
        """Do one window of a merge the manifest has under way; return the share that is done.

        Whatever fails, the open merge is dropped: what it knows beyond the manifest may be half true. The
        next step opens it again at the manifest's frontier.
        """
        merge = self._merges.get(record.output) or self._open_merge(tree, record, self._inputs(tree, record))
        self._merges[record.output] = merge
        try:
            inside = {*record.inputs, record.output}
            purge = min(tree.view.lowest_outside(inside), tree.purge_below)
            advance = merge.step(purge, tree.expired())
            if advance is not None:
                self._take_advance(tree, record, advance)
        except CorruptionError:  # the merge ends at its frontier; the damaged run is merged no more
            self._drop(record)
            self.quarantine(tree, ended=record)
        except BaseException as error:
            self._drop(record)
            if isinstance(error, Exception):
                self._engine.stop_writes(error)
            raise
        return merge.progress

    def _take_advance(self, tree: Tree, record: MergeRecord, advance: Advance) -> None:
        if advance.segment is not None:
            filenames.sync_directory(filenames.segments(self._engine.path))
        self._engine.set_tree(tree, advanced(tree.record, record, advance))
        if advance.done:
            del self._merges[record.output]
        else:
            self._merges[record.output].narrow(self._inputs(tree, record))

    def quarantine(self, tree: Tree, *, ended: MergeRecord | None = None) -> None:
        """Write the damage found so far to the manifest, so that it is known at the next open."""
        with self.lock:
            if not self._engine.has_tree(tree):
                return
            runs = tuple(replace(run.record, damaged=run.damage()) for run in tree.runs)
            merges = tuple(merge for merge in tree.record.merges if merge is not ended)
            record = replace(tree.record, runs=runs, merges=merges)
            if record != tree.record:
                self._engine.set_tree(tree, record)


def _alone(run: Run, segment: int) -> tuple[MergeRecord, tuple[Run, ...]]:
    """Return a merge of one segment of a run that leaves its damaged pages out."""
    inside = tuple(each for each in run.segments if each.record.number == segment)
    record = replace(run.record, segments=tuple(each.record for each in inside))
    return MergeRecord((record.number,), 0, record.bottom, discard=True), (Run(record, inside),)


def _with_segment(tree: TreeRecord, run: Run, segment: int, instead: tuple[SegmentRecord, ...]) -> TreeRecord:
    """Return a tree's record with others instead of a run's segment; a run without any goes."""
    segments: list[SegmentRecord] = []
    for each in run.record.segments:
        segments += instead if each.number == segment else (each,)
    damaged = {number: pages for number, pages in run.damage().items() if number != segment}
    fresh = replace(run.record, segments=tuple(segments), damaged=damaged)
    runs = (fresh if each.number == fresh.number else each for each in tree.runs)
    return replace(tree, runs=tuple(each for each in runs if each.segments))
