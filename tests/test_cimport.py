# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""C code reaches frames by a cimport; and what only C code can bring about: a full count."""

import sys
from pathlib import Path

import pytest

import pageframe
from pageframe import (
    REF_COUNT_MAX,
    Frame,
    FrameMeta,
    FrameVec,
    PhysicalMemory,
    RefCountOverflowError,
    Segment,
    u64,
)


class Page(FrameMeta):
    inode: u64 = 0


@pytest.fixture
def mem():
    with PhysicalMemory("4 MiB") as mem:
        yield mem


def test_the_package_ships_what_a_cimport_needs():
    package = Path(pageframe.__file__).parent
    core = Path(pageframe.get_include())
    modules = [name.removeprefix("pageframe._core.") for name in compiled_modules()]
    assert core == package / "_core"
    assert (package / "py.typed").is_file()
    assert {"frame", "segment", "vector", "linked_list", "memory"} <= set(modules)
    for name in modules:
        assert (core / f"{name}.pxd").is_file()
    for name in ("slot.pxd", "slot.h", "atomic.h", "arena.h", "lane.h"):
        assert (core / name).is_file()


def compiled_modules():
    return [
        name
        for name, module in sys.modules.items()
        if name.startswith("pageframe._core.") and not str(module.__file__).endswith(".py")
    ]


def test_c_code_reads_the_slots_that_python_sees(mem, probe):
    frames = [mem.alloc_frame(), mem.alloc_frame(Page(inode=7)), mem.alloc_frame(Page)]
    clones = [frames[1].clone(), frames[1].clone()]
    read = probe.read_slots(frames)
    assert [count for count, _, _, _ in read] == [1, 3, 1]
    assert [generation for _, generation, _, _ in read] == [frame.generation for frame in frames]
    assert [mem.types[type_id] for _, _, type_id, _ in read] == [frame.meta_type for frame in frames]
    assert [list_id for _, _, _, list_id in read] == [0, 0, 0]
    assert len(clones) == 2


def test_the_generation_that_c_code_reads_counts_the_lives_of_a_frame(mem, probe):
    frame = mem.alloc_frame()
    paddr = frame.start_paddr
    [(_, first, _, _)] = probe.read_slots([frame])
    frame.drop()
    again = Frame.from_unused(mem, paddr)
    [(_, second, _, _)] = probe.read_slots([again])
    assert second == first + 1


def test_c_code_takes_and_gives_up_references_without_the_interpreter(mem, probe):
    frame = mem.alloc_frame()
    assert probe.hold_and_release(frame, 1000) == 1001
    assert frame.reference_count == 1


def test_c_code_finds_a_dropped_frame_gone(mem, probe):
    frame = mem.alloc_frame()
    frame.drop()
    with pytest.raises(ValueError, match="dropped or moved"):
        probe.read_slots([frame])
    with pytest.raises(ValueError, match="dropped or moved"):
        probe.hold_and_release(frame, 1)


# -- a count at its maximum --------------------------------------------------------------------


class Full:
    """A segment of 4 frames; `set_count` makes the count of the third what it likes."""

    def __init__(self, mem, probe):
        self.mem = mem
        self.probe = probe
        self.segment = mem.alloc_segment(4)
        self.vec = FrameVec.from_frames(self.segment)
        self.frame = self.segment[2]
        self.ref = self.frame.borrow()
        self.paddr = self.frame.start_paddr
        self.real = self.frame.reference_count

    def drop(self):
        for holder in (self.frame, self.segment, self.vec):
            holder.drop()

    def counts(self):
        return list(self.vec.reference_counts)

    def set_count(self, count):
        return self.probe.set_count(self.mem, self.paddr, count)


@pytest.fixture
def full(mem, probe):
    full = Full(mem, probe)
    assert full.set_count(REF_COUNT_MAX) == full.real == 3
    yield full
    full.set_count(full.real)
    full.drop()


ONE_MORE = {
    "Frame.clone": lambda full: full.frame.clone(),
    "FrameRef.clone": lambda full: full.ref.clone(),
    "the buffer of a FrameRef": lambda full: memoryview(full.ref),
    "Frame.from_in_use": lambda full: Frame.from_in_use(full.mem, full.paddr),
    "inc_frame_ref_count": lambda full: full.mem.inc_frame_ref_count(full.paddr),
    "Segment.clone": lambda full: full.segment.clone(),
    "Segment.slice": lambda full: full.segment.slice(0x1000, 0x3000),
    "a part of a Segment": lambda full: full.segment[1:3],
    "a frame of a Segment": lambda full: full.segment[2],
    "iteration over a Segment": lambda full: list(full.segment),
    "the metadata of a Segment": lambda full: full.segment.meta,
    "FrameVec.clone": lambda full: full.vec.clone(),
    "a part of a FrameVec": lambda full: full.vec[1:],
    "a frame of a FrameVec": lambda full: full.vec[2],
    "iteration over a FrameVec": lambda full: list(full.vec),
    "the metadata of a FrameVec": lambda full: full.vec.meta,
    "FrameVec.from_frames": lambda full: FrameVec.from_frames([full.frame]),
}


@pytest.mark.parametrize("take", ONE_MORE.values(), ids=ONE_MORE)
def test_one_more_reference_than_the_maximum_is_refused_and_changes_no_count(full, take):
    before = full.counts()
    assert before == [2, 2, REF_COUNT_MAX, 2]
    with pytest.raises(RefCountOverflowError, match=f"frame {full.paddr:#x} is at its maximum"):
        take(full)
    assert full.counts() == before


@pytest.mark.parametrize("take", ONE_MORE.values(), ids=ONE_MORE)
def test_the_same_is_granted_below_the_maximum(mem, probe, take):
    full = Full(mem, probe)
    before = full.counts()
    taken = take(full)
    counts = full.counts()
    if taken is None:
        Frame.from_raw(mem, full.paddr)
    else:
        assert counts[2] > before[2]


def test_the_last_reference_that_a_count_has_room_for_is_granted(full):
    full.set_count(REF_COUNT_MAX - 1)
    clone = full.frame.clone()
    assert full.frame.reference_count == REF_COUNT_MAX
    clone.drop()
    assert full.frame.reference_count == REF_COUNT_MAX - 1


def test_two_references_are_refused_where_there_is_room_for_one(full):
    full.set_count(REF_COUNT_MAX - 1)
    with pytest.raises(RefCountOverflowError):
        FrameVec.from_frames([full.frame, full.frame])
    assert full.counts() == [2, 2, REF_COUNT_MAX - 1, 2]


def test_a_full_count_has_room_again_when_a_reference_goes(full):
    full.frame.drop()
    assert full.counts()[2] == REF_COUNT_MAX - 1
    full.frame = full.segment[2]
    assert full.counts()[2] == REF_COUNT_MAX


def test_c_code_is_refused_at_the_maximum_too(full, probe):
    full.set_count(REF_COUNT_MAX - 3)
    assert probe.hold_and_release(full.frame, 10) == REF_COUNT_MAX
    assert full.frame.reference_count == REF_COUNT_MAX - 3


def test_moving_a_reference_needs_no_room_in_the_count(full):
    raw = full.frame.into_raw()
    assert full.counts()[2] == REF_COUNT_MAX
    full.frame = Frame.from_raw(full.mem, raw)
    assert full.counts()[2] == REF_COUNT_MAX
    segment = Segment.from_frame(full.frame)
    assert full.counts()[2] == REF_COUNT_MAX
    full.frame = Frame.from_raw(full.mem, segment.into_raw()[0])
    start, stop = full.segment.into_raw()
    full.segment = Segment.from_raw(full.mem, start, stop)
    assert full.counts() == [2, 2, REF_COUNT_MAX, 2]


def test_a_view_of_bytes_rests_on_its_handle_and_needs_no_room(full):
    with memoryview(full.frame) as view:
        assert len(view) == full.mem.page_size
        assert full.counts()[2] == REF_COUNT_MAX


def test_a_refused_reference_is_no_raw_one(full):
    with pytest.raises(RefCountOverflowError):
        full.mem.inc_frame_ref_count(full.paddr)
    with pytest.raises(pageframe.NotRawError):
        Frame.from_raw(full.mem, full.paddr)
