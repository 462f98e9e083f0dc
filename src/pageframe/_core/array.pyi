# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
from typing import Any, TypeVar, final

import numpy as np
from typing_extensions import Buffer, disjoint_base

from pageframe._core.handle import Holder
from pageframe._core.meta import UntypedFrameMeta

S = TypeVar("S", bound=tuple[int, ...], covariant=True)
D = TypeVar("D", bound=np.dtype[Any], covariant=True)

@disjoint_base
class VirtualBytes(Holder[UntypedFrameMeta], Buffer): ...

@final
class FrameBytes:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

class FrameArray(np.ndarray[S, D]):
    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any: ...

def readonly(array: FrameArray[S, D]) -> FrameArray[S, D]: ...
