# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Kills a victim at every step that every scenario passes, and lets a survivor check what is left.

Run with ``python -S server.py FOLDER PASSES PART PARTS`` against a build with steps (build.py); prints one
JSON object a line.  Every run is two processes forked from this one, or more: the survivor makes an
arena and forks the victim.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
import uuid
from pathlib import Path

from steps.control import TARGETS, Steps

# isort: split
from pageframe import FrameGoneError, PhysicalMemory
from steps.check import (
    check_all_free_frames_work,
    check_audit,
    check_dropped_once,
    check_held,
    check_repaired,
)
from steps.patterns import Node, Told, late_type, make, make_list, make_segment, make_unique, make_vector
from steps.scenarios import CLIENTS, NAMED, SCENARIOS, STOPS, World

SECONDS = 30  # until a process that hangs is ended


def main() -> None:
    folder = Path(sys.argv[1])
    passes, part, parts = map(int, sys.argv[2:])
    steps = Steps(folder / "steps")
    for name in list(SCENARIOS)[part::parts]:
        whole = apart(folder, steps, name, None, 0)
        print(json.dumps(whole), flush=True)
        for step, count in whole.get("passed", {}).items():
            for after in chosen(count, passes):
                print(json.dumps(apart(folder, steps, name, step, after)), flush=True)
            if name not in STOPS:
                print(json.dumps(apart(folder, steps, name, step, 0, signal.SIGSTOP)), flush=True)


def chosen(count: int, passes: int) -> list[int]:
    """The first pass, the last one, and others evenly between."""
    if count <= passes:
        return list(range(count))
    return [i * (count - 1) // max(1, passes - 1) for i in range(passes)]


def apart(
    folder: Path, steps: Steps, name: str, step: str | None, after: int, sent: int = signal.SIGKILL
) -> dict:
    """Do one run in a process of its own, the survivor."""
    result = {"scenario": name, "step": step, "after": after, "sent": sent, "error": None}
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        os.close(reading)
        try:
            result |= survive(folder, steps, name, step, after, sent)
        except BaseException:
            result["error"] = traceback.format_exc()
        os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(said) if said else result | {"error": f"the survivor ended with status {status}"}


def survive(folder: Path, steps: Steps, name: str, step: str | None, after: int, sent: int) -> dict:
    """Make an arena, let the victim work in it until it is killed, and check what is left."""
    log, trouble = folder / "log", folder / "trouble"
    for file in (log, trouble):
        file.write_bytes(b"")
    Told.log = os.open(log, os.O_WRONLY | os.O_APPEND)
    steps.clear()
    arena = f"test-{os.getpid()}-{uuid.uuid4().hex[:8]}" if name in NAMED else None
    mem = PhysicalMemory.create("4 MiB", arena, clients=CLIENTS, ticket_ttl=0)
    held = [make(mem), make_segment(mem, 3), make_vector(mem, 4), make(mem, Node), make(mem, Told)]
    held += [make_unique(mem), make_list(mem, 3)]
    make(mem).handle.drop()  # our lane keeps a frame
    done, victims = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        os.close(done)
        try:
            steps.arm(0, step, after, sent)
            SCENARIOS[name](World(mem, steps, held))
        except FrameGoneError:  # the survivor has let our messages expire
            if sent != signal.SIGSTOP:
                trouble.write_text(traceback.format_exc())
        except BaseException:
            trouble.write_text(traceback.format_exc())
        os._exit(0)
    os.close(victims)
    status = wait(pid, mem, held, name)
    while os.read(done, 1):  # until all that the victim has forked are gone, too
        pass
    if trouble.read_text():
        raise AssertionError(trouble.read_text())
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if killed != (sent == signal.SIGKILL and steps.hit(0)) or not (killed or os.WIFEXITED(status)):
        raise AssertionError(f"the victim ended with status {status}")
    passed = steps.passed(0)
    inside = sum(steps.hit(i) for i in range(TARGETS)) - (name in STOPS and steps.hit(1))
    if sent == signal.SIGSTOP:
        assert steps.hit(0)
        inside -= 1
    reaped = mem.reap()
    assert len(mem.clients) == 1, mem.clients
    check_held(mem, held, inside)
    found = check_audit(mem, inside)
    late_type()
    late = late_type()  # so that orphans can end
    mem.reap()
    check_repaired(mem, held)
    check_all_free_frames_work(mem)
    check_repaired(mem, held)
    for holding in held:
        holding.handle.drop()
    assert mem.used_frames == 0, mem.stats()
    check_dropped_once(log)
    mem.close()
    del late
    return {
        "killed": killed,
        "passed": {name: count for name, count in passed.items() if count},
        "leaked": len(found.leaked),
        "miscounted": len(found.miscounted),
        "in_doubt": reaped.in_doubt,
    }


def wait(pid: int, mem: PhysicalMemory, held: list, name: str) -> int:
    """Wait for the victim; each time that it stops do the survivor's part and let it go on."""
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return status
        with contextlib.ExitStack() as stack:
            stack.callback(os.kill, pid, signal.SIGCONT)
            if name in STOPS:
                held.pop(0).handle.drop()
            else:
                mem.audit(repair=True)


if __name__ == "__main__":
    main()
