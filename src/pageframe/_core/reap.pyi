# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
from dataclasses import dataclass, field

from pageframe._core.client import ClientInfo

@dataclass(frozen=True)
class ReapReport:
    clients: tuple[ClientInfo, ...] = ()
    frames: int = 0
    references: int = 0
    tickets: int = 0
    orphans: int = 0
    adopted: int = 0
    in_doubt: int = 0
    frames_by_type: dict[str, int] = field(default_factory=dict)
