# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How long it takes to look at an arena of 16 GiB of 4 KiB frames, of which it uses few pages.

The floor is NumPy adding up the counts of all slots, which reads the same memory once: a view is
opened anew each time, so both pay for the kernel's mapping of the slots.
``python -m bench.looking [GiB] [repeats]``
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pageframe import ArenaView, PhysicalMemory


def timed(arena_id: str, look: Callable[[ArenaView], object]) -> float:
    begin = time.perf_counter()
    with ArenaView(id=arena_id) as view:
        look(view)
    return time.perf_counter() - begin


def row(mem: PhysicalMemory, used: str, repeats: int) -> None:
    looks: dict[str, Callable[[ArenaView], object]] = {
        "floor": lambda view: int(view.slots["count"].sum()),
        "stats": lambda view: view.stats(),
        "audit": lambda view: view.audit(),
    }
    times: dict[str, list[float]] = {name: [] for name in looks}
    for _ in range(repeats):
        for name, look in looks.items():
            times[name].append(timed(mem.id, look))
    floor = statistics.median(times["floor"])
    for name, taken in times.items():
        middle = statistics.median(taken)
        print(f"{used:>10} used  {name:6} {middle * 1e3:7.1f} ms  {middle / floor:5.2f} x the floor")


def command(mem: PhysicalMemory, repeats: int) -> None:
    program = Path(sys.executable).with_name("pageframe")
    for words in (["--version"], ["stat", mem.id, "--json"]):
        taken = []
        for _ in range(repeats):
            begin = time.perf_counter()
            subprocess.run([program, *words], check=True, stdout=subprocess.DEVNULL)
            taken.append(time.perf_counter() - begin)
        print(f"pageframe {words[0]:9} as a command {statistics.median(taken) * 1e3:7.1f} ms")


def main() -> None:
    gib = float(sys.argv[1]) if len(sys.argv) > 1 else 16.0
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    with PhysicalMemory.create(int(gib * 2**18) * 4096) as mem:
        row(mem, "none", repeats)
        frames = mem.alloc_frames(mem.free_frames * 3 // 4, zeroed=False)
        row(mem, f"{len(frames):,}", repeats)
        every_other = frames[::2]
        frames.drop()
        row(mem, f"{len(every_other):,}", repeats)
        command(mem, repeats)
        every_other.drop()


if __name__ == "__main__":
    main()
