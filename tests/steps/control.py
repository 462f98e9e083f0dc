# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The page by which a process says at which step of the protocol it is to be stopped (step.h)."""

import mmap
import os
import signal
import struct
from pathlib import Path

from steps.build import step_names

TARGETS = 8
in_child = []  # functions, the last of which a forked child runs before it does anything else

# Whoever imports this before pageframe has it run before the hooks of that.
os.register_at_fork(after_in_child=lambda: in_child and in_child.pop()())

ORDER = 4096
HEAD = struct.Struct("QQQQQ")  # pid, step, after, signal, hit


class Steps:
    """The page as this process sees it; processes forked from it share it."""

    def __init__(self, path: Path) -> None:
        self.names = step_names()
        self.size = HEAD.size + 8 * (len(self.names) + 1) + ORDER
        path.write_bytes(bytes(TARGETS * self.size))
        with path.open("r+b") as file:
            self.page = mmap.mmap(file.fileno(), TARGETS * self.size)
        os.environ["PAGEFRAME_STEPS"] = str(path)

    def clear(self) -> None:
        """Watch nobody."""
        self.page[:] = bytes(len(self.page))

    def arm(self, target: int, step: str | None, after: int = 0, sent: int = signal.SIGKILL) -> None:
        """Have a signal sent to this process when it comes to a step; None: only count."""
        number = len(self.names) if step is None else self.names.index(step)
        HEAD.pack_into(self.page, target * self.size, os.getpid(), number, after, sent, 0)

    def hit(self, target: int) -> bool:
        """Whether the signal was sent."""
        return HEAD.unpack_from(self.page, target * self.size)[4] != 0

    def passed(self, target: int) -> dict[str, int]:
        """How often the process has passed each step."""
        counts = struct.unpack_from(f"{len(self.names)}Q", self.page, target * self.size + HEAD.size)
        return dict(zip(self.names, counts, strict=True))

    def order(self, target: int) -> list[str]:
        """The steps that the process has passed, in their order."""
        start = target * self.size + HEAD.size + 8 * len(self.names)
        (listed,) = struct.unpack_from("Q", self.page, start)
        if listed > ORDER:
            raise OverflowError(f"{listed} steps were passed, and {ORDER} are listed")
        return [self.names[number] for number in self.page[start + 8 : start + 8 + listed]]
