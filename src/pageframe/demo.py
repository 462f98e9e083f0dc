# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The demonstration: a page cache over real files, checked against plain reading.

Every file is read through page frames and read directly, and the two digests are
compared.  Then all files are read both ways a second time, in the opposite order:
a cache that evicts the least recently used page never hits when more data than it
can hold is read again in the same order, because each page goes just before its
turn comes.  Backwards, the pages that were read last come first.

Whoever reads a file first may find it on the disk only, and the other one finds
it in the memory of the system, so plain reading and reading through frames take
turns at being first.

In the end the pages of one file, which lie wherever there was a frame, are mapped one
behind another: a single array, whose digest is that of the file.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from pageframe import (
    ArenaStats,
    FrameVec,
    Link,
    LinkedList,
    Mapping,
    OutOfFramesError,
    PhysicalMemory,
    UniqueFrame,
    UntypedFrameMeta,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import Self

    from pageframe import Frame

READ_AHEAD = 32
"""Pages read by one system call, at the most."""

PLAIN_CHUNK = 1 << 18
"""Bytes that plain reading reads at a time."""

ARRAY_PAGES = 1024
"""Pages that are shown as a single array, at the most."""


class CachedPage(Link, UntypedFrameMeta):
    """Metadata of a frame that holds a page of a file.

    Attributes
    ----------
    file
        Number of the file in its cache.
    index
        Index of the page in the file.
    length
        Bytes of the page that belong to the file; fewer than a page at its end.
    """

    file: u32
    index: u32
    length: u32


@dataclass(slots=True)
class _CachedFile:
    """What a cache knows of a file besides its pages."""

    number: int
    pages: int | None = None  # not known before its end was seen


class PageCache:
    """A cache of file pages in the frames of an arena.

    Each page lies in a frame of its own.  A linked list owns the frames, the most
    recently used in front; when frames run out, the page at the back is evicted
    and its frame repurposed.  What was read is not read again while it is cached,
    even if the file has changed.

    A cache is used by one thread at a time.

    Parameters
    ----------
    mem
        The arena.  The cache takes as many of its free frames as it can use.

    Attributes
    ----------
    hits
        Pages found in the cache.
    misses
        Pages read from their file.
    evictions
        Pages that gave way to others.
    """

    def __init__(self, mem: PhysicalMemory) -> None:
        self.mem = mem
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._files: dict[Path, _CachedFile] = {}
        self._paddrs: dict[tuple[int, int], int] = {}
        self._lru: LinkedList[CachedPage] = LinkedList(mem, CachedPage)

    def read(self, path: Path, sink: Callable[[memoryview], object]) -> int:
        """Hand the pages of a file to a function, one after another.

        Parameters
        ----------
        path
            A regular file.  It is not opened when all its pages are cached.
        sink
            Called with each page: a view of the frame's own bytes, released after
            the call.  It must not read from this cache.

        Returns
        -------
        int
            Number of bytes in all pages.

        Raises
        ------
        OSError
            If the file can't be opened or read.
        OutOfFramesError
            If the arena has no frame for a page and the cache none to evict.
        """
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = _CachedFile(len(self._files))
        page_size = self.mem.page_size
        descriptor = -1
        index = size = 0
        try:
            while index != file.pages:
                paddr = self._paddrs.pop((file.number, index), None)
                if paddr is not None:
                    self.hits += 1
                    frames = [self._take(paddr)]
                else:
                    if descriptor < 0:
                        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    frames = self._read_ahead(file, descriptor, index)
                # Frames in hand are not in the cache, so nothing evicts them.
                for frame in frames:
                    length = frame.meta.length
                    page = memoryview(frame)
                    if length < page_size:
                        page = page[:length]
                    sink(page)
                    page.release()
                    self._paddrs[file.number, index] = frame.start_paddr
                    self._lru.push_front(frame)
                    index += 1
                    size += length
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return size

    def pages(self, path: Path) -> int | None:
        """Return the number of pages of a file all of which are in the cache; None if some are not."""
        file = self._files.get(path)
        if file is None or file.pages is None:
            return None
        return file.pages if all((file.number, i) in self._paddrs for i in range(file.pages)) else None

    @contextmanager
    def mapped(self, path: Path) -> Iterator[tuple[Mapping, int]]:
        """Show a file, all pages of which are in the cache, as one contiguous buffer.

        The pages stay in the cache, in front, and are not copied.  If there is no frame
        for the page table pages of other files are evicted.

        Parameters
        ----------
        path
            A file of which `pages` says that it has one at least.

        Yields
        ------
        mapping
            The pages.  No view of it may live on.
        size
            Bytes that belong to the file.

        Raises
        ------
        OutOfFramesError
            If there is no frame for the page table, and the cache has no other page to evict.
        MapBudgetError
            If the pages take more kernel mappings than the process may have.
        """
        file = self._files[path]
        frames: list[Frame[CachedPage]] = []
        size = 0
        # Frames in hand are not in the cache, so nothing evicts them.
        for index in range(file.pages or 0):
            frame = self._take(self._paddrs[file.number, index])
            size += frame.meta.length
            frames.append(frame.share())
        try:
            with (
                FrameVec.from_frames(frame.clone() for frame in frames) as clones,
                self._map(clones) as mapping,
            ):
                yield mapping, size
        finally:
            for kept in reversed(frames):
                self._lru.push_front(kept.try_unique())

    def _map(self, frames: FrameVec[CachedPage]) -> Mapping:
        """Map frames; pages give way to the page table."""
        while True:
            try:
                return self.mem.map(frames, reserve=frames.size)
            except OutOfFramesError:
                if not self._lru:
                    raise
                self._evict().drop()

    def _read_ahead(self, file: _CachedFile, descriptor: int, index: int) -> list[UniqueFrame[CachedPage]]:
        """Read from a missing page on, up to the next cached one; no frames at the end of the file."""
        page_size = self.mem.page_size
        start = index * page_size
        file_size = os.fstat(descriptor).st_size
        wanted = -(-file_size // page_size) - index
        if wanted <= 0:
            # At its end; but files like those of /proc do not tell their size.
            if not os.pread(descriptor, 1, start):
                file.pages = index
                return []
            wanted = 1
        frames = self._obtain_frames(file.number, index, min(wanted, READ_AHEAD))
        room = len(frames) * page_size
        size = os.preadv(descriptor, frames, start)
        while size < room and start + size != file_size:
            full, rest = divmod(size, page_size)
            with memoryview(frames[full]) as whole, whole[rest:] as part:
                count = os.preadv(descriptor, [part, *frames[full + 1 :]], start + size)
            if count == 0:
                break
            size += count
        pages, rest = divmod(size, page_size)
        if rest:
            frames[pages].meta.length = rest
            pages += 1
        if size < room or start + size == file_size:
            file.pages = index + pages
        self.misses += pages
        return frames[:pages]

    def _obtain_frames(self, number: int, index: int, wanted: int) -> list[UniqueFrame[CachedPage]]:
        """Frames for pages from an index on: at least one, the wanted number at the most."""
        frames: list[UniqueFrame[CachedPage]] = []
        meta = CachedPage(file=number, length=self.mem.page_size)
        # To ask once is cheaper than an exception for every page of a full arena.
        free = self.mem.free_frames
        for i in range(index, index + wanted):
            if (number, i) in self._paddrs:
                break
            meta.index = i
            if len(frames) < free:
                frames.append(self.mem.alloc_frame(meta, zeroed=False).try_unique())
            elif self._paddrs:
                frames.append(self._evict().repurpose(meta))
            elif frames:
                break
            else:
                raise OutOfFramesError("the arena has no free frame, and the cache no page to evict")
        return frames

    def _take(self, paddr: int) -> UniqueFrame[CachedPage]:
        """Take the frame at an address out of the list, where it is known to be."""
        cursor = self._lru.cursor_at(paddr)
        frame = cursor and cursor.take_current()
        assert frame is not None, f"{paddr:#x} is not in the list"
        return frame

    def _evict(self) -> UniqueFrame[CachedPage]:
        """Take the frame of the least recently used page."""
        frame = self._lru.pop_back()
        assert frame is not None, "nothing is cached"
        meta = frame.meta
        del self._paddrs[meta.file, meta.index]
        self.evictions += 1
        return frame

    def close(self) -> None:
        """Free all frames."""
        self._paddrs.clear()
        self._files.clear()
        self._lru.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Return the number of pages in the cache."""
        return len(self._lru)

    def __contains__(self, page: tuple[Path, int]) -> bool:
        """Whether a page, given as (path, index), is in the cache."""
        path, index = page
        file = self._files.get(path)
        return file is not None and (file.number, index) in self._paddrs


class SourceFile(NamedTuple):
    """A file to read, with the size it had when it was found."""

    path: Path
    size: int


class SkippedFile(NamedTuple):
    """A file or directory that could not be read, and why."""

    path: Path
    reason: str


def find_files(root: Path, exclude: Collection[str] = ()) -> tuple[list[SourceFile], list[SkippedFile]]:
    """Find the regular files under a path.

    Symbolic links are not followed, except by `root` itself, and a file that has
    several names is listed once.

    Parameters
    ----------
    root
        A directory or a regular file.
    exclude
        Names of directories to leave out.

    Returns
    -------
    files
        The files, sorted by their paths.
    skipped
        What could not be looked at.

    Raises
    ------
    OSError
        If `root` is missing, can't be read or is neither a directory nor a regular file.
    """
    status = root.stat()
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        raise OSError(0, "neither a directory nor a regular file", str(root))
    os.close(os.open(root, os.O_RDONLY))
    if stat.S_ISREG(status.st_mode):
        return [SourceFile(root, status.st_size)], []

    skipped: list[SkippedFile] = []

    def skip(error: OSError) -> None:
        skipped.append(SkippedFile(Path(error.filename), error.strerror or str(error)))

    paths = []
    for folder, folders, names in os.walk(root, onerror=skip):
        folders[:] = [name for name in folders if name not in exclude]
        paths += [Path(folder, name) for name in names]
    files = []
    seen = set()
    for path in sorted(paths):
        try:
            status = path.lstat()
        except OSError as error:
            skip(error)
            continue
        identity = status.st_dev, status.st_ino
        if stat.S_ISREG(status.st_mode) and identity not in seen:
            seen.add(identity)
            files.append(SourceFile(path, status.st_size))
    return files, skipped


class Digest(NamedTuple):
    """The digest of a file's bytes, how many there were, and the seconds it took."""

    value: bytes
    size: int
    seconds: float


@dataclass
class Reading:
    """The figures of one reading of all files.

    Attributes
    ----------
    files, bytes, seconds
        What was read and hashed, and how long that took.
    mismatches
        Files whose digest was not that of plain reading.
    hits, misses, evictions
        What the cache counted meanwhile; nothing for plain reading.
    """

    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    mismatches: list[Path] = field(default_factory=list)
    hits: int = 0
    misses: int = 0
    evictions: int = 0

    @property
    def pages(self) -> int:
        """Number of pages that were read through frames."""
        return self.hits + self.misses

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.seconds if self.seconds else 0.0

    def add(self, path: Path, found: Digest, expected: Digest) -> None:
        """Add a file that was read."""
        self.files += 1
        self.bytes += found.size
        self.seconds += found.seconds
        if found.value != expected.value:
            self.mismatches.append(path)

    def count(self, cache: PageCache, before: Reading | None = None) -> None:
        """Take over what a cache has counted since an earlier reading."""
        self.hits = cache.hits - (before.hits if before else 0)
        self.misses = cache.misses - (before.misses if before else 0)
        self.evictions = cache.evictions - (before.evictions if before else 0)


@dataclass(frozen=True)
class OneArray:
    """A file whose scattered pages were mapped one behind another, and hashed as a single array.

    Attributes
    ----------
    path
        The file.
    pages
        How many it has.
    kernel_mappings
        How many kernel mappings show them: those that are contiguous take one together.
    right
        Whether the digest was that of plain reading.
    """

    path: Path
    pages: int
    kernel_mappings: int
    right: bool


@dataclass(frozen=True)
class DemoResult:
    """What a run of the demonstration found.

    Attributes
    ----------
    plain_first, plain_second
        The two plain readings.
    first, second
        The two readings through frames.
    skipped
        Files that could not be read.
    stats
        Figures of the arena, taken while the cache held all that it could.
    array
        The file that was shown as a single array; None if none could be.
    """

    plain_first: Reading
    plain_second: Reading
    first: Reading
    second: Reading
    skipped: list[SkippedFile]
    stats: ArenaStats
    array: OneArray | None

    @property
    def mismatches(self) -> list[Path]:
        """Files with a wrong digest in either reading, or as an array, each once."""
        return all_mismatches(self.first.mismatches + self.second.mismatches, self.array)


def all_mismatches(mismatches: list[Path], array: OneArray | None) -> list[Path]:
    """Return files with a wrong digest, that of the array included, each once."""
    wrong = [array.path] if array is not None and not array.right else []
    return list(dict.fromkeys(mismatches + wrong))


def plain_digest(path: Path, buffer: memoryview) -> Digest:
    """Hash a file by reading it chunk by chunk into a buffer."""
    begin = perf_counter()
    sha = hashlib.sha256()
    size = 0
    with FileIO(path) as file:
        while count := file.readinto(buffer):
            sha.update(buffer[:count])
            size += count
    return Digest(sha.digest(), size, perf_counter() - begin)


def frame_digest(path: Path, cache: PageCache) -> Digest:
    """Hash a file in the frames of a cache."""
    begin = perf_counter()
    sha = hashlib.sha256()
    size = cache.read(path, sha.update)
    return Digest(sha.digest(), size, perf_counter() - begin)


def hash_mapped(path: Path, mapping: Mapping, size: int, expected: bytes) -> OneArray:
    """Hash the first bytes of a mapping as one array; the rest of its last page is not the file's."""
    digest = hashlib.sha256(mapping.array(size).data).digest()
    return OneArray(path, len(mapping.frames), mapping.kernel_mappings, digest == expected)


def can_map(mem: PhysicalMemory) -> bool:
    """Whether frames of an arena can be mapped: none smaller than the system's pages can."""
    return mem.page_size >= mmap.PAGESIZE


def show_array(cache: PageCache, expected: dict[SourceFile, Digest]) -> OneArray | None:
    """Hash the largest file that can be shown as a single array from the pages of a cache.

    Parameters
    ----------
    cache
        The cache.  It may lose pages of other files to the page table.
    expected
        Digests of plain reading.

    Returns
    -------
    OneArray or None
        None if no file is all in the cache, or there are no frames for the page table.
    """
    room = len(cache) + cache.mem.free_frames
    most = min(ARRAY_PAGES, room // 2)  # the page table takes frames, too
    cached = [(pages, file) for file in expected if (pages := cache.pages(file.path)) and pages <= most]
    if not cached or not can_map(cache.mem):
        return None
    _, file = max(cached)
    try:
        with cache.mapped(file.path) as (mapping, size):
            return hash_mapped(file.path, mapping, size, expected[file].value)
    except OutOfFramesError:
        return None


def run(
    cache: PageCache,
    files: Sequence[SourceFile],
    progress: Callable[[int, SourceFile], None] = lambda reading, file: None,
    full: Callable[[PhysicalMemory], None] = lambda mem: None,
) -> DemoResult:
    """Read all files twice through a cache and compare every digest with plain reading.

    A file that can't be read, at whatever time, is skipped from then on.  The cache
    is left as it is in the end.

    Parameters
    ----------
    cache
        An empty cache.
    files
        The files to read.
    progress
        Called after each file, read or skipped, with the number of the reading, 1 or
        2, and the file.
    full
        Called with the arena while the cache holds all that it can.
    """
    buffer = memoryview(bytearray(PLAIN_CHUNK))
    plain_first = Reading()
    plain_second = Reading()
    first = Reading()
    second = Reading()
    skipped: list[SkippedFile] = []
    expected: dict[SourceFile, Digest] = {}

    def both(path: Path, plain_goes_first: bool) -> tuple[Digest, Digest]:
        """Read a file both ways."""
        if plain_goes_first:
            direct = plain_digest(path, buffer)
            return direct, frame_digest(path, cache)
        framed = frame_digest(path, cache)
        return plain_digest(path, buffer), framed

    for number, file in enumerate(files):
        try:
            direct, framed = both(file.path, number % 2 == 0)
        except OSError as error:
            skipped.append(SkippedFile(file.path, error.strerror or str(error)))
        else:
            plain_first.add(file.path, direct, direct)
            first.add(file.path, framed, direct)
            expected[file] = direct
        progress(1, file)
    first.count(cache)

    for number, file in enumerate(reversed(files)):
        if file in expected:
            try:
                direct, framed = both(file.path, number % 2 == 0)
            except OSError as error:
                skipped.append(SkippedFile(file.path, f"in the second reading: {error.strerror or error}"))
            else:
                plain_second.add(file.path, direct, direct)
                second.add(file.path, framed, expected[file])
        progress(2, file)
    second.count(cache, first)

    stats = cache.mem.stats()
    full(cache.mem)
    array = show_array(cache, expected)
    return DemoResult(plain_first, plain_second, first, second, skipped, stats, array)
