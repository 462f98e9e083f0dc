# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Adaptors: a frame counts as long as this process holds it, in every adaptor that it came through."""

import csv
import gc
import io
import pickle
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import pageframe as pf
from amount import LONG, chosen_seed
from pageframe.adaptors import Adaptor, LimitAdaptor, LogAdaptor, StatisticsAdaptor
from processes import LIMIT, Forked, run_program, shared_arena, unique_name
from types_for_tests import Dropped, Node, Page, Raw

PAGE = 4096
PLAIN = "pageframe.UntypedFrameMeta"


def rows(path):
    """Return the lines of a log."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Replay:
    """What the lines of a log come to."""

    def __init__(self, lines):
        self.current, self.peak, self.total, self.failures = {}, 0, 0, []
        self.peaks = Counter()
        for line in lines:
            size = int(line["bytes"])
            if line["event"] == "failure":
                self.failures.append(size // PAGE)
                assert line["paddr"] == line["type"] == ""
                continue
            paddrs = range(int(line["paddr"]), int(line["paddr"]) + size, PAGE)
            if line["event"] == "allocate":
                assert self.current.keys().isdisjoint(paddrs)
                self.current.update(dict.fromkeys(paddrs, line["type"]))
                self.total += len(paddrs)
                self.peak = max(self.peak, len(self.current))
                for name, count in Counter(self.current.values()).items():
                    self.peaks[name] = max(self.peaks[name], count)
            else:
                assert line["event"] == "release"
                for paddr in paddrs:
                    assert self.current.pop(paddr) == line["type"]

    def by_type(self):
        now = Counter(self.current.values())
        return {name: (now[name], peak) for name, peak in self.peaks.items()}


# -- what counts -------------------------------------------------------------------------------

WAYS = {
    "a frame": (1, PLAIN, lambda mem: mem.alloc_frame()),
    "a typed frame": (1, Node.__layout__.name, lambda mem: mem.alloc_frame(Node(level=2))),
    "frames": (5, PLAIN, lambda mem: mem.alloc_frames(5)),
    "frames, each its own": (5, Raw.__layout__.name, lambda mem: mem.alloc_frames(5, lambda _: Raw())),
    "a segment": (7, Page.__layout__.name, lambda mem: mem.alloc_segment(7, Page, align=16384)),
    "an array": (2, PLAIN, lambda mem: mem.array((2, PAGE), "u1", order="F").view()),
    "an array by an iterator": (2, PLAIN, lambda mem: mem.zeros(iter([2 * PAGE]), "u1")),
    "an array of nothing": (1, PLAIN, lambda mem: mem.empty(0)),
    "elements of another array": (2, PLAIN, lambda mem: mem.asarray(np.arange(1000))),
    "a ring": (4, Raw.__layout__.name, lambda mem: mem.ring("16 KiB", Raw)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_allocated_counts_until_it_goes(mem, way):
    frames, name, get = WAYS[way]
    stats = StatisticsAdaptor(mem)
    handle = get(stats)
    assert (stats.used_frames, stats.used_bytes) == (frames, frames * PAGE)
    assert stats.by_type == {name: (frames, frames)}
    assert (stats.total_frames, stats.allocations) == (frames, 1)
    del handle
    gc.collect()
    assert stats.used_frames == 0
    assert (stats.peak_frames, stats.peak_bytes) == (frames, frames * PAGE)
    assert stats.by_type == {name: (0, frames)}


def test_scattered_frames_of_an_array_count_one_by_one(mem):
    all_frames = [mem.alloc_frame() for _ in range(mem.free_frames)]
    del all_frames[::2]  # no two free ones lie next to each other
    stats = StatisticsAdaptor(mem)
    array = stats.zeros(4 * PAGE, "u1")
    ring = stats.ring(3 * PAGE)
    assert stats.used_frames == 7
    array[:] = 1
    del array, ring
    gc.collect()
    assert stats.used_frames == 0
    assert stats.peak_frames == 7


def test_handles_do_not_count_but_frames(mem):
    stats = StatisticsAdaptor(mem)
    segment = stats.alloc_segment(10)
    clone, first, part = segment.clone(), segment[0], segment[2:5]
    segment.drop()
    assert stats.used_frames == 10
    clone.drop()
    assert stats.used_frames == 4
    part.drop()
    raw = first.into_raw()
    assert stats.used_frames == 1
    view = memoryview(pf.Frame.from_raw(mem, raw))
    assert stats.used_frames == 1
    view.release()
    assert stats.used_frames == 0


def test_the_type_is_that_of_the_allocation_though_the_frame_gets_another(mem):
    stats = StatisticsAdaptor(mem)
    unique = stats.alloc_frame(Node()).try_unique().repurpose(Raw())
    assert stats.by_type == {Node.__layout__.name: (1, 1)}
    unique.drop()
    assert stats.by_type == {Node.__layout__.name: (0, 1)}


def test_a_frame_goes_out_of_the_account_though_its_on_drop_looks(mem):
    stats = StatisticsAdaptor(mem)
    Dropped.seen.clear()
    stats.alloc_frames(3, Dropped).drop()
    assert len(Dropped.seen) == 3
    assert stats.used_frames == 0


def test_what_others_allocate_does_not_count(mem):
    stats = StatisticsAdaptor(mem)
    other = mem.alloc_frame()
    array = mem.zeros(10)
    assert stats.asarray(array) is array
    again = pf.Frame.from_in_use(mem, other.start_paddr)
    assert stats.used_frames == stats.total_frames == stats.allocations == 0
    del again, array


def test_what_fails_counts_nowhere(mem, tmp_path):
    def fail(paddr):
        raise KeyError(paddr)

    bottom = StatisticsAdaptor(mem)
    log = LogAdaptor(LimitAdaptor(bottom, "128 KiB"), tmp_path / "log")
    attempts = [
        (KeyError, 3, lambda: log.alloc_frames(3, fail)),
        (KeyError, 4, lambda: log.alloc_segment(4, fail)),
        (pf.FrameTypeError, 1, lambda: log.alloc_frame(3)),
        (ValueError, 0, lambda: log.alloc_frames(0)),
        (ValueError, 0, lambda: log.alloc_segment(-(10**30))),
        (ValueError, 2, lambda: log.alloc_segment(2, align=3000)),
        (pf.QuotaExceededError, 33, lambda: log.alloc_frames(33)),
        (pf.QuotaExceededError, 33, lambda: log.zeros(33 * PAGE, "u1")),
        (pf.QuotaExceededError, 33, lambda: log.ring(33 * PAGE)),
        (pf.QuotaExceededError, 1 << 40, lambda: log.alloc_frames(10**30)),
        (pf.QuotaExceededError, 1 << 40, lambda: log.empty(10**30)),
        (pf.NotAlignedError, 1, lambda: log.ring(100)),
        (TypeError, None, lambda: log.alloc_frames("3")),
        (pf.FrameTypeError, 1, lambda: log.asarray(np.array([None]))),
    ]
    for error, _, attempt in attempts:
        with pytest.raises(error):
            attempt()
    assert (bottom.used_frames, bottom.peak_frames, bottom.total_frames, bottom.allocations) == (0, 0, 0, 0)
    assert bottom.by_type == {}
    with log.alloc_frames(32):
        assert bottom.used_frames == 32
    log.close()
    replay = Replay(rows(tmp_path / "log"))
    assert replay.failures == [frames for _, frames, _ in attempts if frames]
    assert (replay.current, replay.total) == ({}, 32)


# -- limits ------------------------------------------------------------------------------------


def test_a_limit_refuses_what_goes_beyond_it_and_says_why(mem):
    with LimitAdaptor(mem, "64 KiB") as limit:
        assert limit.limit == 65536
        frames = limit.alloc_frames(10)
        with pytest.raises(
            pf.QuotaExceededError,
            match=r"^7 frames \(28672 bytes\) wanted; of a limit of 16 frames \(65536 bytes\) 10 are used$",
        ):
            limit.alloc_segment(7)
        assert limit.used_frames == 10
        more = limit.alloc_segment(6)
        with pytest.raises(pf.OutOfFramesError):
            limit.alloc_frame()
        more.drop()
        limit.alloc_frame().drop()
        assert mem.alloc_frame().size == PAGE
        frames.drop()
    assert limit.used_frames == 0


@pytest.mark.parametrize("limit", [-1, 1 << 63, "many"])
def test_a_limit_that_makes_no_sense_is_refused(mem, limit):
    with pytest.raises(ValueError, match=r"limit|size"):
        LimitAdaptor(mem, limit)


def test_two_consumers_share_the_quota_of_what_they_stand_over(mem):
    both = LimitAdaptor(mem, 8 * PAGE)
    one, other = LimitAdaptor(both, 6 * PAGE), StatisticsAdaptor(both)
    mine = one.alloc_frames(5)
    yours = other.alloc_frames(3)
    with pytest.raises(pf.QuotaExceededError, match="of a limit of 8 frames"):
        one.alloc_frame()
    with pytest.raises(pf.QuotaExceededError, match="of a limit of 6 frames"):
        one.alloc_frames(2)
    assert (one.used_frames, other.used_frames, both.used_frames) == (5, 3, 8)
    mine.drop()
    assert (one.used_frames, other.used_frames, both.used_frames) == (0, 3, 3)
    yours.drop()


def test_threads_never_have_more_than_the_limit_together():
    with pf.PhysicalMemory("32 MiB") as mem:
        limit = LimitAdaptor(StatisticsAdaptor(mem), 2500 * PAGE)
        stats = StatisticsAdaptor(limit)
        refused, failed = [], []

        def work(number):
            rng = random.Random(number)
            try:
                for _ in range(60):
                    try:
                        stats.alloc_frames(rng.choice([1, 3, 1000, 2400])).drop()
                    except pf.QuotaExceededError:
                        refused.append(1)
            except BaseException as error:
                failed.append(error)
                raise

        # One holds most of it for long enough that others are refused, whatever the machine does.
        most = stats.alloc_frames(2400)
        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(4)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + LIMIT
        while not refused and time.monotonic() < end:
            time.sleep(0.001)
        most.drop()
        for thread in threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        assert not failed
        assert refused
        assert stats.used_frames == limit.used_frames == limit.upstream.used_frames == 0
        assert limit.upstream.peak_frames <= 2500
        assert stats.peak_frames == limit.upstream.peak_frames
        whole = stats.alloc_frames(2500)
        whole.drop()


# -- adaptors as objects -----------------------------------------------------------------------


def test_an_adaptor_stands_for_its_arena(mem):
    log = LimitAdaptor(StatisticsAdaptor(mem), "1 MiB")
    assert log.mem is mem
    assert log.upstream.upstream is mem
    assert log.page_size == PAGE
    assert log.free_frames == mem.free_frames
    with pytest.raises(AttributeError):
        _ = log.nothing
    with pytest.raises(AttributeError):
        _ = log._nothing
    assert not isinstance(log, pf.PhysicalMemory)


@pytest.mark.parametrize("upstream", [None, 3, "mem"])
def test_an_adaptor_stands_over_an_arena_or_an_adaptor(upstream):
    with pytest.raises(TypeError, match="stands over an arena or an adaptor"):
        StatisticsAdaptor(upstream)


def test_an_adaptor_that_was_not_initialised_says_so(mem):
    for cls in (Adaptor, LimitAdaptor, StatisticsAdaptor, LogAdaptor):
        adaptor = cls.__new__(cls)
        for use in (
            lambda a: a.alloc_frame(),
            lambda a: a.alloc_frames(1),
            lambda a: a.array(1),
            lambda a: a.asarray([1]),
            lambda a: a.ring(4096),
            lambda a: a.used_frames,
            lambda a: a._set_limit(1),
            lambda a: a._open_log(1),
            lambda a: a._flush_log(True),
            lambda a: a._figures(),
            lambda a: a._figures_by_type(),
            lambda a: a._reset(),
            lambda a: a.__enter__(),
            lambda a: StatisticsAdaptor(a),
        ):
            with pytest.raises(TypeError, match="was not initialised"):
                use(adaptor)
        with pytest.raises(AttributeError):
            _ = adaptor.page_size
        assert repr(adaptor) == f"<{cls.__name__}>"
    stats = StatisticsAdaptor(mem)
    with pytest.raises(TypeError, match="initialised already"):
        stats.__init__(mem)
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(stats)


def test_a_closed_arena_is_said_to_be_closed():
    mem = pf.PhysicalMemory("1 MiB")
    stats = StatisticsAdaptor(mem)
    stats.alloc_frame(Raw).drop()
    mem.close()
    with pytest.raises(pf.ArenaClosedError):
        stats.alloc_frame()
    with pytest.raises(pf.ArenaClosedError):
        StatisticsAdaptor(mem)
    assert stats.used_frames == 0
    assert stats.by_type == {Raw.__layout__.name: (0, 1)}


def test_frames_outlive_the_adaptor_that_gave_them(mem):
    bottom = StatisticsAdaptor(mem)
    frames = StatisticsAdaptor(LimitAdaptor(bottom, "1 MiB")).alloc_frames(5)
    gc.collect()
    others = [StatisticsAdaptor(mem) for _ in range(3)]
    assert bottom.used_frames == 5
    part = frames[:2]
    frames.drop()
    assert bottom.used_frames == 2
    part.drop()
    assert bottom.used_frames == 0
    assert [other.used_frames for other in others] == [0, 0, 0]


def test_accounts_that_nobody_needs_are_used_again(mem):
    kept = []
    for i in range(10_000):  # more than there are
        stats = StatisticsAdaptor(mem)
        assert (stats.used_frames, stats.peak_frames) == (0, 0)
        frame = stats.alloc_frame()
        if i % 500 == 0:
            kept.append((stats, frame))
    assert all(stats.used_frames == stats.peak_frames == 1 for stats, _ in kept)


def test_reset_begins_anew_with_what_is_in_use(mem):
    stats = StatisticsAdaptor(mem)
    frames = stats.alloc_frames(4)
    stats.alloc_frames(8, Raw).drop()
    assert (stats.peak_frames, stats.total_frames, stats.allocations) == (12, 12, 2)
    stats.reset()
    assert (stats.used_frames, stats.peak_frames, stats.total_frames, stats.allocations) == (4, 4, 0, 0)
    assert stats.by_type == {PLAIN: (4, 4)}
    frames.drop()


class Pool(LimitAdaptor):
    """Gives the same frame again and again."""

    def alloc_frame(self, meta=None, zeroed=True):
        if not hasattr(self, "frame"):
            self.frame = super().alloc_frame(meta, zeroed)
        return self.frame.clone()


class Liar(LimitAdaptor):
    """Gives what is no frame of the arena."""

    def alloc_frame(self, meta=None, zeroed=True):
        return self.given


def test_users_own_adaptors_are_asked_and_what_they_give_counts_once(mem):
    pool = Pool(mem, "1 MiB")
    stats = StatisticsAdaptor(LimitAdaptor(pool, 2 * PAGE))
    frames = [stats.alloc_frame() for _ in range(5)]
    assert (stats.used_frames, pool.used_frames, stats.total_frames) == (1, 1, 1)
    assert frames[0] == frames[2]
    del frames
    assert stats.used_frames == 1
    sibling = StatisticsAdaptor(pool)
    sibling.alloc_frame().drop()  # it is the other's already
    assert (stats.used_frames, sibling.used_frames, pool.used_frames) == (1, 0, 1)
    pool.frame.drop()
    assert (stats.used_frames, sibling.used_frames, pool.used_frames) == (0, 0, 0)


class Rounding(Adaptor):
    """Gives more frames than it is asked for."""

    def alloc_frames(self, n, meta=None, zeroed=True):
        return super().alloc_frames(-(-n // 8) * 8, meta, zeroed)


def test_what_a_users_own_adaptor_gives_beyond_what_was_wanted_is_charged_too(mem):
    limit = LimitAdaptor(Rounding(mem), 12 * PAGE)
    with limit.alloc_frames(1):
        assert limit.used_frames == limit.upstream.used_frames == 8
        with pytest.raises(pf.QuotaExceededError, match=r"of a limit of 12 frames .* 9 are used"):
            limit.alloc_frames(1)
        assert limit.used_frames == limit.upstream.used_frames == 8
        assert len(list(limit.alloc_segment(4))) == 4
    assert limit.used_frames == limit.upstream.used_frames == 0
    assert len(limit.alloc_segment(12)) == 12


class Growing:
    """A length that is another one each time it is asked for."""

    def __init__(self, *lengths):
        self.lengths = iter(lengths)

    def __index__(self):
        return next(self.lengths)


def test_a_shape_that_grows_while_it_is_looked_at_does_not_get_past_the_limit(mem):
    limit = LimitAdaptor(mem, 4 * PAGE)
    with pytest.raises(pf.QuotaExceededError):
        limit.zeros((Growing(1, 5 * PAGE),), "u1")
    assert limit.used_frames == 0
    array = limit.zeros((Growing(1, 3 * PAGE),), "u1")
    assert limit.used_frames == 3
    del array
    assert limit.used_frames == 0
    assert len(limit.alloc_frames(4)) == 4


def test_what_a_users_own_adaptor_got_elsewhere_counts_nowhere(mem):
    elsewhere = Liar(mem, "1 MiB")
    stats = StatisticsAdaptor(StatisticsAdaptor(elsewhere))
    elsewhere.given = mem.alloc_frame()
    with stats.alloc_frame():
        assert stats.used_frames == stats.upstream.used_frames == elsewhere.used_frames == 0
    assert stats.used_frames == stats.upstream.used_frames == elsewhere.used_frames == 0


def test_types_of_one_name_count_together(mem):
    def make(kind):
        class Twin(pf.UntypedFrameMeta):
            number: kind

        return Twin

    stats = StatisticsAdaptor(mem)
    narrow, wide = make(pf.u32), make(pf.u64)
    with stats.alloc_frames(3, narrow):
        stats.alloc_frames(2, wide).drop()
        assert stats.by_type == {narrow.__layout__.name: (3, 5)}


def test_what_is_no_frame_of_the_arena_is_refused(mem):
    liar = Liar(mem, "1 MiB")
    stats = StatisticsAdaptor(liar)
    moved = mem.alloc_frame()
    moved.drop()
    with pf.PhysicalMemory("1 MiB") as other, other.alloc_frame() as foreign:
        array = np.zeros(3).view(pf.FrameArray)
        for given, error in (
            (None, TypeError),
            (b"1", TypeError),
            (array, TypeError),
            (foreign, TypeError),
            (moved, pf.MovedError),
        ):
            liar.given = given
            with pytest.raises(error):
                stats.alloc_frame()
    assert stats.used_frames == stats.allocations == 0
    liar.given = mem.alloc_frame().borrow()


# -- logs --------------------------------------------------------------------------------------


def test_a_log_has_a_line_for_what_happened(mem, tmp_path):
    path = tmp_path / "log.csv"
    before = time.time()
    with LogAdaptor(LimitAdaptor(mem, "64 KiB"), path) as log:
        segment = log.alloc_segment(3, Raw)
        start = segment.start_paddr
        with pytest.raises(pf.QuotaExceededError):
            log.alloc_frames(14)
        segment.drop()
    lines = rows(path)
    assert list(lines[0]) == ["time", "thread", "event", "paddr", "bytes", "type"]
    assert [(line["event"], line["paddr"], line["bytes"], line["type"]) for line in lines] == [
        ("allocate", str(start), "12288", Raw.__layout__.name),
        ("failure", "", "57344", ""),
        ("release", str(start), "12288", Raw.__layout__.name),
    ]
    assert {int(line["thread"]) for line in lines} == {threading.get_ident()}
    times = [float(line["time"]) for line in lines]
    assert before - 1e-3 <= times[0] <= times[1] <= times[2] <= time.time() + 1e-3


def test_lines_of_two_allocations_are_two_though_the_frames_are_neighbours(mem, tmp_path):
    with LogAdaptor(mem, tmp_path / "log") as log:
        frames = [log.alloc_frame() for _ in range(3)]
        paddrs = [frame.start_paddr for frame in frames]
        assert paddrs == [paddrs[0], paddrs[0] + PAGE, paddrs[0] + 2 * PAGE]
        log.flush()
        lines = rows(tmp_path / "log")
    assert [int(line["paddr"]) for line in lines] == paddrs


def test_lines_of_releases_that_are_not_at_once_are_two(mem, tmp_path):
    with LogAdaptor(mem, tmp_path / "log") as log:
        frames = list(log.alloc_segment(2))
        paddrs = [frame.start_paddr for frame in frames]
        gc.collect()
        frames[0].drop()
        time.sleep(0.002)
        frames[1].drop()
    assert [int(line["paddr"]) for line in rows(tmp_path / "log")[1:]] == paddrs


def test_a_log_goes_to_an_open_file_and_to_its_end(mem, tmp_path):
    with (tmp_path / "log").open("w") as file:
        file.write("# mine\n")
        log = LogAdaptor(mem, file)
    frame = log.alloc_frame()
    log.close()
    log.close()
    frame.drop()
    log.alloc_frame().drop()
    text = (tmp_path / "log").read_text().splitlines()
    assert text[:2] == ["# mine", "time,thread,event,paddr,bytes,type"]
    assert len(text) == 3
    with pytest.raises(OSError, match="fileno"):
        LogAdaptor(mem, io.StringIO())
    with pytest.raises(FileNotFoundError):
        LogAdaptor(mem, tmp_path / "none" / "log")


def test_a_log_that_can_not_be_written_says_so_and_allocating_goes_on(mem):
    log = LogAdaptor(mem, "/dev/full")
    with log.alloc_frame() as frame:
        assert frame.size == PAGE
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            log.flush()
    with pytest.raises(OSError, match="No space left"):
        log.close()
    log.close()


def test_a_log_is_written_when_its_adaptor_goes_and_when_the_process_ends(mem, tmp_path):
    log = LogAdaptor(mem, tmp_path / "gone")
    log.alloc_frame().drop()
    del log
    gc.collect()
    assert len(rows(tmp_path / "gone")) == 2
    source = (
        "import sys, pageframe as pf\n"
        "from pageframe.adaptors import LogAdaptor\n"
        "log = LogAdaptor(pf.PhysicalMemory('1 MiB'), sys.argv[1])\n"
        "frame = log.alloc_frame()\n"
        "log.me = log\n"
    )
    run_program(source, tmp_path / "end")
    assert [line["event"] for line in rows(tmp_path / "end")] == ["allocate"]


def test_a_log_that_can_not_be_written_keeps_no_other_from_being_so_at_the_end(tmp_path):
    program = """
import ctypes, sys
import pageframe as pf
from pageframe.adaptors import LogAdaptor

mem = pf.PhysicalMemory("1 MiB")
for path in sys.argv[1:]:
    log = LogAdaptor(mem, path)
    log.alloc_frame().drop()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(log))  # nobody but the end of the process closes it
"""
    paths = [tmp_path / f"{i}.csv" for i in range(4)]
    places = [str(where) for path in paths for where in ("/dev/full", path)]
    ended = subprocess.run(
        [sys.executable, "-c", program, *places], capture_output=True, text=True, timeout=LIMIT
    )
    assert "No space left on device" in ended.stderr
    assert [[line["event"] for line in rows(path)] for path in paths] == [["allocate", "release"]] * 4


def test_a_log_replayed_gives_the_statistics_though_many_frames_go_without_the_interpreter_lock(tmp_path):
    with pf.PhysicalMemory("256 MiB") as mem:
        stats = StatisticsAdaptor(mem)
        log = LogAdaptor(stats, tmp_path / "log")
        failed = []

        def work(number):
            rng = random.Random(number)
            held = []
            try:
                for _ in range(40):
                    if held and rng.random() < 0.5:
                        held.pop(rng.randrange(len(held))).drop()
                    else:
                        get = rng.choice([log.alloc_frames, log.alloc_segment])
                        held.append(get(rng.choice([1, 2, 50, 2100]), rng.choice([None, Raw, Node])))
                    del held[3:]
            except BaseException as error:
                failed.append(error)
                raise

        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        assert not failed
        log.close()
        lines = rows(tmp_path / "log")
        assert len({line["thread"] for line in lines}) == 3
        count = Counter()
        for line in lines:
            count[line["event"], line["type"]] += int(line["bytes"]) // PAGE
        assert (
            sum(frames for (event, _), frames in count.items() if event == "allocate") == stats.total_frames
        )
        for name, (current, _) in stats.by_type.items():
            assert current == 0
            assert count["allocate", name] == count["release", name]
        assert stats.used_frames == 0


# -- processes ---------------------------------------------------------------------------------


def keep(conn, data):
    """Hold what was sent until told to let go."""
    handle = pickle.loads(data)
    conn.send("held")
    conn.recv()
    handle.drop()


@pytest.mark.parametrize("end", ["drop", "kill"])
def test_what_was_sent_and_dropped_here_is_out_of_the_quota(end):
    with shared_arena() as mem:
        limit = LimitAdaptor(mem, "64 KiB")
        sent = limit.alloc_segment(16)
        with Forked(keep, pickle.dumps(sent)) as other:
            assert other.hear() == "held"
            assert limit.used_frames == 16
            sent.drop()
            assert limit.used_frames == 0
            assert mem.used_frames == 16
            more = limit.alloc_segment(16)
            if end == "kill":
                other.kill()
            else:
                other.say()
                other.result()
            mem.reap()  # what it held by the fork
            assert mem.used_frames == limit.used_frames == 16
            more.drop()


def test_a_message_in_transit_holds_nothing_here_and_what_is_loaded_is_not_charged_again():
    with shared_arena() as mem:
        stats = StatisticsAdaptor(mem)
        frames = stats.alloc_frames(5)
        data = pickle.dumps(frames)
        assert stats.used_frames == 5
        frames.drop()
        assert stats.used_frames == 0
        again = pickle.loads(data)
        assert len(again) == 5
        assert stats.used_frames == 0
        again.drop()


def use_inherited(conn, mem, stats, path):
    """In the child: the account is its own, and the log its parent's."""
    found = [stats.used_frames]
    with stats.alloc_frames(4):
        found.append(stats.used_frames)
    conn.send(found)
    conn.recv()
    return path.stat().st_size


@pytest.mark.parametrize("shared", [False, True])
def test_a_forked_child_accounts_for_what_it_holds_and_leaves_the_log_alone(tmp_path, shared):
    path = tmp_path / "log"
    with shared_arena() if shared else pf.PhysicalMemory("1 MiB") as mem:
        with LogAdaptor(mem, path) as log:
            stats = StatisticsAdaptor(log)
            frames, unique = stats.alloc_frames(3), stats.alloc_frame().try_unique()
            with Forked(use_inherited, mem, stats, path) as child:
                # A frame that is UNIQUE has one owner among the processes that share it.
                held = 3 if shared else 4
                assert child.hear() == [held, held + 4]
                assert stats.used_frames == 4
                frames.drop()
                assert stats.used_frames == 1
                child.say()
                assert child.result() == 0
            unique.drop()
        replay = Replay(rows(path))
        assert (replay.current, replay.total, replay.peak) == ({}, 4, 4)


def let_go_of_a_log(conn, mem, logs, path):
    """Return whether the file is open: with the adaptor, and once another has its account."""
    found = [is_open(path)]
    logs.clear()
    gc.collect()
    StatisticsAdaptor(mem)
    return [*found, is_open(path)]


def is_open(path):
    return path in [link.resolve() for link in Path("/proc/self/fd").iterdir()]


def test_a_forked_child_that_lets_go_of_its_parents_log_closes_it_and_writes_nothing(mem, tmp_path):
    path = tmp_path / "log"
    logs = [LogAdaptor(mem, path)]
    logs[0].alloc_frame().drop()
    with Forked(let_go_of_a_log, mem, logs, path) as child:
        assert child.result() == [True, False]
    assert path.read_text() == ""
    logs.pop().close()
    assert [line["event"] for line in rows(path)] == ["allocate", "release"]


def allocate_and_die(conn, mem):
    """Hold frames by an adaptor of one's own."""
    stats = StatisticsAdaptor(mem)
    frames = stats.alloc_frames(5), stats.alloc_frame(Raw)
    conn.send([stats.used_frames, len(frames)])
    conn.recv()


def test_reaping_the_dead_changes_no_account_here():
    with shared_arena() as mem:
        stats = StatisticsAdaptor(mem)
        mine = stats.alloc_frames(3)
        with Forked(allocate_and_die, mem) as other:
            assert other.hear() == [6, 2]
            other.kill()
        assert mem.reap().frames == 6
        assert stats.used_frames == 3
        mine.drop()


def test_a_client_that_leaves_gives_up_its_accounts():
    mem = pf.PhysicalMemory.create("1 MiB")
    stats = StatisticsAdaptor(mem)
    bottom = stats._figures
    stats.alloc_frame().into_raw()
    stats.alloc_frame(Dropped).into_raw()
    assert stats.used_frames == 2
    mem.__del__()  # as when nobody refers to it any more
    assert stats.used_frames == 0
    assert bottom()[0] == 2
    Dropped.seen.clear()


# -- beside a model ----------------------------------------------------------------------------

REACHED: Counter[str] = Counter()
STATES = {
    "quota exceeded",
    "out of frames",
    "metadata failed",
    "let go while another client holds",
    "loaded after it was let go",
    "loaded while held",
    "retaken by another client",
    "dropped a clone",
    "split",
    "array",
    "ring",
    "unique",
    "adaptor gone with frames",
}
number = st.integers(0, 2**16)
TYPES = [None, Raw, Node]


class Machine(RuleBasedStateMachine):
    """A shared arena with two clients; adaptors stand over the first."""

    path = None

    def __init__(self):
        super().__init__()
        name = unique_name()
        self.mem = pf.PhysicalMemory.create("352 KiB", name, tickets=8, clients=4)
        self.other = pf.PhysicalMemory.attach(name)
        self.filler = self.mem.alloc_frames(self.mem.free_frames - 36)
        bottom = StatisticsAdaptor(self.mem)
        limit = LimitAdaptor(bottom, 24 * PAGE)
        log = LogAdaptor(limit, self.path)
        self.adaptors = [bottom, limit, log, StatisticsAdaptor(log), StatisticsAdaptor(bottom)]
        self.chains = [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 4}]
        self.held = Counter()  # paddr -> references of the first client
        self.charged = {}  # paddr -> (adaptors, type)
        self.peaks = [Counter() for _ in self.adaptors]
        self.totals = [0] * 5
        self.calls = [0] * 5
        self.failures = []
        self.handles = []  # (client, handle, paddrs)
        self.messages = []  # (data, paddrs)

    # -- the model

    def used(self, i):
        """Frames by type that an adaptor should count."""
        return Counter(name for adaptors, name in self.charged.values() if i in adaptors)

    def keep(self, handle, paddrs):
        self.handles.append((handle.mem, handle, paddrs))
        if handle.mem is self.mem:
            self.held.update(paddrs)

    def let_go(self, mem, paddrs):
        if mem is self.mem:
            for paddr in paddrs:
                self.held[paddr] -= 1
                if self.held[paddr] == 0:
                    if paddr in self.charged and any(
                        paddr in more for client, _, more in self.handles if client is not self.mem
                    ):
                        REACHED["let go while another client holds"] += 1
                    self.charged.pop(paddr, None)

    def any_handle(self, n, *kinds):
        found = [found for found in self.handles if isinstance(found[1], kinds)]
        return found[n % len(found)] if found else None

    def allocated(self, i, handle, paddrs, name):
        self.keep(handle, paddrs)
        self.charge(i, paddrs, name)

    def charge(self, i, paddrs, name):
        assert self.charged.keys().isdisjoint(paddrs)
        self.charged.update(dict.fromkeys(paddrs, (self.chains[i], name)))
        for k in self.chains[i]:
            self.totals[k] += len(paddrs)
            self.calls[k] += 1
            used = self.used(k)
            self.peaks[k] |= used
            self.peaks[k][None] = max(self.peaks[k][None], used.total())

    def attempt(self, i, frames, get):
        """Allocate, unless the model says that the quota refuses it, or the arena has too few."""
        refused = 1 in self.chains[i] and self.used(1).total() + frames > 24
        try:
            handle = get(self.adaptors[i])
        except pf.QuotaExceededError:
            assert refused
            REACHED["quota exceeded"] += 1
        except pf.OutOfFramesError:
            assert not refused
            REACHED["out of frames"] += 1
        else:
            assert not refused
            return handle
        if 2 in self.chains[i]:
            self.failures.append(frames)
        return None

    # -- rules

    @rule(i=number, n=st.integers(1, 14), kind=st.sampled_from(["segment", "frames", "frame"]), t=number)
    def allocate(self, i, n, kind, t):
        i, meta = i % 5, TYPES[t % 3]
        name = meta.__layout__.name if meta else PLAIN
        if kind == "frame":
            handle = self.attempt(i, 1, lambda mem: mem.alloc_frame(meta))
            paddrs = [handle.start_paddr] if handle else []
        elif kind == "frames":
            handle = self.attempt(i, n, lambda mem: mem.alloc_frames(n, meta))
            paddrs = handle.paddrs.tolist() if handle else []
        else:
            handle = self.attempt(i, n, lambda mem: mem.alloc_segment(n, meta))
            paddrs = [handle.start_paddr + k * PAGE for k in range(n)] if handle else []
        if handle:
            self.allocated(i, handle, paddrs, name)

    @rule(i=number, n=st.integers(1, 6), kind=st.sampled_from(["array", "ring"]))
    def allocate_and_drop(self, i, n, kind):
        i %= 5
        if kind == "array":
            handle = self.attempt(i, n, lambda mem: mem.zeros(n * PAGE, "u1"))
        else:
            handle = self.attempt(i, n, lambda mem: mem.ring(n * PAGE))
        if handle is None:
            return
        REACHED[kind] += 1
        for k in self.chains[i]:
            assert self.adaptors[k].used_frames == self.used(k).total() + n
        self.charge(i, [(kind, k) for k in range(n)], PLAIN)
        for k in range(n):
            del self.charged[kind, k]

    @rule(i=number, n=st.integers(1, 6))
    def metadata_fails(self, i, n):
        i %= 5

        def fail(paddr):
            raise KeyError(paddr)

        try:
            assert self.attempt(i, n, lambda mem: mem.alloc_frames(n, fail)) is None
        except KeyError:
            REACHED["metadata failed"] += 1
            if 2 in self.chains[i]:
                self.failures.append(n)

    @rule(n=number)
    def clone(self, n):
        found = self.any_handle(n, pf.Frame, pf.Segment, pf.FrameVec)
        if found:
            self.keep(found[1].clone(), found[2])

    @rule(n=number)
    def drop(self, n):
        if self.handles:
            mem, handle, paddrs = self.handles.pop(n % len(self.handles))
            REACHED["dropped a clone"] += any(set(paddrs) & set(more) for _, _, more in self.handles)
            handle.drop()
            self.let_go(mem, paddrs)

    @rule(n=number, at=number)
    def split(self, n, at):
        found = self.any_handle(n, pf.Segment)
        if found and len(found[2]) > 1:
            mem, segment, paddrs = found
            at = 1 + at % (len(paddrs) - 1)
            self.handles = [other for other in self.handles if other is not found]
            left, right = segment.split(at * PAGE)
            self.handles += [(mem, left, paddrs[:at]), (mem, right, paddrs[at:])]
            REACHED["split"] += 1

    @rule(n=number, start=number, stop=number)
    def pick(self, n, start, stop):
        found = self.any_handle(n, pf.FrameVec)
        if found:
            size = len(found[2])
            start %= size
            stop = start + 1 + stop % (size - start)
            self.keep(found[1][start:stop], found[2][start:stop])

    @rule(n=number)
    def make_unique_and_back(self, n):
        found = self.any_handle(n, pf.Frame)
        if found and found[1].reference_count == 1:
            mem, frame, paddrs = found
            self.handles = [other for other in self.handles if other is not found]
            self.handles.append((mem, frame.try_unique().share(), paddrs))
            REACHED["unique"] += 1

    @rule(n=number, back=st.booleans())
    def take_by_paddr(self, n, back):
        """The other client takes a frame that one of them holds, or the first does."""
        if self.handles:
            paddrs = self.handles[n % len(self.handles)][2]
            paddr = paddrs[n % len(paddrs)]
            self.keep(pf.Frame.from_in_use(self.mem if back else self.other, paddr), [paddr])
            REACHED["retaken by another client"] += not back

    @rule(n=number, moves=st.booleans())
    def send(self, n, moves):
        found = self.any_handle(n, pf.Frame, pf.Segment, pf.FrameVec)
        if found and len(self.messages) < 6:
            try:
                self.messages.append((pickle.dumps(found[1]), found[2]))
            except pf.OutOfFramesError:
                assert isinstance(found[1], pf.FrameVec)
            else:
                if moves:
                    self.handles = [other for other in self.handles if other is not found]
                    found[1].drop()
                    self.let_go(found[0], found[2])

    @rule(n=number)
    def load(self, n):
        """Which client gets it is not certain; what the first holds already stays as it was."""
        if self.messages:
            data, paddrs = self.messages.pop(n % len(self.messages))
            handle = pickle.loads(data)
            if handle.mem is self.mem:
                REACHED["loaded while held" if self.held[paddrs[0]] else "loaded after it was let go"] += 1
            self.keep(handle, paddrs)

    @rule(n=st.integers(1, 5))
    def adaptor_goes(self, n):
        """Frames of an adaptor that has gone count in those beneath it."""
        handle = self.attempt(0, n, lambda mem: StatisticsAdaptor(mem).alloc_frames(n))
        if handle:
            self.allocated(0, handle, handle.paddrs.tolist(), PLAIN)
            REACHED["adaptor gone with frames"] += 1

    @invariant()
    def accounts_say_what_is_held(self):
        for i, adaptor in enumerate(self.adaptors):
            used = self.used(i)
            assert adaptor.used_frames == used.total()
            if isinstance(adaptor, StatisticsAdaptor):
                peaks = self.peaks[i]
                assert adaptor.peak_frames == peaks[None]
                assert (adaptor.total_frames, adaptor.allocations) == (self.totals[i], self.calls[i])
                assert adaptor.by_type == {
                    name: (used[name], peak) for name, peak in peaks.items() if name and peak
                }

    def teardown(self):
        for data, paddrs in self.messages:
            self.keep(pickle.loads(data), paddrs)
        while self.handles:
            self.drop(0)
            self.accounts_say_what_is_held()
        log = self.adaptors[2]
        log.close()
        replay = Replay(rows(self.path))
        assert replay.current == {}
        assert replay.failures == self.failures
        assert (replay.total, replay.peak) == (self.totals[2], self.peaks[2][None])
        assert replay.by_type() == {name: (0, peak) for name, peak in self.peaks[2].items() if name and peak}
        assert self.mem.audit().clean
        self.filler.drop()
        self.other.close()
        self.mem.close()


def test_adaptors_agree_with_a_model_over_random_operations(tmp_path):
    number = chosen_seed()
    REACHED.clear()
    Machine.path = tmp_path / "log"
    # What is drawn depends on which modules are there, too; so there are more rounds if need be.
    for more in range(10):
        run_state_machine_as_test(
            seed(number + more)(Machine),
            settings=settings(
                max_examples=50 * LONG,
                stateful_step_count=50,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            ),
        )
        if set(REACHED) >= STATES:
            break
    assert set(REACHED) >= STATES, STATES - set(REACHED)
