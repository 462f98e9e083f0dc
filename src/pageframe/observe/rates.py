# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Rates: how many frames an arena gives out and gets back, seen from outside.

Nobody counts these while they happen.  But each slot has the number of lives that its frame
has had (`generation`), so the sum over all slots, taken twice, tells how many ended between;
and as many began as ended, and as many more as there are frames in use.  A frame that gets
another life without being released (`UniqueFrame.repurpose`) counts in both.  Messages have
numbers, and the arena knows the last.

The figures of a sample are not of one moment.  What is allocated or released while it is
taken may count in the interval before or after, so rates are exact over any interval at
whose ends the arena is at rest, and off by what happened while a sample was taken otherwise.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pageframe import ArenaGoneError, ArenaTruncatedError

if TYPE_CHECKING:
    from pageframe import ArenaStats, ArenaView

WRAP = 1 << 64


@dataclass(frozen=True)
class Sample:
    """What an arena was like.

    Attributes
    ----------
    moment
        When, in seconds of `time.monotonic`.
    stats
        Its figures.
    ended
        Lives of frames that have ended since the arena was made, modulo 2**64.
    """

    moment: float
    stats: ArenaStats
    ended: int


@dataclass(frozen=True)
class Rates:
    """What happened between two samples.

    Attributes
    ----------
    seconds
        How long it took.
    allocated, released
        Lives of frames that began, and that ended.
    messages
        Messages that were made: handles that were pickled to be handed over.
    """

    seconds: float
    allocated: int
    released: int
    messages: int

    def per_second(self, number: int) -> float:
        """Return how many that is in a second."""
        return number / self.seconds if self.seconds > 0 else 0.0


def rates(before: Sample, after: Sample) -> Rates:
    """Return what happened between two samples of one arena."""
    released = (after.ended - before.ended) % WRAP
    return Rates(
        seconds=after.moment - before.moment,
        # Less than none, if much was allocated while the first of them was taken.
        allocated=max(0, released + after.stats.used_frames - before.stats.used_frames),
        released=released,
        messages=(after.stats.messages - before.stats.messages) % WRAP,
    )


class Sampler:
    """Takes samples of an arena through a view, as long as the arena is where it was.

    Parameters
    ----------
    view
        The arena.
    """

    def __init__(self, view: ArenaView) -> None:
        self.view = view
        self.bytes = max(paddr + size for _, paddr, size in view.layout)
        self.file = None if view.path is None else view.path.stat()

    def check(self) -> None:
        """Make sure that the arena is still there, before anything of it is read.

        Raises
        ------
        ArenaGoneError
            If the arena's file has gone, or no process has the arena any more.
        ArenaTruncatedError
            If its file was cut, so that it can't be read without a fault.
        """
        path = self.view.path
        if path is None or self.file is None:
            if not self.view.clients:
                raise ArenaGoneError("the arena is gone: its last process has left it")
            return
        try:
            now = path.stat()
        except FileNotFoundError:
            raise ArenaGoneError(f"the arena is gone: there is no {path} any more") from None
        if not os.path.samestat(now, self.file):
            raise ArenaGoneError(f"the arena is gone: another one lies at {path}")
        if now.st_size < self.bytes:
            raise ArenaTruncatedError(f"{path} has {now.st_size} bytes of {self.bytes}: it was truncated")

    def sample(self) -> Sample:
        """Take a sample."""
        ended = int(self.view.slots["generation"].sum())
        return Sample(time.monotonic(), self.view.stats(), ended)
