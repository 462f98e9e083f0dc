# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
from collections.abc import Callable
from struct import Struct
from typing import Any

from pageframe._core.array import FrameArray
from pageframe._core.frame import Frame
from pageframe._core.memory import PhysicalMemory
from pageframe._core.segment import Segment
from pageframe._core.vector import FrameVec

MESSAGE: Struct
kept: dict[bytes, PhysicalMemory]

def reduce_frame(frame: Frame[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]: ...
def reduce_segment(segment: Segment[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]: ...
def reduce_vector(vec: FrameVec[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]: ...
def reduce_array(array: FrameArray[Any, Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]: ...
def reduce_arena(mem: PhysicalMemory) -> tuple[Callable[..., Any], tuple[Any, ...]]: ...
def load_arena(arena_id: bytes, pid: int, path: bytes) -> PhysicalMemory: ...
def load(message: bytes) -> Frame[Any] | Segment[Any] | FrameVec[Any]: ...
def load_array(
    message: bytes,
    dtype: Any,
    shape: tuple[int, ...],
    offset: int,
    strides: tuple[int, ...] | None,
    readonly: bool,
) -> FrameArray[Any, Any]: ...
