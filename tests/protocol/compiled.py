# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Does the cases (cases.py) with the compiled code and says what it did.

Run with ``python -S compiled.py FOLDER`` against a build with steps (steps/build.py).  Prints a
JSON object a run: which steps each process has passed, in their order, and the words of the arena
when the last one was dead.  Each case is done whole, and once for each step of its last process, which
is killed there.
"""

import json
import os
import pickle
import signal
import sys
import traceback
import uuid
from pathlib import Path

import numpy as np

from steps.control import Steps

# isort: split
from pageframe import Frame, FrameInUseError, MemoryRegion, PhysicalMemory, UntypedFrameMeta, u64
from pageframe._core import backing
from pageframe._core.memory import leave_all
from protocol.cases import CASES, CLIENTS, Case

PAGE = 4096
FRAMES = 128  # more than all tables take


class Plain(UntypedFrameMeta):
    number: u64


def dropping_type():
    class Dropping(UntypedFrameMeta):
        number: u64

        def on_drop(self, reader):
            pass

    return Dropping


usable_for = {}  # free frames -> how many are usable, with the tables


class Shared:
    """An arena in which all frames but a few are bad, and nobody is."""

    def __init__(self, name: str, frames: int) -> None:
        self.name, self.frames = name, frames
        usable = usable_for.get(frames, FRAMES)
        while True:
            # As much more as there are free frames too few or too many.
            regions = [
                MemoryRegion(0, usable * PAGE, "usable"),
                MemoryRegion(usable * PAGE, (2 * FRAMES - usable) * PAGE, "bad"),
            ]
            mem = PhysicalMemory.create(
                2 * FRAMES * PAGE, name, regions=regions, clients=CLIENTS, tickets=1, ticket_ttl=0,
                unlink_on_last=False,
            )  # fmt: skip
            free = mem.free_frames
            if free == frames:
                break
            mem.close()
            PhysicalMemory.unlink(name)
            usable = usable_for[frames] = usable + frames - free
        self.first = min(set(range(2 * FRAMES)) - set(np.flatnonzero(mem.slots["count"] != 2**64 - 1)))
        mem.close()

    def words(self) -> dict:
        """What lies in the arena, as far as the model has it."""
        path = backing.SHM / f"{backing.PREFIX}{self.name}"
        with path.open("rb") as file:
            header = backing.read_header(file.fileno(), str(path))
            data = file.read()
        table = {name: offset for name, (offset, _) in header.tables.items()}

        def word(at: int, size: int = 8) -> int:
            return int.from_bytes(data[at : at + size], "little")

        mine = range(self.first, self.first + self.frames)
        bits = word(table["bits"] + self.first // 64 * 8) >> self.first % 64
        slots = [table["slots"] + frame * header.slot_size for frame in mine]
        areas = [table["areas"] + client * header.area_size for client in range(CLIENTS)]
        ticket = table["tickets"]
        state = word(ticket)
        return {
            "bits": bits & (1 << self.frames) - 1,
            "count": [word(at) for at in slots],
            "generation": [word(at + 8) for at in slots],
            "ledger": [word(area + 4096 + 4 * frame, 4) for area in areas for frame in mine],
            "kept": [word(area) and word(area) - self.first for area in areas],  # 1: our first one
            "op": [
                (op := word(area + 24)) and [(op >> 8) - self.first, op & 0xFF] for area in areas
            ],
            "ops": [word(area + 32) for area in areas],
            "orphans": word(448, 4),
            "state": [word(table["clients"] + 128 * client, 4) for client in range(CLIENTS)],
            "ticket": [state >> 8 & 0xFFFF, state & 0xFF, word(ticket + 24)],
        }  # fmt: skip


def do(shared: Shared, operations: tuple, messages: Path, arm) -> None:
    """Do the operations of a process, as one client or two."""
    clients = 1 + max(operation[1] for operation in operations)
    if operations[0][0] == "join":
        arm()
    mems = [PhysicalMemory.attach(shared.name, reap=False) for _ in range(clients)]
    if operations[0][0] != "join":
        arm()
    handles = {}
    for name, client, *rest in operations:
        mem = mems[client]
        if name in ("alloc", "alloc_dropping"):
            meta = dropping_type() if name == "alloc_dropping" else Plain
            handles[rest[0]] = mem.alloc_frame(meta, zeroed=False)
        elif name == "clone":
            handles[rest[1]] = handles[rest[0]].clone()
        elif name == "find":
            handles[rest[1]] = Frame.from_in_use(mem, (shared.first + rest[0]) * PAGE)
        elif name == "drop":
            handles.pop(rest[0]).drop()
        elif name == "unique":
            handles[rest[0]] = handles[rest[0]].try_unique()
        elif name == "unique_fails":
            try:
                handles[rest[0]].try_unique()
            except FrameInUseError:
                continue
            raise AssertionError("a shared frame was made unique")
        elif name == "share":
            handles[rest[0]] = handles[rest[0]].share()
        elif name == "repurpose":
            handles[rest[0]] = handles[rest[0]].repurpose(Plain)
        elif name == "send":
            messages.write_bytes(pickle.dumps(handles[rest[0]]))
        elif name == "load":
            handles[rest[0]] = pickle.loads(messages.read_bytes())
        elif name == "fork":
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        elif name == "reap":
            mem.reap()
        elif name == "audit":
            mem.audit(repair=True)
        elif name == "leave":
            leave_all()
    os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, steps: Steps, case: Case, kill: tuple[str, int] | None) -> dict:
    """Do a case in which the last process is killed at a step, or at its end."""
    shared = Shared(f"test-{os.getpid()}-{uuid.uuid4().hex[:8]}", case.frames)
    trouble = folder / "trouble"
    steps.clear()
    before = []
    try:
        for i, operations in enumerate(case.processes):
            before.append(shared.words())
            last = i == len(case.processes) - 1
            step, after = (kill or (None, 0)) if last else (case.killed_at, 0)
            pid = os.fork()
            if pid == 0:
                signal.alarm(30)
                kept = dropping_type() if case.knows[i] else None
                try:
                    do(shared, operations, folder / "message", lambda: steps.arm(i, step, after))  # noqa: B023
                except BaseException:
                    trouble.write_text(traceback.format_exc())
                os._exit(0 if kept is None else 1)
            _, status = os.waitpid(pid, 0)
            if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
                raise AssertionError(trouble.read_text() if trouble.exists() else f"ended with {status}")
        words = shared.words()
    finally:
        PhysicalMemory.unlink(shared.name)
    # Numbers of operations only grow, over all who have had a place.
    words["ops"] = [now - then for now, then in zip(words["ops"], before[-1]["ops"], strict=True)]
    return {"orders": [steps.order(i) for i in range(len(case.processes))], "words": words}


def main() -> None:
    folder = Path(sys.argv[1])
    steps = Steps(folder / "steps")
    for name in sys.argv[2:] or CASES:
        case = CASES[name]
        whole = run(folder, steps, case, None)
        print(json.dumps({"case": name, "kill": None, **whole}), flush=True)
        last = whole["orders"][-1]
        for i, step in enumerate(last):
            if last[i - 1 : i] == [step]:  # the same for another lane
                continue
            kill = step, last[:i].count(step)
            print(json.dumps({"case": name, "kill": i, **run(folder, steps, case, kill)}), flush=True)


if __name__ == "__main__":
    main()
