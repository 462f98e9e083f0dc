# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A physical memory manager for Python.

Memory is an arena of page frames. Every frame has a metadata slot with its
reference count, its type and typed metadata of the user's own, and lives as long
as somebody holds it. See `PhysicalMemory` to begin.
"""

from pathlib import Path

from pageframe._core import message as message  # so that handles can be pickled
from pageframe._core.arena_view import ArenaView
from pageframe._core.array import FrameArray, readonly
from pageframe._core.audit import AuditReport, FrameHolder
from pageframe._core.census import ArenaStats, ClientStats, TicketInfo
from pageframe._core.client import ClientInfo
from pageframe._core.early import MemoryRegion, parse_size
from pageframe._core.errors import (
    AddressInUseError,
    ArenaByteOrderError,
    ArenaClosedError,
    ArenaDamagedError,
    ArenaExistsError,
    ArenaForeignError,
    ArenaFullError,
    ArenaGoneError,
    ArenaInUseError,
    ArenaNameError,
    ArenaNotFoundError,
    ArenaPermissionError,
    ArenaTruncatedError,
    ArenaVersionError,
    BadArenaError,
    ClientsFullError,
    CopyOnWriteError,
    FrameBusyError,
    FrameGoneError,
    FrameInUseError,
    FrameReservedError,
    FrameTypeError,
    FrameUniqueError,
    FrameUnusedError,
    GetFrameError,
    MapBudgetError,
    MovedError,
    NotAlignedError,
    NotMappedError,
    NotRawError,
    OutOfBoundError,
    OutOfFramesError,
    PageFrameError,
    QuotaExceededError,
    RangeInUseError,
    RangeLockedError,
    RefCountOverflowError,
    SpaceClosedError,
    TicketsFullError,
    WriteAfterReleaseWarning,
)
from pageframe._core.field_type import (
    atomic_i8,
    atomic_i16,
    atomic_i32,
    atomic_i64,
    atomic_u8,
    atomic_u16,
    atomic_u32,
    atomic_u64,
    bool_,
    bytes_,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)
from pageframe._core.frame import Frame, FrameRef, UFrame
from pageframe._core.io import VmReader, VmWriter
from pageframe._core.kernel_map import map_budget
from pageframe._core.linked_list import Cursor, LinkedList
from pageframe._core.mapping import Mapping, Ring
from pageframe._core.memory import (
    REF_COUNT_MAX,
    REF_COUNT_UNIQUE,
    REF_COUNT_UNUSED,
    ArenaInfo,
    PhysicalMemory,
)
from pageframe._core.meta import (
    FrameMeta,
    Link,
    MetaPageMeta,
    OpaqueMeta,
    PageTableMeta,
    ReservedMemoryMeta,
    TicketPageMeta,
    UntypedFrameMeta,
    UnusableMemoryMeta,
)
from pageframe._core.page_property import PageProperty
from pageframe._core.reap import ReapReport
from pageframe._core.segment import Segment, USegment
from pageframe._core.traces import TRACEMALLOC_DOMAIN
from pageframe._core.unique import UniqueFrame
from pageframe._core.user_allocator import FrameAllocator, Layout
from pageframe._core.vector import FrameVec
from pageframe._core.vm_space import VmCursor, VmItem, VmSpace

__all__ = [
    "REF_COUNT_MAX",
    "REF_COUNT_UNIQUE",
    "REF_COUNT_UNUSED",
    "TRACEMALLOC_DOMAIN",
    "AddressInUseError",
    "ArenaByteOrderError",
    "ArenaClosedError",
    "ArenaDamagedError",
    "ArenaExistsError",
    "ArenaForeignError",
    "ArenaFullError",
    "ArenaGoneError",
    "ArenaInUseError",
    "ArenaInfo",
    "ArenaNameError",
    "ArenaNotFoundError",
    "ArenaPermissionError",
    "ArenaStats",
    "ArenaTruncatedError",
    "ArenaVersionError",
    "ArenaView",
    "AuditReport",
    "BadArenaError",
    "ClientInfo",
    "ClientStats",
    "ClientsFullError",
    "CopyOnWriteError",
    "Cursor",
    "Frame",
    "FrameAllocator",
    "FrameArray",
    "FrameBusyError",
    "FrameGoneError",
    "FrameHolder",
    "FrameInUseError",
    "FrameMeta",
    "FrameRef",
    "FrameReservedError",
    "FrameTypeError",
    "FrameUniqueError",
    "FrameUnusedError",
    "FrameVec",
    "GetFrameError",
    "Layout",
    "Link",
    "LinkedList",
    "MapBudgetError",
    "Mapping",
    "MemoryRegion",
    "MetaPageMeta",
    "MovedError",
    "NotAlignedError",
    "NotMappedError",
    "NotRawError",
    "OpaqueMeta",
    "OutOfBoundError",
    "OutOfFramesError",
    "PageFrameError",
    "PageProperty",
    "PageTableMeta",
    "PhysicalMemory",
    "QuotaExceededError",
    "RangeInUseError",
    "RangeLockedError",
    "ReapReport",
    "RefCountOverflowError",
    "ReservedMemoryMeta",
    "Ring",
    "Segment",
    "SpaceClosedError",
    "TicketInfo",
    "TicketPageMeta",
    "TicketsFullError",
    "UFrame",
    "USegment",
    "UniqueFrame",
    "UntypedFrameMeta",
    "UnusableMemoryMeta",
    "VmCursor",
    "VmItem",
    "VmReader",
    "VmSpace",
    "VmWriter",
    "WriteAfterReleaseWarning",
    "atomic_i8",
    "atomic_i16",
    "atomic_i32",
    "atomic_i64",
    "atomic_u8",
    "atomic_u16",
    "atomic_u32",
    "atomic_u64",
    "bool_",
    "bytes_",
    "f32",
    "f64",
    "get_include",
    "i8",
    "i16",
    "i32",
    "i64",
    "map_budget",
    "parse_size",
    "readonly",
    "u8",
    "u16",
    "u32",
    "u64",
]


def get_include() -> str:
    """Return the folder with the C headers that pageframe's `.pxd` files include.

    Pass it to the C compiler when building Cython code that cimports a frame.
    """
    return str(Path(__file__).parent / "_core")
