# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, SupportsIndex, TypeAlias, final

import numpy.typing as npt
from typing_extensions import disjoint_base

from pageframe._core.array import FrameArray, VirtualBytes
from pageframe._core.frame import UFrame
from pageframe._core.meta import UntypedFrameMeta
from pageframe._core.page_property import PageProperty
from pageframe._core.segment import USegment
from pageframe._core.vector import FrameVec

MappableHandle: TypeAlias = UFrame[Any] | USegment[Any] | FrameVec[Any]
MappableFrames: TypeAlias = MappableHandle | Iterable[MappableHandle]

@disjoint_base
class Mapping(VirtualBytes):
    @property
    def size(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def base(self) -> int: ...
    @property
    def prop(self) -> PageProperty: ...
    @property
    def kernel_mappings(self) -> int: ...
    @property
    def meta_type(self) -> type[UntypedFrameMeta]: ...
    @property
    def frames(self) -> FrameVec[Any]: ...
    def append(self, frames: MappableFrames) -> None: ...
    def array(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex] | None = None,
        dtype: npt.DTypeLike = "u1",
        *,
        order: str = "C",
    ) -> FrameArray[Any, Any]: ...
    def drop(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Ring(Mapping):
    def window(self, start: SupportsIndex, length: SupportsIndex | None = None) -> memoryview: ...
