# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
from typing import NamedTuple, Protocol, runtime_checkable

class Layout(NamedTuple):
    size: int
    align: int

@runtime_checkable
class FrameAllocator(Protocol):
    def alloc(self, layout: Layout) -> int | None: ...
    def dealloc(self, paddr: int, size: int) -> None: ...
    def add_free_memory(self, paddr: int, size: int) -> None: ...
