# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How long it takes to take back a full arena after its holder was killed.

A child allocates every frame of an arena of 4 KiB frames and is killed; `PhysicalMemory.reap`
is timed in the parent.  ``python bench/recovery.py [GiB] [repeats]``
"""

import os
import signal
import statistics
import sys
import time

from pageframe import PhysicalMemory


def main() -> None:
    gib = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    times = []
    with PhysicalMemory.create(int(gib * 2**18) * 4096) as mem:
        for _ in range(repeats):
            frames = kill_holder_of_all(mem)
            begin = time.perf_counter()
            report = mem.reap()
            times.append(time.perf_counter() - begin)
            if report.frames != frames or mem.used_frames:
                raise SystemExit(f"{report.frames} of {frames} frames came back")
    middle = statistics.median(times)
    print(f"{frames} frames of 4 KiB; {repeats} times; milliseconds:")
    print(f"median {middle * 1e3:.2f}, least {min(times) * 1e3:.2f}, most {max(times) * 1e3:.2f}")
    print(f"per GiB {middle * 1e3 / gib:.2f}, per frame {middle / frames * 1e9:.1f} ns")


def kill_holder_of_all(mem: PhysicalMemory) -> int:
    """Let a child take all frames and die; return how many it had."""
    frames = mem.free_frames
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        vector = mem.alloc_frames(frames, zeroed=False)
        os.write(writing, str(len(vector)).encode())
        signal.pause()
    os.close(writing)
    taken = int(os.read(reading, 32))
    os.close(reading)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return taken


if __name__ == "__main__":
    main()
