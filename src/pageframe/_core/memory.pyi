# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
import builtins
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, SupportsIndex, TypeVar, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from pageframe._core.arena import Arena
from pageframe._core.array import FrameArray
from pageframe._core.audit import AuditReport, FrameHolder
from pageframe._core.client import ClientInfo
from pageframe._core.early import Kind, MemoryRegion
from pageframe._core.frame import Frame, UFrame
from pageframe._core.handle import Handle
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
class ArenaStats:
    size: int
    page_size: int
    slot_size: int
    total_frames: int
    free_frames: int
    used_frames: int
    reserved_frames: int
    shared_frames: int
    unique_frames: int
    references: int
    raw_references: int
    longest_free_run: int
    overhead: int
    frames_by_type: dict[str, int]

@dataclass(frozen=True)
class ArenaInfo:
    name: str | None
    path: Path | None
    id: str
    size: int
    page_size: int
    clients: int

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

@disjoint_base
class PhysicalMemory(Arena):
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
    def attach(cls, name: str | None = None, *, path: str | bytes | PathLike[str] | None = None) -> Self: ...
    @classmethod
    def _attach_unnamed(cls, arena_id: bytes, pid: int) -> Self: ...
    @staticmethod
    def list() -> builtins.list[ArenaInfo]: ...
    @staticmethod
    def unlink(name: str | None = None, *, path: str | bytes | PathLike[str] | None = None) -> None: ...
    @property
    def name(self) -> str | None: ...
    @property
    def shared(self) -> bool: ...
    @property
    def clients(self) -> tuple[ClientInfo, ...]: ...
    @property
    def ticket_ttl(self) -> float: ...
    @ticket_ttl.setter
    def ticket_ttl(self, seconds: float) -> None: ...
    def reap(self) -> ReapReport: ...
    def audit(self, repair: bool = False) -> AuditReport: ...
    def holders(self, frame: Handle[Any] | int) -> builtins.list[FrameHolder]: ...
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
    @property
    def size(self) -> int: ...
    @property
    def max_paddr(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def slot_size(self) -> int: ...
    @property
    def total_frames(self) -> int: ...
    @property
    def free_frames(self) -> int: ...
    @property
    def used_frames(self) -> int: ...
    @property
    def reserved_frames(self) -> int: ...
    @property
    def layout(self) -> tuple[tuple[str, int, int], ...]: ...
    @property
    def closed(self) -> bool: ...
    @property
    def types(self) -> dict[int, type[FrameMeta]]: ...
    @property
    def slots(self) -> npt.NDArray[np.void]: ...
    def stats(self) -> ArenaStats: ...
    def meta(self, meta_type: type[FrameMeta]) -> np.ma.MaskedArray[Any, np.dtype[np.void]]: ...
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
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
