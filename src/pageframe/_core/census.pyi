# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
import builtins
from dataclasses import dataclass

STATE_NAMES: tuple[str, ...]

@dataclass(frozen=True)
class ClientStats:
    pid: int
    name: str
    started: float
    alive: bool
    frames: int
    bytes: builtins.int
    handles: builtins.int
    mappings: builtins.int
    tickets: builtins.int

@dataclass(frozen=True)
class TicketInfo:
    serial: int
    pid: int
    name: str
    state: str
    frames: int
    bytes: builtins.int
    age: float
    expires: float
    paddr: builtins.int

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
    busy_frames: int
    orphan_frames: int
    references: int
    raw_references: int
    longest_free_run: int
    free_runs: tuple[int, ...]
    overhead: int
    frames_by_type: dict[str, int]
    frames_by_state: dict[str, dict[str, int]]
    clients: tuple[ClientStats, ...]
    tickets: tuple[TicketInfo, ...]
    messages: builtins.int
    @property
    def fragmentation(self) -> float: ...
    def unusable(self, order: int) -> float: ...
