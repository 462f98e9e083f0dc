# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The demonstration of sharing: processes hash files in one arena, and one is killed.

This process reads files into segments of a shared arena and puts the segments into
the queues of worker processes.  A worker hashes the bytes where they lie and sends the
digests back as metadata of frames.  What crosses a pipe is handles, a hundred bytes
each whatever they stand for; the bytes of a file are copied once, from the file into
frames.  When half is handed over a worker is killed while it holds frames.  They are
reaped, another worker takes its place, and the pieces that are lost are read again.

Pieces.  A file is cut into pieces of a fixed size that always fits the arena, so most
files are one piece and a file larger than the arena is many.  Each piece has a digest
of its own, which is compared with that of plain reading of the same bytes.  A segment
holds as many pieces as have room, each at the beginning of a frame, whose metadata say
what it is.

One array.  This process keeps references of its own to the pieces of one file, which lie
where there was room for each.  In the end it maps them one behind another and hashes the
file as a single array.

Room.  Frames are finite, so a batch is read only if there is room for its frames and
for those of its digests; otherwise this process waits for an answer.  That also means
that a worker always finds frames for its answer.

Death.  A process can be killed while it holds a lock, and who waits for something from
a queue that many share holds the queue's lock meanwhile.  So nothing that locks is
shared by workers: each has a queue of its own, which only this process fills, and a
pipe for its answers, whose end tells of its death, as does the sentinel of its process.
A message is kept until it is answered.  When its worker is dead, loading the message
tells how far it came: if nobody has loaded it, its frames are taken back and sent to
another worker as they are; if they were in the dead worker's hands, they were reaped,
`FrameGoneError` says so, and their pieces are read again.

Workers come from a fork server: it has no threads and no arena, so nothing is inherited
that a child must not have, and a replacement needs no second import of NumPy.  Forking
this process would be wrong while the thread of a progress bar runs.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from dataclasses import dataclass, field
from io import FileIO
from multiprocessing.connection import wait
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeVar

from pageframe import (
    ArenaStats,
    AuditReport,
    FrameGoneError,
    FrameMeta,
    FrameVec,
    OutOfFramesError,
    PhysicalMemory,
    ReapReport,
    UntypedFrameMeta,
    USegment,
    atomic_u32,
    u32,
)
from pageframe.demo import (
    ARRAY_PAGES,
    PLAIN_CHUNK,
    OneArray,
    Reading,
    SkippedFile,
    SourceFile,
    all_mismatches,
    can_map,
    hash_mapped,
    plain_digest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess
    from multiprocessing.queues import SimpleQueue
    from typing import Self

    Progress = Callable[[int, int, int], None]

MAX_WORKERS = 64

SPAN = 256
"""Frames of a segment, at the most."""

AHEAD = 3
"""Messages that a worker may have before it; one of them is being worked on."""

PATIENCE = 60.0
"""Seconds without a sign of life after which a worker that has work is killed."""

DEATHS = 5
"""Unexpected deaths of workers after which the demonstration gives up."""

ROOM_SECONDS = 10.0  # that a worker waits for frames which are free but for a moment
PRELOAD = ["pageframe.shared_demo", "typer", "rich.progress"]  # by the fork server: what children import

PLAIN, SHARED, PLAIN_AGAIN = 1, 2, 3  # stages, as `run` tells of its progress

T = TypeVar("T")


class FilePiece(UntypedFrameMeta):
    """Metadata of the frames of a segment that holds pieces of files.

    Only the first frame of a piece has them filled in.  They are atomic, since only
    atomic fields of a frame that is shared can be set.

    Attributes
    ----------
    piece
        Number of the piece.
    length
        Bytes of the piece.  The next piece begins in the frame after the last one of these.
    """

    piece: atomic_u32
    length: atomic_u32


class PieceDigest(FrameMeta):
    """Metadata of a frame that carries an answer: the frame's bytes are not used.

    Attributes
    ----------
    piece
        Number of the piece.
    length
        Bytes that were hashed.
    digest
        Their SHA-256.
    """

    piece: u32
    length: u32
    digest: Annotated[bytes, 32]


class WorkerError(RuntimeError):
    """The workers can't do their work."""


class Digest(NamedTuple):
    """The SHA-256 of a piece and how many bytes it has."""

    value: bytes
    length: int


class Piece(NamedTuple):
    """A piece of a file: which file of the list, and which of its pieces."""

    file: int
    part: int


@dataclass(frozen=True)
class Killed:
    """The worker that was killed.

    Attributes
    ----------
    name, pid
        The worker.
    frames
        Frames of its message that it held at that moment, as `PhysicalMemory.holders` says.
    exitcode
        How it ended: the negative number of a signal.
    """

    name: str
    pid: int
    frames: int
    exitcode: int | None


@dataclass
class SharedResult:
    """What a run of the demonstration found.

    Attributes
    ----------
    workers
        How many there were at a time.
    plain_first, plain_second
        Plain reading of all files, before and after.
    shared
        Reading them through the shared arena.
    start_seconds
        Time until all workers were ready; not part of any reading.
    skipped
        Files that could not be read.
    pieces
        Pieces that were hashed.
    segments, bytes_handed
        Messages to workers and the bytes of files in them, whose handles alone were sent.
    answers, answer_frames
        Messages from workers and the frames in them.
    bytes_read
        Bytes copied from files into frames.
    bytes_piped
        Bytes of all pickles that crossed a pipe.
    killed
        The worker that was killed on purpose; None if there was nothing to hand over.
    deaths
        Workers that died otherwise, in words.
    reaped
        What was taken back after each death.
    lost_pieces, lost_bytes
        What was read again because a worker died with it.
    returned
        Messages of dead workers that were taken back unread, with their frames.
    array
        The file that was shown as a single array; None if there was none that could be.
    audit
        What an audit found after the workers had left.
    frames_left
        Frames that were still used then.
    stats
        Figures of the arena at the kill, or at the end if there was none.
    """

    workers: int
    plain_first: Reading = field(default_factory=Reading)
    plain_second: Reading = field(default_factory=Reading)
    shared: Reading = field(default_factory=Reading)
    start_seconds: float = 0.0
    skipped: list[SkippedFile] = field(default_factory=list)
    pieces: int = 0
    segments: int = 0
    bytes_handed: int = 0
    answers: int = 0
    answer_frames: int = 0
    bytes_read: int = 0
    bytes_piped: int = 0
    killed: Killed | None = None
    deaths: list[str] = field(default_factory=list)
    reaped: list[ReapReport] = field(default_factory=list)
    lost_pieces: int = 0
    lost_bytes: int = 0
    returned: int = 0
    array: OneArray | None = None
    audit: AuditReport | None = None
    frames_left: int = 0
    stats: ArenaStats | None = None

    @property
    def mismatches(self) -> list[Path]:
        """Files with a wrong digest, by a worker or as an array, each once."""
        return all_mismatches(self.shared.mismatches, self.array)

    @property
    def sound(self) -> bool:
        """Whether the audit could judge every frame and found no more than it may.

        That is nothing, unless workers died unexpectedly: who is killed within an operation
        may leave a frame that is held too long.
        """
        audit = self.audit
        if audit is None or audit.damaged or audit.busy or not audit.quiet:
            return False
        return len(audit.leaked) + len(audit.miscounted) <= len(self.deaths)

    @property
    def frames_reaped(self) -> int:
        """Frames that came back from dead workers."""
        return sum(report.frames for report in self.reaped)

    @property
    def clients_reaped(self) -> int:
        """Dead workers whose places in the arena are free again."""
        return sum(len(report.clients) for report in self.reaped)

    @property
    def types_reaped(self) -> dict[str, int]:
        """Name of a metadata type -> frames of it that came back."""
        total: dict[str, int] = {}
        for report in self.reaped:
            for name, frames in report.frames_by_type.items():
                total[name] = total.get(name, 0) + frames
        return total


# -- pieces ------------------------------------------------------------------------------------


def plain_digests(path: Path, piece: int, buffer: memoryview) -> tuple[list[Digest], float]:
    """Hash the pieces of a file by plain reading.

    Parameters
    ----------
    path
        The file.
    piece
        Bytes of a piece; the last one may have fewer.
    buffer
        What the file is read into, chunk by chunk.

    Returns
    -------
    digests
        Of each piece; an empty file has one piece without bytes.
    seconds
        How long that took.
    """
    begin = perf_counter()
    digests: list[Digest] = []
    sha = hashlib.sha256()
    length = 0
    with FileIO(path) as file:
        while count := file.readinto(buffer):
            start = 0
            while start < count:
                if length == piece:
                    digests.append(Digest(sha.digest(), length))
                    sha, length = hashlib.sha256(), 0
                stop = min(count, start + piece - length)
                sha.update(buffer[start:stop])
                length += stop - start
                start = stop
    digests.append(Digest(sha.digest(), length))
    return digests, perf_counter() - begin


def read_piece(path: Path, start: int, size: int, room: memoryview) -> int | None:
    """Read a piece of a file into the bytes of frames.

    Parameters
    ----------
    path
        The file.
    start, size
        Where the piece begins, and how long it is unless the file ends before.
    room
        Where the bytes go.

    Returns
    -------
    int or None
        Bytes that were read; None if there is no room for all.
    """
    limit = min(size, len(room))
    length = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while length < limit:
            with room[length:limit] as rest:
                count = os.preadv(descriptor, [rest], start + length)
            if count == 0:
                return length
            length += count
        if limit < size and os.pread(descriptor, 1, start + length):
            return None
        return length
    finally:
        os.close(descriptor)


def pages_of(length: int, page_size: int) -> int:
    """Return the frames that a piece takes: one at least."""
    return max(1, -(-length // page_size))


def pieces_in(segment: USegment[FilePiece], page_size: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, the offset and the length of each piece in a segment."""
    numbers = segment.meta["piece"].tolist()
    lengths = segment.meta["length"].tolist()
    page = 0
    while page < len(lengths):
        yield numbers[page], page * page_size, lengths[page]
        page += pages_of(lengths[page], page_size)


# -- the worker --------------------------------------------------------------------------------


def hash_pieces(mem: PhysicalMemory, segment: USegment[FilePiece]) -> FrameVec[PieceDigest]:
    """Hash the pieces in a segment where they lie; return frames that carry the digests."""
    answers = []
    with memoryview(segment) as view:
        for number, start, length in pieces_in(segment, mem.page_size):
            with view[start : start + length] as piece:
                digest = hashlib.sha256(piece).digest()
            answers.append(PieceDigest(piece=number, length=length, digest=digest))
    return with_room(lambda: mem.alloc_frames(len(answers), given(answers), zeroed=False))


def given(metas: list[PieceDigest]) -> Callable[[int], PieceDigest]:
    """Return a function that gives each frame the next metadata."""
    rest = iter(metas)
    return lambda paddr: next(rest)


def with_room(allocate: Callable[[], T]) -> T:
    """Allocate frames for which there is room, though others may hold them for a moment."""
    end = perf_counter() + ROOM_SECONDS
    while True:
        try:
            return allocate()
        except OutOfFramesError:
            if perf_counter() >= end:
                raise
        sleep(0.001)


def pickled(answer: tuple[int, FrameVec[PieceDigest]]) -> bytes:
    """Pickle an answer, for which the vector needs a frame that lists its frames."""
    return with_room(lambda: pickle.dumps(answer))


def work(mem: PhysicalMemory, tasks: SimpleQueue[bytes | None], answers: Connection) -> None:
    """Hash segments until told to stop: what a worker process does.

    Parameters
    ----------
    mem
        The arena.
    tasks
        Gives pickles of (number, segment, hold), and None at the end.  With hold set the
        worker says that it holds the segment and the digests, and waits to be killed.
    answers
        Takes pickles of (number, frames with the digests): first (None, None) when the
        worker is ready, and None instead of the frames if it holds them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is interrupted is the parent, which ends us
    threading.Thread(target=end_with_parent, daemon=True).start()
    with mem:
        answers.send_bytes(pickle.dumps((None, None)))
        while (task := tasks.get()) is not None:
            number, segment, hold = pickle.loads(task)
            with segment, hash_pieces(mem, segment) as digests:
                if hold:
                    answers.send_bytes(pickle.dumps((number, None)))
                    threading.Event().wait()
                answer = pickled((number, digests))
            answers.send_bytes(answer)
            del segment, digests


def end_with_parent() -> None:
    """End this process when its parent is gone, which could not tell it to stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# -- the job -----------------------------------------------------------------------------------


def create_arena(size: int, page_size: int, workers: int) -> PhysicalMemory:
    """Create an arena for the demonstration.

    It has no name: nobody else finds it, and it goes with the last of its processes.

    Raises
    ------
    ValueError, MemoryError, OSError
        As `PhysicalMemory.create` does, or if so few frames are free that a piece and
        its digest don't fit.
    """
    mem = PhysicalMemory.create(
        size, page_size=page_size, clients=workers + 2, tickets=max(64, 2 * workers * (AHEAD + 1))
    )
    if mem.free_frames < 3:
        free = mem.free_frames
        mem.close()
        raise ValueError(f"the arena of {size} bytes has {free} free frames, a shared job needs at least 3")
    return mem


@dataclass
class _Batch:
    """Pieces in one segment."""

    number: int
    pieces: list[int]
    size: int
    cost: int  # frames that it takes, those of its digests included
    start: int
    stop: int
    segment: USegment[FilePiece] | None  # while it is in our hands
    message: bytes = b""
    hold: bool = False


class _Worker:
    """A worker process as its parent sees it."""

    def __init__(self, mem: PhysicalMemory, name: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.tasks: SimpleQueue[bytes | None] = context.SimpleQueue()
        self.answers, theirs = context.Pipe(duplex=False)
        self.process: ForkServerProcess = context.Process(
            target=work, args=(mem, self.tasks, theirs), name=name, daemon=True
        )
        self.batches: dict[int, _Batch] = {}
        self.ready = False
        self.buried = False
        try:
            self.process.start()
        finally:
            theirs.close()  # so that the pipe ends with the worker

    @property
    def pid(self) -> int:
        pid = self.process.pid
        assert pid is not None
        return pid

    def kill(self, seconds: float) -> None:
        """End the process, however it is, and wait for it."""
        self.process.kill()
        self.process.join(seconds)
        if self.process.exitcode is None:
            raise WorkerError(f"{self.process.name} (pid {self.pid}) can't be killed")

    def close(self) -> None:
        """Let go of what is left of a process that has ended."""
        self.buried = True
        self.answers.close()
        self.tasks.close()
        self.process.close()


class _Job:
    """Hashing files with workers in a shared arena."""

    def __init__(
        self,
        mem: PhysicalMemory,
        files: Sequence[SourceFile],
        result: SharedResult,
        progress: Progress,
        halfway: Callable[[PhysicalMemory], None],
        patience: float,
    ) -> None:
        self.mem = mem
        self.files = files
        self.result = result
        self.progress = progress
        self.halfway = halfway
        self.patience = patience
        self.room = mem.free_frames  # for batches and their digests
        self.span = min(SPAN, max(1, min((self.room - 1) // 2, self.room // (4 * result.workers))))
        self.piece_size = self.span * mem.page_size
        self.total = sum(file.size for file in files)
        self.wanted: set[int] = set()  # files to read
        self.started = 0  # workers, ever
        self.workers: list[_Worker] = []
        self.victim: _Worker | None = None
        self.numbers = 0  # batches, ever
        self.handed = 0  # bytes, each once
        self.pieces: list[Piece] = []
        self.digests: dict[Piece, Digest] = {}
        self.lost: deque[int] = deque()  # pieces to be read again
        self.returned: deque[_Batch] = deque()  # batches taken back with their frames
        self.next_file = 0
        self.next_index = 0
        self.unhashed: dict[int, int] = {}  # file -> pieces that were read and have no digest yet
        self.complete: set[int] = set()  # files of which all pieces were read
        self.ended: set[int] = set()  # files of which the progress was told
        self.shown = -1  # the file that will be shown as an array
        self.kept: dict[int, USegment[FilePiece]] = {}  # its pieces, by their parts

    # -- workers -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        begin = perf_counter()
        try:
            for _ in range(self.result.workers):
                self.start_worker()
            while not all(worker.ready for worker in self.workers):
                self.listen()
        except BaseException:
            self.__exit__()
            raise
        self.result.start_seconds = perf_counter() - begin
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End all workers, whatever they do."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.kill(self.patience)
            worker.close()
        self.workers.clear()
        for batch in self.returned:
            if batch.segment is not None:
                batch.segment.drop()
        self.returned.clear()
        self.drop_kept()

    def start_worker(self) -> None:
        self.started += 1
        self.workers.append(_Worker(self.mem, f"worker-{self.started}"))

    def listen(self) -> None:
        """Wait until a worker says something or dies, and see to it; kill those that hang."""
        heard = wait(
            [worker.answers for worker in self.workers]
            + [worker.process.sentinel for worker in self.workers],
            self.patience,
        )
        for worker in list(self.workers):
            if not heard and (worker.batches or not worker.ready):
                self.mourn(worker, f"hung for {self.patience:g} s and was killed")
            elif worker.answers in heard or worker.process.sentinel in heard:
                dead = worker.process.sentinel in heard
                at_end = not self.take_answers(worker)
                if (dead or at_end) and not worker.buried:
                    self.mourn(worker)

    def take_answers(self, worker: _Worker) -> bool:
        """Take what a worker has sent; False if it has closed its end."""
        try:
            while not worker.buried and worker.answers.poll():
                self.take_answer(worker, worker.answers.recv_bytes())
        except (EOFError, ConnectionError):
            return False
        return True

    def take_answer(self, worker: _Worker, answer: bytes) -> None:
        """Take the digests of a batch, or see to the worker's other news."""
        self.result.bytes_piped += len(answer)
        number, digests = pickle.loads(answer)
        if number is None:
            worker.ready = True
        elif digests is None:
            if worker is self.victim and worker.process.exitcode is None:
                self.kill_victim(worker, worker.batches[number])
        else:
            self.result.answers += 1
            self.result.answer_frames += len(digests)
            with digests:
                for frame in digests:
                    meta = frame.meta
                    self.finish(meta.piece, Digest(meta.digest, meta.length))
            self.room += worker.batches.pop(number).cost

    def finish(self, number: int, digest: Digest) -> None:
        """Note the digest of a piece."""
        piece = self.pieces[number]
        self.digests[piece] = digest
        self.unhashed[piece.file] -= 1
        if piece.file in self.wanted:
            self.progress(SHARED, 0, digest.length)
            self.end_if_hashed(piece.file)

    def end_if_hashed(self, file: int) -> None:
        """End a file that has been read and hashed."""
        if file in self.complete and not self.unhashed.get(file):
            self.end_file(file)

    def end_file(self, file: int) -> None:
        """Tell, once, that there is no more of a file."""
        if file not in self.ended:
            self.ended.add(file)
            self.progress(SHARED, 1, 0)

    def kill_victim(self, worker: _Worker, batch: _Batch) -> None:
        """Kill the worker that waits for it with frames in its hands."""
        self.result.stats = self.mem.stats()
        self.halfway(self.mem)
        pid = worker.pid
        held = sum(
            any(holder.pid == pid and holder.handles for holder in self.mem.holders(paddr))
            for paddr in range(batch.start, batch.stop, self.mem.page_size)
        )
        worker.kill(self.patience)
        self.result.killed = Killed(worker.process.name, pid, held, worker.process.exitcode)
        self.bury(worker)

    def mourn(self, worker: _Worker, why: str | None = None) -> None:
        """See to a worker that has died, or must, without being the victim."""
        worker.kill(self.patience)
        self.take_answers(worker)  # it may have sent some before it died
        why = why or f"died with exit code {worker.process.exitcode}"
        self.result.deaths.append(f"{worker.process.name} (pid {worker.pid}) {why}")
        if len(self.result.deaths) >= DEATHS:
            raise WorkerError(f"{DEATHS} workers have died unexpectedly: {'; '.join(self.result.deaths)}")
        self.bury(worker)

    def bury(self, worker: _Worker) -> None:
        """Take back all that a dead worker had, and put another in its place."""
        if worker is self.victim:
            self.victim = None
        self.result.reaped.append(self.mem.reap())
        for batch in worker.batches.values():
            self.take_back(batch)
        worker.batches.clear()
        self.workers.remove(worker)
        worker.close()
        self.start_worker()

    def take_back(self, batch: _Batch) -> None:
        """Take the frames of a message back that a dead worker had before it, or else its pieces."""
        try:
            _, batch.segment, _ = pickle.loads(batch.message)
        except FrameGoneError:
            self.lost.extend(batch.pieces)
            self.result.lost_pieces += len(batch.pieces)
            self.result.lost_bytes += batch.size
            self.room += batch.cost
        else:
            self.returned.append(batch)
            self.result.returned += 1

    # -- batches -------------------------------------------------------------------------------

    def do(self, wanted: set[int]) -> None:
        """Hash the wanted files."""
        self.wanted = wanted
        for file in range(len(self.files)):
            if file not in wanted:
                self.end_file(file)
        self.choose_shown()
        begin = perf_counter()
        while self.working():
            free = [worker for worker in self.workers if worker.ready and len(worker.batches) < AHEAD]
            if free:
                batch = self.returned.popleft() if self.returned else self.read_batch()
                if batch is not None:
                    self.hand_over(min(free, key=lambda worker: len(worker.batches)), batch)
                    continue
            if self.working():
                self.listen()
        self.result.shared.seconds = perf_counter() - begin
        self.result.pieces = len(self.digests)

    def working(self) -> bool:
        """Whether anything is left to do."""
        return self.more() or bool(self.returned) or any(worker.batches for worker in self.workers)

    def more(self) -> bool:
        """Whether anything is left to read."""
        while self.lost and self.pieces[self.lost[0]].file not in self.wanted:
            self.lost.popleft()
        while self.next_file < len(self.files) and self.next_file not in self.wanted:
            self.next_file, self.next_index = self.next_file + 1, 0
        return bool(self.lost) or self.next_file < len(self.files)

    def read_batch(self) -> _Batch | None:
        """Read pieces into a segment; None if there is nothing to read or no room now."""
        if not self.more():
            return None
        busy = any(worker.batches for worker in self.workers)
        # A digest takes a frame, and their message one more that lists them.
        if busy and self.room < 2 * self.span + 1:
            return None
        try:
            segment = self.mem.alloc_segment(self.span, FilePiece, zeroed=False)
        except OutOfFramesError:
            if busy:
                return None  # there are enough frames, but not in one run
            raise
        with segment:
            pieces: list[int] = []
            page = total = 0
            with memoryview(segment) as view:
                while page < self.span and self.more():
                    with view[page * self.mem.page_size :] as room:
                        found = self.read_next(room)
                    if found is None:
                        break
                    number, length = found
                    if number < 0:
                        continue
                    meta = segment[page].meta
                    meta.piece.store(number)
                    meta.length.store(length)
                    del meta
                    pieces.append(number)
                    total += length
                    page += pages_of(length, self.mem.page_size)
            if page == 0:
                return None
            filled, start = segment, segment.start_paddr
            if page < self.span:
                filled, rest = segment.split(page * self.mem.page_size)
                rest.drop()
            else:
                filled = segment.clone()
        cost = page + len(pieces) + 1
        self.room -= cost
        self.numbers += 1
        stop = start + page * self.mem.page_size
        return _Batch(self.numbers, pieces, total, cost, start, stop, filled)

    def read_next(self, room: memoryview) -> tuple[int, int] | None:
        """Read the next piece into the room that is left.

        Returns its number and length; -1 as its number if there was none after all, and
        None if it does not fit.
        """
        again = bool(self.lost)
        piece = self.pieces[self.lost[0]] if again else Piece(self.next_file, self.next_index)
        source = self.files[piece.file]
        start = piece.part * self.piece_size
        if len(room) < min(self.piece_size, source.size - start):
            return None
        try:
            length = read_piece(source.path, start, self.piece_size, room)
        except OSError as error:
            self.wanted.discard(piece.file)
            self.end_file(piece.file)
            self.result.skipped.append(SkippedFile(source.path, error.strerror or str(error)))
            return -1, 0
        if length is None:
            return None
        self.result.bytes_read += length
        if again:
            return self.lost.popleft(), length
        if length < self.piece_size:
            self.next_file, self.next_index = self.next_file + 1, 0
            self.complete.add(piece.file)
            if length == 0 and piece.part:  # the piece before was the last one
                self.end_if_hashed(piece.file)
                return -1, 0
        else:
            self.next_index += 1
        self.handed += length
        self.pieces.append(piece)
        self.unhashed[piece.file] = self.unhashed.get(piece.file, 0) + 1
        return len(self.pieces) - 1, length

    def hand_over(self, worker: _Worker, batch: _Batch) -> None:
        """Put a segment into the queue of a worker."""
        assert batch.segment is not None
        half = 2 * self.handed >= self.total or not self.more()
        batch.hold = half and self.victim is None and self.result.killed is None
        if batch.hold:
            self.victim = worker
        else:
            self.keep(batch)
        # Pickled here, not by the queue, since the message is kept. It holds the frames from now on.
        with batch.segment:
            batch.message = pickle.dumps((batch.number, batch.segment, batch.hold))
        batch.segment = None
        worker.batches[batch.number] = batch
        worker.tasks.put(batch.message)
        self.result.segments += 1
        self.result.bytes_handed += batch.size
        self.result.bytes_piped += len(batch.message)

    # -- one array -----------------------------------------------------------------------------

    def choose_shown(self) -> None:
        """Choose the largest file whose pages may be held until the end, and set room aside for it."""
        most = min(ARRAY_PAGES, self.room // 8) * self.mem.page_size if can_map(self.mem) else 0
        sizes = {file: self.files[file].size for file in sorted(self.wanted)}
        self.shown = max(
            (file for file in sizes if 0 < sizes[file] <= most), key=sizes.__getitem__, default=-1
        )
        if self.shown >= 0:
            self.room -= pages_of(sizes[self.shown], self.mem.page_size)

    def keep(self, batch: _Batch) -> None:
        """Keep the pieces of that file, as long as they are as many and as long as they were found."""
        assert batch.segment is not None
        page_size = self.mem.page_size
        if all(self.pieces[number].file != self.shown for number in batch.pieces):
            return
        for number, start, length in pieces_in(batch.segment, page_size):
            file, part = self.pieces[number]
            wanted = min(self.piece_size, self.files[file].size - part * self.piece_size)
            if file == self.shown and part not in self.kept and length == wanted:
                stop = start + pages_of(length, page_size) * page_size
                self.kept[part] = batch.segment.slice(start, stop)

    def show_array(self, buffer: memoryview) -> OneArray | None:
        """Map the pieces one behind another, if there are all, and hash the file as a single array."""
        path, size = self.files[self.shown] if self.kept else (None, 0)
        if path is None or len(self.kept) != -(-size // self.piece_size):
            return None
        try:
            expected = plain_digest(path, buffer).value
            pieces = [self.kept[part].clone() for part in sorted(self.kept)]
            with self.mem.map(pieces, reserve=sum(piece.size for piece in pieces)) as mapping:
                return hash_mapped(path, mapping, size, expected)
        except (OSError, OutOfFramesError):
            return None  # the file is gone, as the next reading will find, or all frames are held
        finally:
            self.drop_kept()

    def drop_kept(self) -> None:
        """Let go of the pieces that were kept."""
        for piece in self.kept.values():
            piece.drop()
        self.kept.clear()

    def stop(self) -> None:
        """Tell the workers to leave, then audit the arena."""
        for worker in self.workers:
            worker.tasks.put(None)
        for worker in list(self.workers):
            worker.process.join(self.patience)
            name, pid, code = worker.process.name, worker.pid, worker.process.exitcode
            if code != 0:
                worker.kill(self.patience)
                how = "did not stop" if code is None else f"ended with exit code {code}"
                self.result.deaths.append(f"{name} (pid {pid}) {how}")
                self.result.reaped.append(self.mem.reap())
            self.workers.remove(worker)
            worker.close()
        self.result.audit = self.mem.audit()
        self.result.frames_left = self.mem.used_frames
        if self.result.stats is None:
            self.result.stats = self.mem.stats()


def run(
    mem: PhysicalMemory,
    files: Sequence[SourceFile],
    workers: int = 3,
    *,
    progress: Progress = lambda stage, files, size: None,
    halfway: Callable[[PhysicalMemory], None] = lambda mem: None,
    patience: float = PATIENCE,
) -> SharedResult:
    """Hash files with workers in a shared arena and compare every digest with plain reading.

    The files are read plainly before and after, since whoever reads a file first may find
    it on the disk only.  A file that can't be read, at whatever time, is skipped from then
    on.

    Parameters
    ----------
    mem
        An empty arena; see `create_arena`.
    files
        The files to read.
    workers
        How many processes work at a time.
    progress
        Called now and then with the stage (`PLAIN`, `SHARED`, `PLAIN_AGAIN`), and the files
        and bytes that were finished since the last call.
    halfway
        Called with the arena while the worker that will be killed holds its frames.
    patience
        Seconds without a sign of life after which a worker that has work is killed.

    Raises
    ------
    WorkerError
        If workers die again and again, or one can't be killed.
    OutOfFramesError
        If the arena has no run of frames for a single batch.
    """
    result = SharedResult(workers)
    buffer = memoryview(bytearray(PLAIN_CHUNK))
    expected: dict[int, list[Digest]] = {}

    def read_plainly(stage: int, number: int, reading: Reading) -> None:
        source = files[number]
        try:
            digests, seconds = plain_digests(source.path, job.piece_size, buffer)
        except OSError as error:
            result.skipped.append(SkippedFile(source.path, error.strerror or str(error)))
        else:
            if stage == PLAIN:
                expected[number] = digests
            reading.files += 1
            reading.bytes += sum(digest.length for digest in digests)
            reading.seconds += seconds
        progress(stage, 1, source.size)

    with _Job(mem, files, result, progress, halfway, patience) as job:
        for number in range(len(files)):
            read_plainly(PLAIN, number, result.plain_first)
        job.do(set(expected))
        result.array = job.show_array(buffer)
        job.stop()
        for number in range(len(files)):
            if number in job.wanted:
                read_plainly(PLAIN_AGAIN, number, result.plain_second)
            else:
                progress(PLAIN_AGAIN, 1, files[number].size)

    found: dict[int, dict[int, Digest]] = {number: {} for number in job.wanted}
    for piece, digest in job.digests.items():
        if piece.file in found:
            found[piece.file][piece.part] = digest
    for number in sorted(found):
        result.shared.files += 1
        result.shared.bytes += sum(digest.length for digest in found[number].values())
        if found[number] != dict(enumerate(expected[number])):
            result.shared.mismatches.append(files[number].path)
    return result
