# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Damages arenas by the million, while a victim looks at them and works in them.

An input is a number.  With the seed it says how the arena is damaged and what the victim does then
(damages.py, victim.py).  Inputs come in groups of `GROUP`, for which the victim attaches once; the
arena's bytes are put back before each.  A group is of one of three kinds:

    rest    the file is damaged, header and length included, and then looked at and attached to
    live    the victim holds frames; a co-tenant damages the arena; the victim goes on
    race    as live, and another process writes hostile values and right ones by turns all the while

Workers go through the groups.  One that dies, or takes too long, is a finding: its seed and input are
printed, and what repeats it.  So is an exception that is none of `victim.EXPECTED`, and a result that
makes no sense.  A race depends on time, the others repeat exactly.

Run as ``python -m damage.fuzz --inputs 100000 --seed 1`` with tests/ in the path; it ends with 1 if
anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import gc
import json
import mmap
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pageframe
from damage.damages import HEADER_KINDS, KINDS, TABLES, Damage, Layout, Writes, damage, header_damage
from damage.victim import EXPECTED, USES, Victim, draw, look_at, needs_of
from pageframe import ArenaView, FrameMeta, LinkedList, MemoryRegion, PhysicalMemory, VmSpace, u64
from pageframe._core import backing, client
from types_for_tests import Dropped, Node, Page, Raw

GROUP = 32
MODES = (
    "live",
    "live",
    "race",
    "live",
    "live",
    "rest",
    "live",
    "live",
    *["live"] * 5,
    "rest",
    "live",
    "live",
)
CPU_SECONDS = 20  # that a group may take before it counts as a hang
WALL_SECONDS = 120
FINDINGS = 10  # after which it ends
LEAST = 3000  # inputs from which on every table and kind must have been damaged

ARENAS: tuple[dict[str, Any], ...] = (
    {"size": 120 * 4096, "slot_size": 64},
    {"size": 128 * 4096, "slot_size": 64},
    {"size": 110 * 4096, "slot_size": 128, "debug": "poison,trace"},
    {"size": 520 * 4096, "slot_size": 64},  # more than one chunk
    {"size": 100 * 8192, "page_size": 8192, "slot_size": 256, "debug": "poison"},
)


# -- arenas to begin with ----------------------------------------------------------------------


def populate(path: Path, size: int, slot_size: int, page_size: int = 4096, debug: str = "") -> None:
    """Make an arena with some of everything, leave the bytes of an older state beside it, and be killed."""

    class Foreign(FrameMeta):  # what the victim has not defined
        number: u64

        def on_drop(self, reader: Any) -> None:
            os._exit(9)

    os.environ["PAGEFRAME_DEBUG"] = debug
    reserved = MemoryRegion(size - 2 * page_size, page_size, "reserved")
    mem = PhysicalMemory.create(
        size, path=path, page_size=page_size, slot_size=slot_size, clients=3, tickets=16, regions=[reserved]
    )
    keep = [mem.alloc_frame(meta) for meta in (Page(inode=1), Node, Raw(number=2), Dropped, Foreign)]
    pages = LinkedList(mem, Page)
    for i in range(3):
        pages.push_back(mem.alloc_frame(Page(inode=i)).try_unique())
    path.with_suffix(".old").write_bytes(path.read_bytes())
    keep += [mem.alloc_segment(2), mem.alloc_frames(3), keep[0].clone(), pages]
    space = VmSpace(mem, 16 * page_size)
    with space.cursor(0, 16 * page_size) as cursor:
        cursor.map(mem.alloc_segment(2))
    keep += [space, *(pickle.dumps(handle) for handle in keep[:1] + keep[5:7])]
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGKILL)  # dead, with all that it was given
    os.wait()
    os.kill(os.getpid(), signal.SIGKILL)


def template(folder: Path, number: int) -> list[bytes]:
    """Return the bytes of an arena whose clients were killed, and those of an older state of it."""
    path = folder / f"template-{number}"
    pid = os.fork()
    if pid == 0:
        try:
            populate(path, **ARENAS[number])
        finally:
            traceback.print_exc()
            os._exit(1)
    os.waitpid(pid, 0)
    return [path.read_bytes(), path.with_suffix(".old").read_bytes()]


class Stage:
    """The file of an arena that is damaged and put back."""

    def __init__(self, folder: Path, number: int, states: list[bytes], foreign: bytes) -> None:
        self.path = folder / f"arena-{os.getpid()}-{number}"
        self.path.write_bytes(states[0])
        self.kept = self.path.with_suffix(".kept")  # the last client takes the other name along
        os.link(self.path, self.kept)
        self.fd = backing.open_file(self.path)
        self.layout = Layout(self.fd)
        self.map = mmap.mmap(self.fd, self.layout.total)
        self.data = memoryview(self.map)
        self.original = memoryview(states[0])
        self.others = [*states, foreign]
        area_size = (self.layout.total - self.layout.size) // self.layout.clients
        used = 4096 + -(-self.layout.frames * 4 // 4096) * 4096
        areas = [self.layout.size + i * area_size for i in range(self.layout.clients)]
        self.ranges = [(0, self.layout.size), *((area, area + used) for area in areas)]
        if "rings" in self.layout.parts:
            self.ranges += [(ring.offset, ring.offset + ring.size) for ring in self.layout.parts["rings"]]
        self.here: list[bytes] = []

    def restore(self) -> None:
        """Put the arena back as it was made."""
        if not self.path.exists():
            os.link(self.kept, self.path)
        os.ftruncate(self.fd, self.layout.total)
        self.data[:] = self.original

    def remember(self) -> None:
        """Note how the arena is now."""
        self.here = [bytes(self.data[start:stop]) for start, stop in self.ranges]

    def put_back(self) -> None:
        """Put the arena back as it was noted."""
        for (start, stop), data in zip(self.ranges, self.here, strict=True):
            self.data[start:stop] = data


# -- somebody who writes all the while ---------------------------------------------------------


class CoTenant:
    """A process that writes hostile values over right ones, and these back, as long as it is told to."""

    IDLE, BUSY = 0, 1

    def __init__(self, stages: list[Stage]) -> None:
        self.state = mmap.mmap(-1, 4096)
        self.orders, mine = os.pipe()
        self.orders, mine = mine, self.orders  # write end is the worker's
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.orders)
            try:
                self.serve(mine, stages)
            finally:
                os._exit(0)
        os.close(mine)

    def serve(self, orders: int, stages: list[Stage]) -> None:
        with open(orders, "rb") as stream:
            parent = os.getppid()
            while True:
                try:
                    number, writes = pickle.load(stream)
                except EOFError:
                    return
                data = stages[number].data
                pairs = [
                    (slice(at, at + len(new)), new, bytes(data[at : at + len(new)])) for at, new in writes
                ]
                while self.state[0] == self.BUSY:
                    for where, hostile, right in pairs:
                        data[where] = hostile
                        data[where] = right
                    if os.getppid() != parent:
                        return
                self.state[1] = self.IDLE

    def start(self, number: int, writes: Writes) -> None:
        self.state[0] = self.state[1] = self.BUSY
        os.write(self.orders, pickle.dumps((number, writes)))

    def stop(self) -> None:
        """Have it stop, and wait until it has."""
        self.state[0] = self.IDLE
        while self.state[1] != self.IDLE:
            time.sleep(0)

    def end(self) -> None:
        os.close(self.orders)
        os.waitpid(self.pid, 0)


# -- one worker --------------------------------------------------------------------------------


class UnsoundError(Exception):
    """Something was found."""


class Plan(NamedTuple):
    """What an input is."""

    uses: list[str]
    damages: list[Damage]


PLANTED = ("crash", "hang", "unsound")


class Worker:
    """Goes through groups of inputs."""

    plant: str | None = None

    def __init__(self, seed: int, folder: Path, states: list[list[bytes]], verbose: bool = False) -> None:
        self.seed = seed
        self.verbose = verbose
        self.stages = [
            Stage(folder, i, own, states[(i + 1) % len(states)][0]) for i, own in enumerate(states)
        ]
        self.co_tenant = CoTenant(self.stages)
        self.counts: Counter[str] = Counter()
        sys.unraisablehook = self.unraisable

    def unraisable(self, hook: Any) -> None:
        self.judge("unraisable", hook.exc_value)

    def judge(self, where: str, error: BaseException) -> None:
        """Count an exception if it is one that may be; otherwise that is a finding."""
        if isinstance(error, EXPECTED):
            self.counts[f"raised {type(error).__name__}"] += 1
            if self.verbose:
                print(f"    {where}: {type(error).__name__}: {error}")
            return
        raise UnsoundError(where) from error

    def note(self, table: str, kind: str) -> None:
        self.counts[f"table {table}"] += 1
        self.counts[f"kind {kind}"] += 1
        self.counts[f"{table}, {kind}"] += 1

    def run_group(self, group: int, reached: Any, last: int | None = None) -> None:
        """Run the inputs of a group, up to the last one that is wanted."""
        mode = MODES[group % len(MODES)]
        rng = random.Random(f"{self.seed}:group {group}")
        number = rng.randrange(len(self.stages))
        stop = (group + 1) * GROUP if last is None else last + 1
        self.stages[number].restore()
        if mode == "rest":
            for index in range(group * GROUP, stop):
                reached(index)
                self.at_rest(self.stages[number], random.Random(f"{self.seed}:{index}"))
                self.counts["inputs rest"] += 1
            return
        index = group * GROUP
        while index < stop:
            index = self.live(number, index, stop, mode == "race", rng, reached)

    def attach(self, stage: Stage, rng: random.Random) -> tuple[PhysicalMemory, int]:
        """Attach where the other clients are dead, or one of them seems to live."""
        lock = backing.open_again(stage.fd)
        if rng.random() < 0.7:
            assert backing.lock(lock, stage.layout.tables["clients"], wait=False)
        mem = PhysicalMemory.attach(path=stage.path, reap=rng.random() < 0.3)
        for meta in (Page, Node, Raw, Dropped):  # types have their numbers from here on
            mem.alloc_frame(meta).drop()
        return mem, lock

    def live(self, number: int, index: int, stop: int, race: bool, rng: random.Random, reached: Any) -> int:
        """Run inputs with one client; return the first that is left, should the client have gone."""
        stage = self.stages[number]
        stage.restore()
        mem, lock = self.attach(stage, rng)
        stage.remember()
        victim = Victim(mem, stage.path)
        try:
            while index < stop and not mem.closed:
                reached(index)
                if index % GROUP:
                    stage.put_back()
                rng = random.Random(f"{self.seed}:{index}")
                plan = self.plan(rng, victim, stage)
                if race:
                    writes = [write for _, _, writes in plan.damages for write in writes]
                    self.co_tenant.start(number, writes)
                else:
                    self.apply(stage, plan.damages)
                try:
                    if index == 20 and self.plant is not None:
                        self.planted()
                    self.use(victim, plan.uses)
                    victim.let_go()
                finally:
                    if race:
                        self.co_tenant.stop()
                self.counts["inputs race" if race else "inputs live"] += 1
                index += 1
            try:
                mem.close()
            except EXPECTED as error:
                self.judge("close", error)
        finally:
            del victim, mem
            os.close(lock)
        return index

    def plan(self, rng: random.Random, victim: Victim, stage: Stage) -> Plan:
        """Draw an input, and have the victim make what it takes."""
        uses = draw(rng, rng.choice((1, 2, 3, 6)))
        for need in needs_of(uses):
            getattr(victim, need)
        damages = [
            damage(rng, stage.layout, stage.data, stage.others)
            for _ in range(rng.choice((1, 1, 1, 2, 4, 10)))
        ]
        return Plan(uses, damages)

    def planted(self) -> None:
        """Do what must be found."""
        if self.plant == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        signal.setitimer(signal.ITIMER_PROF, 1)
        while self.plant == "hang":
            pass
        raise AssertionError("planted")

    def apply(self, stage: Stage, damages: list[Damage]) -> None:
        """Write damages into the arena."""
        for table, kind, writes in damages:
            self.note(table, kind)
            if self.verbose:
                print(f"  {kind} in {table}: {[(at, data[:16].hex()) for at, data in writes[:8]]}")
            for at, data in writes:
                stage.data[at : at + len(data)] = data

    def use(self, victim: Victim, names: list[str]) -> None:
        for name in names:
            if self.verbose:
                print(f"  {name}", flush=True)
            try:
                USES[name][1](victim)
            except UnsoundError:
                raise
            except Exception as error:
                self.judge(name, error)
            else:
                self.counts["sound results"] += 1
            if victim.mem.closed:
                return

    def at_rest(self, stage: Stage, rng: random.Random) -> None:
        """Damage a file that nobody uses; look at it, attach to it, and work in it."""
        stage.restore()
        for _ in range(rng.choice((0, 1, 3, 10))):
            self.apply(stage, [damage(rng, stage.layout, stage.data, stage.others)])
        if rng.random() < 0.6:
            kind, header, length = header_damage(rng, stage.layout, stage.data)
            self.note("whole file", kind)
            if self.verbose:
                print(f"  {kind}: {length} of {stage.layout.total} bytes, header {header and header.hex()}")
            os.ftruncate(stage.fd, length)
            if header is not None:
                os.pwrite(stage.fd, header, 0)
        try:
            with ArenaView(path=stage.path) as view:
                self.counts["views past the header"] += 1
                look_at(view)
        except Exception as error:
            self.judge("view", error)
        try:
            mem = PhysicalMemory.attach(path=stage.path, reap=rng.random() < 0.5)
        except Exception as error:
            self.judge("attach", error)
            return
        self.counts["attached past the header"] += 1
        victim = Victim(mem, stage.path)
        self.use(victim, draw(rng, 3))
        victim.let_go()
        try:
            mem.close()
        except Exception as error:
            self.judge("close", error)


def work(
    number: int, workers: int, groups: range, seed: int, folder: Path, states: list[list[bytes]],
    board: mmap.mmap, out: Path,
) -> None:  # fmt: skip
    """Be a worker: every so-many-th group."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = os.getppid()
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)
    client.process_start = functools.cache(client.process_start)  # attaching is to be quick
    worker = Worker(seed, folder, states)

    def reached(index: int) -> None:
        board[8 * number : 8 * number + 8] = (index + 1).to_bytes(8, "little")

    with out.open("a") as stream:
        for group in groups:
            if group % workers != number:
                continue
            if os.getppid() != parent:
                break
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            worker.run_group(group, reached)
            if group // workers % 32 == 0:
                gc.collect()
                stream.write(json.dumps(worker.counts) + "\n")
                stream.flush()
                worker.counts.clear()
        stream.write(json.dumps(worker.counts) + "\n")
    worker.co_tenant.end()


# -- all of them -------------------------------------------------------------------------------


class Run:
    """Workers, and what they come to."""

    def __init__(self, seed: int, inputs: int, workers: int) -> None:
        self.seed, self.workers = seed, workers
        self.groups = range(-(-inputs // GROUP))
        self.folder = Path(tempfile.mkdtemp(prefix="test-damage-", dir="/dev/shm"))
        self.board = mmap.mmap(-1, 4096)
        self.pids: dict[int, int] = {}  # of a worker -> its number
        self.seen: dict[int, tuple[int, float]] = {}  # number -> input, since when
        self.findings: list[str] = []

    def start(self, number: int, first: int) -> None:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            self.pids[pid] = number
            self.seen[number] = (-1, time.monotonic())
            return
        code = 1
        try:
            with (self.folder / f"log-{number}").open("ab") as log:
                os.dup2(log.fileno(), 2)
            groups = range(first, self.groups.stop)
            work(
                number, self.workers, groups, self.seed, self.folder, self.states, self.board,
                self.folder / f"counts-{number}",
            )  # fmt: skip
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def index(self, number: int) -> int:
        return int.from_bytes(self.board[8 * number : 8 * number + 8], "little") - 1

    def ended(self, pid: int, status: int) -> None:
        """Take note of a worker's end; if it was a bad one, go on behind the group."""
        number = self.pids.pop(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # its co-tenant
        if status == 0:
            return
        index = self.index(number)
        how = os.waitstatus_to_exitcode(status)
        kind = "took too long" if how == -signal.SIGPROF else f"ended with {how}"
        log = (self.folder / f"log-{number}").read_text(errors="replace")
        (self.folder / f"log-{number}").write_text("")
        self.findings.append(
            f"input {index} of seed {self.seed} ({MODES[index // GROUP % len(MODES)]}): the worker {kind}\n"
            f"repeat: python -m damage.fuzz --seed {self.seed} --index {index}\n{log[-6000:]}"
        )
        print(self.findings[-1], flush=True)
        if len(self.findings) < FINDINGS:
            self.start(number, index // GROUP + 1)

    def hung(self) -> None:
        """End workers that do not go on."""
        now = time.monotonic()
        for pid, number in list(self.pids.items()):
            index = self.index(number)
            before, since = self.seen[number]
            if index != before:
                self.seen[number] = (index, now)
            elif now - since > WALL_SECONDS:
                os.kill(pid, signal.SIGPROF)
                self.seen[number] = (index, now)

    def run(self) -> Counter[str]:
        try:
            self.states = [template(self.folder, number) for number in range(len(ARENAS))]
            for number in range(self.workers):
                self.start(number, 0)
            told = time.monotonic()
            while self.pids:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    self.hung()
                    time.sleep(0.05)
                    if time.monotonic() - told > 60:
                        told = time.monotonic()
                        print(f"at input {min(self.index(n) for n in self.pids.values())}", flush=True)
                elif pid in self.pids:
                    self.ended(pid, status)
            counts: Counter[str] = Counter()
            for path in self.folder.glob("counts-*"):
                for line in path.read_text().splitlines():
                    counts.update(json.loads(line))
            return counts
        finally:
            for pid in self.pids:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            shutil.rmtree(self.folder)


def unreached(counts: Counter[str]) -> list[str]:
    """Return what a long run must have come to and has not."""
    wanted = [f"table {table}" for table in TABLES] + [f"kind {kind}" for kind in KINDS]
    wanted += [f"whole file, {kind}" for kind in HEADER_KINDS]
    wanted += [f"inputs {mode}" for mode in set(MODES)] + ["attached past the header", "sound results"]
    return [what for what in wanted if not counts[what]]


def show(counts: Counter[str], seconds: float) -> None:
    inputs = sum(counts[f"inputs {mode}"] for mode in set(MODES))
    print(f"{inputs} inputs in {seconds:.0f} s, {inputs / seconds:.0f} a second")
    for what, number in sorted(counts.items()):
        print(f"  {what}: {number}")


def repeat(seed: int, index: int) -> None:
    """Run one input, and those of its group before it, in this process."""
    folder = Path(tempfile.mkdtemp(prefix="test-damage-", dir="/dev/shm"))
    try:
        faulthandler.enable()
        states = [template(folder, number) for number in range(len(ARENAS))]
        worker = Worker(seed, folder, states, verbose=True)
        worker.run_group(index // GROUP, lambda i: print(f"input {i}", flush=True), index)
        worker.co_tenant.end()
    finally:
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description="Damage arenas and use them.")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--index", type=int, help="run this input alone")
    parser.add_argument("--plant", choices=PLANTED, help="what input 20 is to do, to see that it is found")
    options = parser.parse_args()
    warnings.simplefilter("ignore", pageframe.WriteAfterReleaseWarning)
    if options.index is not None:
        repeat(options.seed, options.index)
        return 0
    if options.plant is not None:
        Worker.plant = options.plant
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # workers and files go, too
    print(f"seed {options.seed}", flush=True)
    run = Run(options.seed, options.inputs, options.workers)
    began = time.monotonic()
    counts = run.run()
    show(counts, time.monotonic() - began)
    missed = unreached(counts) if options.inputs >= LEAST and not run.findings else []
    print(f"{len(run.findings)} findings" + (f"; never reached: {missed}" if missed else ""))
    return 1 if run.findings or missed else 0


if __name__ == "__main__":
    sys.exit(main())
