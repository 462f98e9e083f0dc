# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
from typing import Any, TypeVar, final, overload

from typing_extensions import Buffer

from pageframe._core.frame import Frame
from pageframe._core.handle import M_co, Owner
from pageframe._core.memory import PhysicalMemory
from pageframe._core.meta import FrameMeta, UntypedFrameMeta

M = TypeVar("M", bound=FrameMeta)

@final
class UniqueFrame(Owner[M_co], Buffer):
    @overload
    @classmethod
    def from_unused(
        cls, mem: PhysicalMemory, paddr: int, meta: None = None
    ) -> UniqueFrame[UntypedFrameMeta]: ...
    @overload
    @classmethod
    def from_unused(cls, mem: PhysicalMemory, paddr: int, meta: M | type[M]) -> UniqueFrame[M]: ...
    @classmethod
    def from_raw(cls, mem: PhysicalMemory, paddr: int) -> UniqueFrame[Any]: ...
    def share(self) -> Frame[M_co]: ...
    @overload
    def repurpose(self, meta: None = None) -> UniqueFrame[UntypedFrameMeta]: ...
    @overload
    def repurpose(self, meta: M | type[M]) -> UniqueFrame[M]: ...
    def reset_as_unused(self) -> None: ...
    def cast(self, meta_type: type[M]) -> UniqueFrame[M]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
