# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Metadata types that several tests use."""

from typing import ClassVar

from pageframe import FrameMeta, Link, UntypedFrameMeta, atomic_u32, bool_, bytes_, i16, u32, u64


class Page(Link, UntypedFrameMeta):
    """Untyped, and can be in a list."""

    inode: u64
    dirty: bool_ = True
    tag: bytes_[16]
    hits: atomic_u32


class Node(FrameMeta):
    """Typed."""

    level: u32 = 1
    delta: i16


class Raw(UntypedFrameMeta):
    """Untyped, in no list."""

    number: u64


class Dropped(UntypedFrameMeta):
    """Tells of its end."""

    number: u64
    seen: ClassVar[list] = []

    def on_drop(self, reader):
        """Remember the number and the first bytes."""
        Dropped.seen.append((self.number, reader.remain, reader.read_bytes(4)))
