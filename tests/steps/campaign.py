# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Processes share an arena and are killed at random moments.

A director makes an arena and forks workers (worker.py), some of which fork children.  At random
moments it kills one or two of them, stops one for a while, has the others pause and say what they
hold, and checks (check.py) that nothing is lost, wrong or left over.  After ten kills the round
is over, all workers end, and the next round begins with another arena.

Run as ``python campaign.py --seed 1 --kills 40``, or ``--seconds 3600``.  Round i of a run is the
first round of a run with seed + i.  Prints how often it came to each state, and writes a report
in JSON; fails if anything was wrong, and a run of an hour also if a state was never met.
"""

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import pickle
import platform
import random
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
import uuid
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pageframe import (
    ArenaView,
    FrameMeta,
    PhysicalMemory,
    ReapReport,
    WriteAfterReleaseWarning,
    atomic_u64,
)
from steps import patterns
from steps.check import check_all_free_frames_work, check_dropped_once, check_repaired
from steps.patterns import Node, Told, late_type, make, make_segment, make_unique, make_vector
from steps.worker import (
    COUNTED,
    END,
    MET,
    OPERATIONS,
    PAGE,
    PLACES,
    SECONDS,
    WORKERS,
    Board,
    Worker,
    no_room_for_child,
)

TTL = 0.15  # seconds that a message holds its frames
KILLS_A_ROUND = 10
WHOLE = 3500  # seconds of a run that must come to every state
FAILURES = 5  # after which a run gives up
SAMPLES = 100  # of the director's own size

RARE = [
    "killed between operations", "killed inside an operation", "killed with unique frames",
    "killed with lists", "killed with views of dropped frames", "killed while sharing frames",
    "killed with mapped frames", "killed with threads", "killed parents whose child lived on",
    "killed children of workers", "killed while stopped", "killed before it had reaped the dead",
    "two killed at once", "killed with messages in flight", "messages expired", "orphans", "adopted",
    "kept frames stolen", "stopped inside an operation",
    "stopped while messages expired", "audits met an operation that stood still", "workers outside the arena",
    "arenas in a memfd", "arenas with a name", "arenas on a full file system", "poisoned arenas",
    "traced arenas", "events of the dead read",
]  # fmt: skip
KILLED_IN = [f"killed in {name}" for name in OPERATIONS]
STATES = [*RARE, *MET, *KILLED_IN, *OPERATIONS]


class Tally(FrameMeta):
    """Counts in one field what all processes do."""

    total: atomic_u64


class Round:
    """One arena with its workers, from the director's side."""

    def __init__(self, seed: int, folder: Path, small: Path | None, counters: Counter) -> None:
        self.rng = random.Random(seed)
        self.counters = counters
        self.board = Board()
        self.director = os.getpid()
        self.log = folder / "log"
        self.log.write_bytes(b"")
        Told.log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        self.mem = self.create(small)
        tally = self.mem.alloc_frame(Tally)
        self.tally = tally.start_paddr
        self.held = [
            patterns.Holding(tally, [patterns.Life.begin(tally, 0)]),
            make(self.mem),
            make_segment(self.mem, 4),
            make_vector(self.mem, 4),
            make(self.mem, Node),
            make(self.mem, Told),
            make_unique(self.mem),
        ]
        self.counted = 0  # of the tally, by those that have gone
        self.cut = 0  # workers that were killed as they counted
        self.killed = 0
        self.threads = 0  # of those that were killed since the last check
        self.reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.inboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(PLACES)]
        for pair in self.inboxes:
            pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)  # so that messages are lost
            for end in pair:
                end.setblocking(False)
        self.late_class = None
        self.pauses = 0
        self.nodes = 0  # of the page tables of all workers, as they have said
        self.mapped: dict[int, Counter] = {}  # by them: pid -> paddr -> mappings
        self.outside: set[int] = set()  # those that are no clients just now

    def create(self, small: Path | None) -> PhysicalMemory:
        """Make an arena of one kind or another."""
        debug = self.rng.choice(["", "", "poison", "trace", "poison,trace"])
        kind = self.rng.choice(
            ["a memfd", "a memfd", "a name"] + ["a full file system"] * (small is not None)
        )
        where = {}
        self.name = self.path = None
        if kind == "a name":
            self.name = where["name"] = f"soak-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        elif kind == "a full file system":
            self.path = where["path"] = small / "arena"
            (small / "ballast").unlink(missing_ok=True)
        self.count(f"arenas {'with' if self.name else 'in' if kind == 'a memfd' else 'on'} {kind}")
        self.count("poisoned arenas", "poison" in debug)
        self.count("traced arenas", "trace" in debug)
        os.environ["PAGEFRAME_DEBUG"] = debug
        clients = 3 * WORKERS if self.path else self.rng.choice([WORKERS + 3, 3 * WORKERS])
        mem = PhysicalMemory.create(
            f"{self.rng.choice([3, 4, 8])} MiB",
            **where,
            clients=clients,
            tickets=self.rng.choice([16, 128]),
            ticket_ttl=TTL,
        )
        if self.path:
            # For as many ledgers as there are workers, and a few more.
            areas = next(size for name, _, size in mem.layout if name == "areas")
            leave_room(small, (WORKERS + 2) * areas // clients)
        self.id = mem.id
        self.what = f"an arena of {mem.size >> 20} MiB in {kind}, debug {debug!r}"
        return mem

    # What workers call

    def attach(self) -> PhysicalMemory:
        if self.name or self.path:
            return PhysicalMemory.attach(self.name, path=self.path)
        return PhysicalMemory.attach(id=self.id)

    def view(self) -> ArenaView:
        if self.name or self.path:
            return ArenaView(self.name, path=self.path)
        return ArenaView(id=self.id)

    def late(self):
        """The type that the director comes to know last."""
        if self.late_class is None:
            self.late_class = late_type()
        return self.late_class

    def ending(self) -> bool:
        return self.board.pause[0] == END

    def director_lives(self) -> bool:
        try:
            os.kill(self.director, 0)
        except ProcessLookupError:
            return False
        return True

    # What the director does

    def play(self) -> None:
        """Let workers work and kill them."""
        try:
            while self.killed < KILLS_A_ROUND:
                for place in range(WORKERS):
                    if not self.board.get(place, "pid"):
                        self.start(place)
                time.sleep(self.rng.uniform(0.0, 0.05))
                if self.rng.random() < 0.25:
                    self.stop()
                self.kill()
                self.check_after()
                self.board.pause[0] = 0
            self.finish()
        finally:
            self.board.pause[0] = END
            for pid in set(self.board.pids()) | set(orphans()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                wait_until_dead(pid)
            reap_children()
            for pair in (self.reports, *self.inboxes):
                for end in pair:
                    end.close()

    def start(self, place: int) -> None:
        """Start a worker and wait until it has come to the board, unless it finds no room in the arena."""
        seed = self.rng.randrange(2**32)
        pid = os.fork()
        if pid == 0:
            Worker(self, place).main(seed, self.held, False)
        while self.board.get(place, "pid") != pid and state_of(pid)[0] != "Z":
            time.sleep(0.001)

    def stop(self) -> None:
        """Stop a worker while others work and reap, and messages expire under it."""
        pid = self.choose()
        if not pid:
            return
        halt(pid)
        inside = self.board.operations(self.board.pids()[pid])
        self.count("stopped inside an operation", bool(inside))
        end = time.monotonic() + 1.2 * TTL
        gone = 0
        while time.monotonic() < end:
            report = self.reap()
            assert pid not in {client.pid for client in report.clients}, f"{pid} was reaped alive"
            gone += report.tickets
            report = self.mem.audit(repair=self.rng.random() < 0.5)
            assert report.damaged == () or not report.quiet, report
            self.count("audits met an operation that stood still", bool(inside) and not report.quiet)
            time.sleep(TTL / 8)
        self.count("stopped while messages expired", gone)
        if self.rng.random() < 0.2:
            self.end([pid])
            self.count("killed while stopped")
        else:
            os.kill(pid, signal.SIGCONT)

    def choose(self, *operations: str) -> int:
        """Choose a worker, perhaps one that is stopped as it does something; return its pid, or 0."""
        rarest = sorted(OPERATIONS, key=lambda name: self.counters[f"killed in {name}"])[:8]
        wanted = self.rng.choice(operations or rarest)
        if operations or self.rng.random() < 0.7:
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                for pid, place in self.board.doing(wanted):
                    halt(pid)
                    if wanted in self.board.operations(place):
                        return pid
                    os.kill(pid, signal.SIGCONT)
                time.sleep(0.0001)
        found = sorted(self.board.pids())
        return self.rng.choice(found) if found else 0

    def kill(self) -> None:
        """Kill one worker, or two."""
        tickets = self.mem.audit().tickets
        victims = {self.choose()} if self.rng.random() < 0.7 else {self.choose(), self.choose()}
        victims.discard(0)
        self.count("killed with messages in flight", tickets > 0 and bool(victims))
        self.count("two killed at once", len(victims) == 2)
        self.end(sorted(victims))
        if victims and self.rng.random() < 0.3:  # who reaps them is killed, too
            reaper = self.choose("reap", "audit")
            reaping = {"reap", "audit"} & set(self.end([reaper] if reaper else []))
            left = {client.pid for client in self.mem.clients}
            self.count("killed before it had reaped the dead", bool(reaping and victims & left))

    def end(self, victims: list[int]) -> list[str]:
        """Kill workers; return what they were doing."""
        found = self.board.pids()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for pid in victims:
            wait_until_dead(pid)
        doing = []
        for pid in victims:
            place = found[pid]
            inside = self.board.operations(place)
            doing += inside
            self.cut += "tally" in inside
            self.count("killed inside an operation" if inside else "killed between operations")
            for name in inside:
                self.count(f"killed in {name}")
            for state, field, least in (
                ("killed with unique frames", "uniques", 1),
                ("killed with lists", "lists", 1),
                ("killed with views of dropped frames", "views", 1),
                ("killed while sharing frames", "shared", 1),
                ("killed with mapped frames", "mapped", 1),
                ("killed with threads", "hands", 2),
            ):
                self.count(state, self.board.get(place, field) >= least)
            child = self.board.get(place + WORKERS, "pid") if place < WORKERS else 0
            self.count("killed parents whose child lived on", bool(child) and child not in victims)
            self.count("killed children of workers", place >= WORKERS)
            self.threads += self.board.get(place, "hands")
            self.killed += 1
            if "trace" in self.mem.debug:
                self.count("events of the dead read", len(self.mem.events(pid)) > 0)
        # Whom a victim had just forked comes to the board before another may take its place there.
        while set(orphans()) - set(self.board.pids()):
            time.sleep(0.001)
        for pid in victims:
            self.forget(found[pid], pid)
        return doing

    def forget(self, place: int, pid: int) -> None:
        """Add up what a worker has counted, and free its place."""
        for name in COUNTED:
            self.counters[name] += self.board.get(place, name)
        self.counted += self.board.get(place, "tally")
        if self.board.get(place, "pid") == pid:
            self.board.table[place] = 0

    def count(self, state: str, number: int = True) -> None:
        self.counters[state] += int(number)

    def gather(self) -> tuple[dict[int, Counter], set[int]]:
        """Have all workers pause and say what they hold."""
        self.pauses += 1
        self.board.pause[0] = self.pauses
        held: dict[int, Counter] = {}
        alone: set[int] = set()
        self.nodes = 0
        self.mapped = {}
        self.outside = set()
        patience = Patience()
        self.reports[0].settimeout(0.02)
        # A child is looked for among the processes first: in the other order one that came to the
        # board in between would be missed.
        while (young := set(orphans()) - set(self.board.pids())) or set(self.board.pids()) - set(held):
            try:
                self.hear(held, alone)
            except TimeoutError:
                silent = set(self.board.pids()) - set(held)
                assert all(state_of(pid)[0] != "Z" for pid in silent), f"one of {silent} is gone"
                patience.check(young | silent)
        return held, alone

    def hear(self, held: dict[int, Counter], alone: set[int]) -> None:
        kind, *rest = pickle.loads(self.reports[0].recv(1 << 20))
        if kind == "error":
            raise AssertionError(f"a worker failed:\n{rest[0]}")
        if rest[0] == self.board.pause[0]:
            _, pid, references, owned, mapped, nodes, attached = rest
            held[pid] = Counter(references)
            self.mapped[pid] = Counter(mapped)
            self.nodes += nodes
            alone |= set(owned)
            if not attached:
                self.outside.add(pid)
                self.count("workers outside the arena")

    def check_after(self) -> None:
        """Reap, and check all that must hold after some were killed."""
        held, alone = self.gather()
        self.reap()
        mine = patterns.references(self.held)
        for holding in self.held:
            holding.check()
        held[os.getpid()] = mine
        alone |= {life.paddr for holding in self.held if holding.alone for life in holding.lives}
        assert {client.pid for client in self.mem.clients} == set(held) - self.outside, (
            self.mem.clients,
            held,
            self.outside,
        )
        total = sum(held.values(), Counter())
        report = self.mem.audit()
        assert report.quiet, report
        assert report.damaged == (), report
        wrong = len(report.leaked) + len(report.miscounted)
        assert wrong <= self.threads, f"{wrong} frames held too long by {self.threads} threads: {report}"
        self.threads = 0
        self.count("held too long", wrong)
        counts = self.mem.slots["count"]
        for paddr in total:
            holders = [holder for holder in self.mem.holders(paddr) if holder.handles or holder.mappings]
            by = {holder.pid: holder.handles + holder.mappings for holder in holders}
            assert by == {pid: h[paddr] for pid, h in held.items() if h[paddr]}, f"{paddr:#x}: {by}"
            by = {holder.pid: holder.mappings for holder in holders if holder.mappings}
            assert by == {pid: m[paddr] for pid, m in self.mapped.items() if m[paddr]}, f"{paddr:#x}: {by}"
            if paddr not in alone:
                assert total[paddr] <= counts[paddr // PAGE] < 2**62, f"{paddr:#x} is freed too early"
        if self.rng.random() < 0.4:
            time.sleep(TTL)  # so that all messages expire
            self.reap()
            report = self.mem.audit(repair=True)
            assert report.repaired, report
            assert (report.tickets, report.damaged) == (0, ()), report
            expected = len(total) + self.nodes + report.orphans
            assert self.mem.used_frames == expected, (self.mem.stats(), expected, report)
            self.fill()
            nodes = self.mem.stats().frames_by_type.get("pageframe.PageTableMeta", 0)
            assert nodes == self.nodes, (nodes, self.nodes)
        else:
            report = self.mem.audit(repair=True)
            assert report.repaired, report
        report = self.mem.audit()
        assert report.clean, report

    def fill(self) -> None:
        """Allocate all there is, also what the lanes of others keep."""
        bits = np.unpackbits(self.mem.bitfield.view(np.uint8), bitorder="little")
        kept = self.mem.free_frames - int((bits[: self.mem.total_frames] == 0).sum())
        check_all_free_frames_work(self.mem)
        self.count("kept frames stolen", kept > 1)  # one may be our own

    def reap(self) -> ReapReport:
        report = self.mem.reap()
        self.counters["messages expired"] += report.tickets
        self.counters["orphans"] += report.orphans
        self.counters["adopted"] += report.adopted
        self.counters["frames in doubt"] += report.in_doubt
        return report

    def finish(self) -> None:
        """Let the workers end; then nobody but us holds anything."""
        self.board.pause[0] = END
        found = {}
        # Who was being forked by one of them comes to the board before that one ends.
        while late := self.board.pids().items() - found.items():
            for pid, _ in late:
                wait_until_dead(pid)
            found.update(late)
        reap_children()
        self.reports[0].settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.hear({}, set())
        for pid, place in found.items():
            self.forget(place, pid)
        time.sleep(TTL)
        self.late()
        self.reap()
        assert len(self.mem.clients) == 1, self.mem.clients
        report = self.mem.audit()
        assert report.clean, report
        check_repaired(self.mem, self.held)
        check_all_free_frames_work(self.mem)
        total = int(self.held[0].handle.meta.total)
        assert self.counted <= total <= self.counted + self.cut, (self.counted, total, self.cut)
        for holding in self.held:
            holding.handle.drop()
        assert self.mem.used_frames == 0
        check_dropped_once(self.log)
        self.mem.close()
        assert self.path is None or not self.path.exists()


def halt(pid: int) -> None:
    """Stop a process."""
    os.kill(pid, signal.SIGSTOP)
    patience = Patience()
    while state_of(pid)[0] not in "TZ":
        patience.check([pid])
        time.sleep(0.0001)


class Patience:
    """Gives processes up that sleep and do nothing for long; those that wait for a processor it waits for."""

    def __init__(self) -> None:
        self.seen, self.since = None, time.monotonic()

    def check(self, pids) -> None:
        """Raise if nothing has moved for too long."""
        seen = {pid: state_of(pid) for pid in pids}
        if seen != self.seen or any(state[0] in "RD" for state in seen.values()):
            self.seen, self.since = seen, time.monotonic()
        if time.monotonic() - self.since > SECONDS:
            for pid in seen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)  # prints where it is
            time.sleep(0.5)
            raise AssertionError(f"nothing moves: {seen}")


def state_of(pid: int) -> tuple[str, str]:
    """Return the state of a process by one letter, and its processor time; Z if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", ""
    return fields[0], f"{fields[11]}+{fields[12]}"


def wait_until_dead(pid: int) -> None:
    """Wait for a process that need not be a child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        patience = Patience()
        while not poll.poll(100):
            patience.check([pid])
    finally:
        os.close(fd)


def orphans() -> list[int]:
    """Return the processes whose parent we are, those that have ended aside."""
    reap_children()
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def reap_children() -> None:
    """Wait for what has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


# -- the run -----------------------------------------------------------------------------------

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments) -> None:
    """Call a function of the C library that returns 0 if all went well."""
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


@contextlib.contextmanager
def small_file_system(folder: Path):
    """Mount a small file system for ourselves alone; None if the machine does not let us."""
    small = folder / "small"
    small.mkdir()
    try:
        if os.geteuid() == 0:
            call("unshare", 0x20000)  # CLONE_NEWNS
        else:
            user, group = os.geteuid(), os.getegid()
            call("unshare", 0x10020000)  # and CLONE_NEWUSER
            for file, text in (
                ("setgroups", "deny"),
                ("uid_map", f"0 {user} 1"),
                ("gid_map", f"0 {group} 1"),
            ):
                Path("/proc/self", file).write_text(text)
        call("mount", b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
        call("mount", b"none", bytes(small), b"tmpfs", 0, b"size=24m,mode=700")
    except OSError as error:
        print(f"no small file system here: {error}", file=sys.stderr)
        yield None
        return
    try:
        yield small
    finally:
        call("umount2", bytes(small), 2)  # MNT_DETACH


def leave_room(folder: Path, size: int) -> None:
    """Fill a file system up to so many bytes."""
    with (folder / "ballast").open("wb") as file:
        room = os.statvfs(folder)
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_bsize - size)


def size_of_ourselves() -> dict[str, int]:
    """How much the director takes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    with Path("/proc/self/maps").open() as maps:
        mappings = sum(1 for _ in maps)
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208
        "mappings": mappings,
    }


def ended(signum: int, frame) -> None:
    """End as if the program did, so that all that was started is ended, too."""
    raise SystemExit(128 + signum)


def run(options, folder: Path, counters: Counter) -> tuple[list[dict], list[dict]]:
    """Play rounds until there were enough; return what failed, and how large we were."""
    failures, samples = [], []
    begin = time.monotonic()
    rounds = kills = 0
    with small_file_system(folder) as small:
        counters["small file systems"] = small is not None
        while kills < options.kills or time.monotonic() - begin < options.seconds:
            game = None
            try:
                game = Round(options.seed + rounds, folder, small, counters)
                game.play()
            except Exception:
                repeat = f"--seed {options.seed + rounds} --kills 1"
                what = game.what if game else "the arena could not be made"
                failures.append(
                    {"round": rounds, "repeat": repeat, "arena": what, "error": traceback.format_exc()}
                )
                print(
                    f"round {rounds} failed; again: {repeat}; {what}\n{failures[-1]['error']}",
                    file=sys.stderr,
                    flush=True,
                )
                if len(failures) == FAILURES:
                    break
            kills += game.killed if game else 0
            del game
            gc.collect()
            os.close(Told.log)  # not before: what is held still is dropped with the arena
            rounds += 1
            spent = time.monotonic() - begin
            samples.append({"seconds": round(spent, 1), **size_of_ourselves()})
            if options.seconds and rounds % 20 == 0:
                print(
                    f"{rounds} rounds, {kills} kills, {max(0, options.seconds - spent):.0f} s to go",
                    file=sys.stderr,
                    flush=True,
                )
    counters["rounds"], counters["kills"] = rounds, kills
    return failures, samples


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--kills", type=int, default=0, help="kills, or 0: until the time is over")
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--report", type=Path, help="where to write what was found, as JSON")
    options = parser.parse_args()
    call("prctl", 36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what our children leave becomes ours
    signal.signal(signal.SIGTERM, ended)
    sys.unraisablehook = lambda what: no_room_for_child(what) or sys.__unraisablehook__(what)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    warnings.simplefilter("error", WriteAfterReleaseWarning)
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    counters: Counter = Counter()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        failures, samples = run(options, Path(folder), counters)
    seconds = time.monotonic() - begin
    never = [state for state in STATES if counters[state] == 0]
    if not counters["small file systems"]:
        never = [state for state in never if "file system" not in state]
    grown = samples[-1]["descriptors"] - samples[0]["descriptors"]
    if grown > 0:
        failures.append({"error": f"the director has {grown} descriptors more than after the first round"})
    report = {
        "version": version("pageframe"),
        "machine": {
            "python": sys.version,
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
        },
        "seed": options.seed,
        "seconds": round(seconds, 1),
        "processes": {"workers": WORKERS, "with children": PLACES},
        "rounds": counters["rounds"],
        "kills": counters["kills"],
        "killed": {
            name: counters[name] for name in (*RARE, *KILLED_IN) if name.startswith(("killed", "two"))
        },
        "operations": {name: counters[name] for name in OPERATIONS},
        "states": {name: counters[name] for name in STATES},
        "never": never,
        "failures": failures,
        "director": samples[:: max(1, len(samples) // SAMPLES)],
    }
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(json.dumps(report, indent=1) + "\n")
    for name in ("rounds", "kills", *STATES):
        print(f"{counters[name]:>12,}  {name}")
    print(f"{seconds:.0f} s, {len(failures)} failures; the director: {samples[0]} .. {samples[-1]}")
    if never:
        print(f"never met: {', '.join(never)}")
    return int(bool(failures) or (bool(never) and options.seconds >= WHOLE))


if __name__ == "__main__":
    sys.exit(main())
