# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
from dataclasses import dataclass

from pageframe._core.client import ClientInfo

@dataclass(frozen=True)
class AuditReport:
    frames: int
    clients: tuple[ClientInfo, ...]
    tickets: int
    orphans: int
    leaked: tuple[int, ...]
    miscounted: tuple[int, ...]
    damaged: tuple[int, ...]
    busy: int
    quiet: bool
    repaired: bool
    frames_by_type: dict[str, int]
    @property
    def clean(self) -> bool: ...

@dataclass(frozen=True)
class FrameHolder:
    pid: int
    name: str
    started: float
    handles: int
    mappings: int
    tickets: int
