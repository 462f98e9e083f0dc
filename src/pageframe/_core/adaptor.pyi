# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, SupportsIndex, TypeVar, overload

import numpy.typing as npt
from typing_extensions import disjoint_base

from pageframe._core.array import FrameArray
from pageframe._core.frame import Frame, UFrame
from pageframe._core.mapping import Ring
from pageframe._core.memory import PhysicalMemory
from pageframe._core.meta import FrameMeta, UntypedFrameMeta
from pageframe._core.segment import Segment, USegment
from pageframe._core.vector import FrameVec

M = TypeVar("M", bound=FrameMeta)
U = TypeVar("U", bound=UntypedFrameMeta)

@disjoint_base
class Adaptor:
    def __init__(self, upstream: PhysicalMemory | Adaptor) -> None: ...
    @property
    def mem(self) -> PhysicalMemory: ...
    @property
    def upstream(self) -> PhysicalMemory | Adaptor: ...
    @property
    def used_frames(self) -> int: ...
    @property
    def used_bytes(self) -> int: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def __getattr__(self, name: str) -> Any: ...
    def _set_limit(self, frames: int) -> None: ...
    def _open_log(self, fd: int) -> None: ...
    def _flush_log(self, closes: bool) -> None: ...
    def _figures(self) -> tuple[int, int, int]: ...
    def _figures_by_type(self) -> list[tuple[int, int]]: ...
    def _reset(self) -> None: ...
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
    def asarray(self, array: npt.ArrayLike) -> FrameArray[Any, Any]: ...
    def ring(
        self,
        size: int | str,
        meta: UntypedFrameMeta | type[UntypedFrameMeta] | None = None,
        zeroed: bool = True,
    ) -> Ring: ...
