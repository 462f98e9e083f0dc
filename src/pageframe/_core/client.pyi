# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
from dataclasses import dataclass
from weakref import WeakValueDictionary

from pageframe._core.arena import Arena

@dataclass(frozen=True)
class ClientInfo:
    pid: int
    name: str
    started: float

shared_arenas: WeakValueDictionary[int, Arena]

def process_name() -> str: ...
def process_start() -> int: ...
