# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What both the model and the compiled code do, to see that they do the same.

A case is one process after another, each of which ends by being killed.  What a process does is a
list of operations: name, client (a process may be two), and the names of handles.
"""

from dataclasses import dataclass

CLIENTS = 3


@dataclass(frozen=True)
class Case:
    """Processes, one after the other, in an arena with so many free frames."""

    frames: int
    processes: tuple  # of tuples of operations
    knows: tuple = (True, True, True)  # which of them know the type with an on_drop
    killed_at: str | None = None  # step before which the first one is killed


CASES = {
    "allocated, cloned, found, dropped": Case(
        1,
        (
            (
                ("alloc", 0, "a"), ("clone", 0, "a", "b"), ("find", 0, 0, "c"), ("drop", 0, "a"),
                ("drop", 0, "c"), ("drop", 0, "b"), ("alloc", 0, "e"), ("drop", 0, "e"),
            ),
        ),
    ),
    "two clients": Case(
        1,
        (
            (
                ("alloc", 0, "a"), ("find", 1, 0, "b"), ("drop", 0, "a"), ("drop", 1, "b"),
                ("alloc", 0, "c"), ("drop", 0, "c"), ("alloc", 1, "e"),
            ),
            (("reap", 0),),
        ),
    ),
    "two frames": Case(
        2,
        (
            (
                ("alloc", 0, "a"), ("alloc", 0, "b"), ("drop", 0, "a"), ("drop", 0, "b"),
                ("alloc", 0, "c"), ("alloc", 0, "d"),
            ),
            (("reap", 0),),
        ),
    ),
    "unique": Case(
        1,
        (
            (
                ("alloc", 0, "a"), ("unique", 0, "a"), ("repurpose", 0, "a"), ("share", 0, "a"),
                ("clone", 0, "a", "b"), ("unique_fails", 0, "a"), ("drop", 0, "a"), ("unique", 0, "b"),
            ),
            (("reap", 0), ("alloc", 0, "c")),
        ),
    ),
    "on_drop": Case(
        1,
        (
            (("alloc_dropping", 0, "a"), ("drop", 0, "a"), ("alloc_dropping", 0, "b")),
            (("reap", 0), ("audit", 0)),
        ),
    ),
    "nobody knows the type": Case(
        1,
        (
            (("alloc_dropping", 0, "a"),),
            (("reap", 0),),
            (("reap", 0), ("audit", 0)),
        ),
        (True, False, True),
    ),
    "sent and expired": Case(
        1,
        (
            (("alloc", 0, "a"), ("send", 0, "a"), ("drop", 0, "a")),
            (("reap", 0), ("audit", 0)),
        ),
    ),
    "sent and loaded": Case(
        1,
        (
            (("alloc", 0, "a"), ("send", 0, "a"), ("drop", 0, "a")),
            (("load", 0, "b"), ("drop", 0, "b")),
            (("reap", 0), ("audit", 0)),
        ),
    ),
    "left": Case(
        2,
        (
            (("alloc", 0, "a"), ("alloc", 1, "b"), ("find", 1, 0, "c"), ("leave", 0)),
            (("alloc", 0, "d"),),
        ),
    ),
    "joined, forked": Case(
        1,
        ((("join", 0), ("alloc", 0, "a"), ("clone", 0, "a", "b"), ("fork", 0), ("drop", 0, "a")),),
    ),
    "a count that is too high": Case(
        1,
        (
            (("alloc", 0, "a"), ("clone", 0, "a", "b")),
            (("find", 0, 0, "c"), ("audit", 0), ("drop", 0, "c")),
        ),
        killed_at="inc_ledger",
    ),
    "a reference that nobody has": Case(
        1,
        (
            (("alloc", 0, "a"), ("clone", 0, "a", "b")),
            (("audit", 0),),
        ),
        killed_at="inc_ledger",
    ),
    "a bit that nobody has": Case(
        1,
        (
            (("alloc", 0, "a"),),
            (("audit", 0), ("alloc", 0, "b")),
        ),
        killed_at="claim_ledger",
    ),
    "shared and reaped": Case(
        1,
        (
            (("alloc", 0, "a"), ("find", 1, 0, "b"), ("clone", 1, "b", "c")),
            (("reap", 0), ("audit", 0), ("alloc", 0, "d")),
        ),
    ),
}  # fmt: skip
