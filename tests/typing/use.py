# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a type checker must see of the public API; never run."""

from typing import Annotated, assert_type

import pageframe as pf


class Page(pf.Link, pf.UntypedFrameMeta):
    """Metadata of an untyped frame."""

    inode: pf.u64
    dirty: pf.bool_ = True
    tag: Annotated[bytes, 16]
    hits: pf.atomic_u32


class Node(pf.FrameMeta):
    """Metadata of a typed frame."""

    level: pf.i32 = 1

    def on_drop(self, reader: pf.VmReader) -> None:
        """Read what was in the frame."""
        assert_type(reader.read_bytes(), bytes)


with pf.PhysicalMemory("1 MiB", regions=[(0x10000, 4096, "bad")]) as mem:
    frame = mem.alloc_frame(Page(inode=1))
    assert_type(frame, pf.UFrame[Page])
    assert_type(frame.meta.inode, int)
    assert_type(frame.meta.dirty, bool)
    assert_type(frame.meta.tag, bytes)
    assert_type(frame.meta.hits.fetch_add(1), int)
    assert_type(memoryview(frame)[0], int)
    assert_type(mem.alloc_frame(Node), pf.Frame[Node])
    assert_type(mem.alloc_frame(), pf.UFrame[pf.UntypedFrameMeta])
    assert_type(frame.clone(), pf.UFrame[Page])
    assert_type(frame.borrow().meta.inode, int)
    unique = frame.try_unique()
    assert_type(unique, pf.UniqueFrame[Page])
    unique.meta.inode = 2
    lru = pf.LinkedList(mem, Page)
    lru.push_front(unique)
    assert_type(lru.pop_back(), pf.UniqueFrame[Page] | None)
    if cursor := lru.cursor_at(0x5000):
        assert_type(cursor.current_meta, Page | None)
    segment = mem.alloc_segment(4, lambda paddr: Page(inode=paddr))
    assert_type(segment, pf.USegment[Page])
    left, right = segment.split(4096)
    assert_type(left, pf.USegment[Page])
    assert_type(mem.alloc_segment(4, Node), pf.Segment[Node])
    vec = mem.alloc_frames(4, Node(level=2))
    assert_type(vec[0], pf.Frame[Node])
    assert_type(pf.Frame.from_in_use(mem, 0x5000).cast(Node), pf.Frame[Node])
    assert_type(mem.stats().frames_by_type, dict[str, int])
