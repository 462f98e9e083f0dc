# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
import builtins
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, Self, SupportsIndex, TypeVar, overload

import numpy.typing as npt

from pageframe._core.arena_view import ArenaView
from pageframe._core.array import FrameArray
from pageframe._core.audit import AuditReport
from pageframe._core.early import Kind, MemoryRegion
from pageframe._core.frame import Frame, UFrame
from pageframe._core.mapping import MappableFrames, Mapping, Ring
from pageframe._core.meta import FrameMeta, UntypedFrameMeta
from pageframe._core.page_property import PageProperty
from pageframe._core.reap import ReapReport
from pageframe._core.segment import Segment, USegment
from pageframe._core.user_allocator import FrameAllocator
from pageframe._core.vector import FrameVec

M = TypeVar("M", bound=FrameMeta)
U = TypeVar("U", bound=UntypedFrameMeta)

REF_COUNT_UNUSED: Final[int]
REF_COUNT_UNIQUE: Final[int]
REF_COUNT_MAX: Final[int]

@dataclass(frozen=True)
class ArenaInfo:
    name: str | None
    path: Path | None
    id: str
    size: int
    page_size: int
    total_frames: int
    used_frames: int
    clients: int
    dead: int
    created: float
    owner: int
    stale: bool
    problem: str | None

@dataclass(frozen=True)
class Sharing:
    id: bytes
    clients: int
    tickets: int
    area_size: int
    flags: int
    ticket_ttl: int

exit_arranged: list[int]

def leave_all() -> None: ...
def leave_at_exit_of_child() -> None: ...
def arrange_finalizer(function: Callable[[], None]) -> None: ...

class PhysicalMemory(ArenaView):
    def __init__(
        self,
        size: int | str,
        *,
        page_size: int | str = 4096,
        slot_size: int | str = 64,
        regions: Iterable[MemoryRegion | tuple[int, int, Kind]] | None = None,
        populate: bool = False,
        mappable: bool = True,
        allocator: FrameAllocator | None = None,
    ) -> None: ...
    @classmethod
    def create(
        cls,
        size: int | str,
        name: str | None = None,
        *,
        path: str | bytes | PathLike[str] | None = None,
        exist_ok: bool = False,
        page_size: int | str = 4096,
        slot_size: int | str = 64,
        regions: Iterable[MemoryRegion | tuple[int, int, Kind]] | None = None,
        populate: bool = False,
        clients: int = 128,
        tickets: int | None = None,
        ticket_ttl: float = 3600.0,
        unlink_on_last: bool = True,
    ) -> Self: ...
    @classmethod
    def attach(
        cls,
        name: str | None = None,
        *,
        path: str | bytes | PathLike[str] | None = None,
        id: str | None = None,
        reap: bool = True,
    ) -> Self: ...
    @classmethod
    def _attach_unnamed(cls, arena_id: bytes, pid: int) -> Self: ...
    @staticmethod
    def list(*, all: bool = False) -> builtins.list[ArenaInfo]: ...
    @staticmethod
    def unlink(name: str | None = None, *, path: str | bytes | PathLike[str] | None = None) -> None: ...
    @property
    def ticket_ttl(self) -> float: ...
    @ticket_ttl.setter
    def ticket_ttl(self, seconds: float) -> None: ...
    def reap(self) -> ReapReport: ...
    def audit(self, repair: bool = False) -> AuditReport: ...
    def array(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex],
        dtype: npt.DTypeLike = float,
        *,
        order: str = "C",
        zeroed: bool = True,
    ) -> FrameArray[Any, Any]: ...
    def zeros(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex],
        dtype: npt.DTypeLike = float,
        *,
        order: str = "C",
    ) -> FrameArray[Any, Any]: ...
    def empty(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex],
        dtype: npt.DTypeLike = float,
        *,
        order: str = "C",
    ) -> FrameArray[Any, Any]: ...
    def map(
        self,
        frames: MappableFrames,
        prop: PageProperty | None = None,
        *,
        reserve: int | str | None = None,
    ) -> Mapping: ...
    def ring(
        self,
        size: int | str,
        meta: UntypedFrameMeta | type[UntypedFrameMeta] | None = None,
        zeroed: bool = True,
    ) -> Ring: ...
    def asarray(self, array: npt.ArrayLike) -> FrameArray[Any, Any]: ...
    @overload
    def alloc_frame(self, meta: None = None, zeroed: bool = True) -> UFrame[UntypedFrameMeta]: ...
    @overload
    def alloc_frame(self, meta: U | type[U], zeroed: bool = True) -> UFrame[U]: ...
    @overload
    def alloc_frame(self, meta: M | type[M], zeroed: bool = True) -> Frame[M]: ...
    @overload
    def alloc_frames(self, n: int, meta: None = None, zeroed: bool = True) -> FrameVec[UntypedFrameMeta]: ...
    @overload
    def alloc_frames(
        self, n: int, meta: Callable[[int], M] | M | type[M], zeroed: bool = True
    ) -> FrameVec[M]: ...
    @overload
    def alloc_segment(
        self, n: int, meta_fn: None = None, zeroed: bool = True, align: int | str | None = None
    ) -> USegment[UntypedFrameMeta]: ...
    @overload
    def alloc_segment(
        self,
        n: int,
        meta_fn: Callable[[int], U] | U | type[U],
        zeroed: bool = True,
        align: int | str | None = None,
    ) -> USegment[U]: ...
    @overload
    def alloc_segment(
        self,
        n: int,
        meta_fn: Callable[[int], M] | M | type[M],
        zeroed: bool = True,
        align: int | str | None = None,
    ) -> Segment[M]: ...
    def inc_frame_ref_count(self, paddr: int) -> None: ...
    def trim(self) -> int: ...
    def close(self) -> None: ...
