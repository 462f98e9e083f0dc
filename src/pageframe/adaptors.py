# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Adaptors: a limit, a log or statistics between a program and an arena.

An adaptor offers the allocation methods of the arena, hands each call on to its upstream,
an arena or another adaptor, and returns what comes back:

    mem = pageframe.PhysicalMemory("64 MiB")
    cache = LimitAdaptor(StatisticsAdaptor(mem), "16 MiB")
    frame = cache.alloc_frame()

What was allocated through an adaptor counts in it, and in those beneath, as long as this
process holds the frame; see docs/adaptors.md.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import IO, TYPE_CHECKING, Any

from pageframe._core.adaptor import Adaptor
from pageframe._core.early import parse_size

if TYPE_CHECKING:
    from os import PathLike

    from pageframe._core.memory import PhysicalMemory

__all__ = ["Adaptor", "LimitAdaptor", "LogAdaptor", "StatisticsAdaptor"]


class LimitAdaptor(Adaptor):
    """A quota: what is allocated through it never takes more than so much memory at a time.

    Parameters
    ----------
    upstream : PhysicalMemory or Adaptor
        What is asked for frames.
    limit : int or str
        Bytes, or a string like ``"16 MiB"``. Only whole frames count.

    Raises
    ------
    ValueError
        If the limit makes no sense.
    """

    def __init__(self, upstream: PhysicalMemory | Adaptor, limit: int | str) -> None:
        limit = parse_size(limit)
        if not 0 <= limit < 1 << 63:
            raise ValueError(f"a limit is 0 .. 2**63 bytes, not {limit}")
        super().__init__(upstream)
        self._limit = limit
        self._set_limit(limit // self.mem.page_size)

    @property
    def limit(self) -> int:
        """Bytes that may be in use at a time."""
        return self._limit


class StatisticsAdaptor(Adaptor):
    """Counts what is allocated through it.

    Parameters
    ----------
    upstream : PhysicalMemory or Adaptor
        What is asked for frames.
    """

    @property
    def peak_frames(self) -> int:
        """The most frames that were in use at a time, since the last `reset`."""
        return self._figures()[0]

    @property
    def peak_bytes(self) -> int:
        """Bytes of `peak_frames`."""
        return self.peak_frames * self.mem.page_size

    @property
    def total_frames(self) -> int:
        """Frames that were allocated, released ones too, since the last `reset`."""
        return self._figures()[1]

    @property
    def allocations(self) -> int:
        """Calls that have allocated them."""
        return self._figures()[2]

    @property
    def by_type(self) -> dict[str, tuple[int, int]]:
        """Frames in use, and the most at a time: name of a metadata type -> (current, peak).

        The type is the one that a frame was allocated with. Of types that have one name in
        common, such as a class and what it was before it was changed, it is the sum.
        """
        found: dict[str, tuple[int, int]] = {}
        types = self.mem.types
        for type_id, (current, peak) in enumerate(self._figures_by_type()):
            if peak:
                name = types[type_id].__layout__.name
                others = found.get(name, (0, 0))
                found[name] = others[0] + current, others[1] + peak
        return found

    def reset(self) -> None:
        """Begin anew: peaks are what is in use, totals 0. What is in use stays in the account."""
        self._reset()


logs: weakref.WeakSet[LogAdaptor] = weakref.WeakSet()  # those that have not gone


def close_all() -> None:
    """At the end of the process: write what is still in the logs."""
    errors = []
    for log in list(logs):
        try:
            log.close()
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


atexit.register(close_all)


class LogAdaptor(Adaptor):
    """Writes a line of CSV for what is allocated through it, what fails, and what is released.

    The columns are ``time`` (seconds since the epoch), ``thread`` (`threading.get_ident`),
    ``event`` (``allocate``, ``release`` or ``failure``), ``paddr``, ``bytes`` and ``type``.
    A line is a run of frames next to one another: those of one allocation, or those that a
    thread has let go of within a millisecond. A failure has the bytes that were wanted and
    no paddr.

    Lines are written when there are many of them, by `flush`, and by `close`, which also
    happens when the adaptor goes and when the process ends. A release after that is in no
    log. A forked child writes nothing to the log of its parent.

    Parameters
    ----------
    upstream : PhysicalMemory or Adaptor
        What is asked for frames.
    path_or_file : path-like or file object
        A file to be made, or emptied; or one that is open and has a descriptor, which is
        duplicated.

    Raises
    ------
    OSError
        If the file can't be opened, or has no descriptor.
    """

    def __init__(
        self, upstream: PhysicalMemory | Adaptor, path_or_file: str | PathLike[str] | IO[Any]
    ) -> None:
        super().__init__(upstream)
        if isinstance(path_or_file, (str, os.PathLike)):
            fd = os.open(path_or_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        else:
            path_or_file.flush()
            fd = os.dup(path_or_file.fileno())
        try:
            self._open_log(fd)
        except BaseException:
            os.close(fd)
            raise
        logs.add(self)

    def flush(self) -> None:
        """Write the lines that are still there.

        Raises
        ------
        OSError
            If a line could not be written, now or before; nothing was after that one.
        """
        self._flush_log(False)

    def close(self) -> None:
        """Write what is still there and end the log. Allocating goes on without it.

        Does nothing if it is closed already. Raises as `flush` does.
        """
        self._flush_log(True)
