# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the user's own code may do in the middle of an operation; and faults that once were there.

Conversions (`__index__`, `__bool__`), constructors of metadata, `on_drop` and a user's allocator are
code that may drop the very handle that is being used.  What crashed runs in a process of its own.
"""

import subprocess
import sys
import textwrap

import pytest

import pageframe as pf

PAGE = 4096


class Plain(pf.UntypedFrameMeta):
    number: pf.u64


class Typed(pf.FrameMeta):
    number: pf.u64
    flag: pf.bool_
    hits: pf.atomic_u32


def survives(source):
    """Run a program that may crash; it must end well."""
    program = "import pageframe as pf\nmem = pf.PhysicalMemory(2**20)\n" + textwrap.dedent(source)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, (result.returncode, result.stderr)


def test_an_exception_in_on_drop_reaches_the_unraisable_hook(monkeypatch):
    """The class's attribute is looked up with the exception set; the lookup clears it on a cache miss."""

    class Fails(pf.FrameMeta):
        number: pf.u64

        def on_drop(self, reader):
            raise RuntimeError("on_drop fails")

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_value))
    mem = pf.PhysicalMemory(2**20)
    getattr(sys, "_clear_internal_caches", sys._clear_type_cache)()  # since 3.13
    mem.alloc_frame(Fails()).drop()
    assert [str(error) for error in seen] == ["on_drop fails"]


def test_on_drop_runs_when_the_last_view_goes_while_an_exception_is_on_its_way():
    """Releasing a buffer runs on_drop with an exception set: SystemError, then a crash."""
    survives("""
        log = []
        class P(pf.UntypedFrameMeta):
            n: pf.u64
            def on_drop(self, reader):
                log.append(self.n)
        frame = mem.alloc_frame(P(n=5))
        try:
            [memoryview(frame), frame.drop(), 1 / 0]
        except ZeroDivisionError:
            pass
        assert log == [5] and mem.used_frames == 0
        segment = mem.alloc_segment(2, P(n=6))
        try:
            [memoryview(segment), segment.drop(), 1 / 0]
        except ZeroDivisionError:
            pass
        assert log == [5, 6, 6] and mem.used_frames == 0
    """)


@pytest.mark.parametrize("index", ["E()", "E() : None"])
def test_an_index_that_drops_the_vector_is_refused(index):
    """check() comes before __index__ runs; then frames is NULL: a crash."""
    survives(f"""
        vec = mem.alloc_frames(4)
        class E:
            def __index__(self):
                vec.drop()
                return 1
        try:
            vec[{index.replace("None", "")}]
        except pf.MovedError:
            pass
    """)


def test_an_index_that_drops_the_segment_is_refused():
    """The slice takes references to frames that belong to somebody else by then."""
    mem = pf.PhysicalMemory(2**20)
    segment = mem.alloc_segment(4)
    others = []

    class Drops:
        def __index__(self):
            segment.drop()
            others.append(mem.alloc_segment(4))
            return 1

    with pytest.raises(pf.MovedError):
        segment[Drops() :]


def test_an_arena_that_was_never_initialised_has_no_metadata_column():
    """type_id_of() comes before check_open(); the header is NULL: a crash."""
    survives("""
        mem = pf.PhysicalMemory.__new__(pf.PhysicalMemory)
        try:
            mem.meta(pf.UntypedFrameMeta)
        except pf.ArenaClosedError:
            pass
    """)


def test_repurpose_with_a_class_that_drops_the_frame_leaves_one_owner():
    """movable() comes before the metadata's constructor runs: the frame then has two owners."""
    mem = pf.PhysicalMemory(2**20)

    class Drops(pf.FrameMeta):
        number: pf.u64

        def __init__(self):
            super().__init__()
            unique.drop()

    unique = mem.alloc_frame().try_unique()
    with pytest.raises(pf.MovedError):
        unique.repurpose(Drops)
    assert mem.used_frames == 0


@pytest.mark.parametrize("name", ["number", "flag"])
def test_a_value_whose_conversion_drops_the_frame_is_not_written(name):
    """The address is taken before the value is converted: the write hits the next owner's slot."""
    mem = pf.PhysicalMemory(2**20)
    unique = mem.alloc_frame(Typed()).try_unique()
    others = []

    class Drops:
        def __index__(self):
            unique.drop()
            others.append(mem.alloc_frame(Typed()))
            return 77

        def __bool__(self):
            return bool(self.__index__())

    with pytest.raises(pf.MovedError):
        setattr(unique.meta, name, Drops())
    assert others[0].meta.number == 0
    assert not others[0].meta.flag


@pytest.mark.parametrize("operation", ["store", "fetch_add", "compare_exchange"])
def test_an_atomic_operation_whose_operand_drops_the_frame_is_refused(operation):
    mem = pf.PhysicalMemory(2**20)
    frame = mem.alloc_frame(Typed())
    others = []

    class Drops:
        def __index__(self):
            if not others:
                frame.drop()
                others.append(mem.alloc_frame(Typed()))
            return 0 if operation == "compare_exchange" else 77

    hits = frame.meta.hits
    operands = (Drops(), 77) if operation == "compare_exchange" else (Drops(),)
    with pytest.raises(pf.MovedError):
        getattr(hits, operation)(*operands)
    assert others[0].meta.hits == 0


def test_metadata_columns_of_a_vector_that_has_a_frame_twice():
    """A step of 0 passes for a uniform one: ValueError."""
    mem = pf.PhysicalMemory(2**20)
    frame = mem.alloc_frame(Plain(number=5))
    vec = pf.FrameVec.from_frames([frame, frame])
    assert vec.meta["number"].tolist() == [5, 5]


def test_usegment_from_frame_refuses_a_typed_frame():
    mem = pf.PhysicalMemory(2**20)
    frame = mem.alloc_frame(Typed())
    with pytest.raises(pf.FrameTypeError):
        pf.USegment.from_frame(frame)
    assert frame.reference_count == 1


def test_usegment_from_unused_of_typed_metadata_leaves_the_frames_as_they_were():
    """The kind is checked after the frames were built: generation and on_drop tell of lives nobody had."""
    ended = []

    class Ends(pf.FrameMeta):
        number: pf.u64

        def on_drop(self, reader):
            ended.append(self.number)

    mem = pf.PhysicalMemory(2**20)
    frame = mem.alloc_frame()
    paddr = frame.start_paddr
    frame.drop()
    before = mem.slots["generation"].tolist()
    with pytest.raises(pf.FrameTypeError):
        pf.USegment.from_unused(mem, paddr, paddr + 2 * PAGE, Ends)
    assert ended == []
    assert mem.slots["generation"].tolist() == before


def test_a_view_does_not_leak_a_reference_to_none():
    """Before 3.12: PyBuffer_FillInfo overwrites the None that Cython has put into buffer.obj."""
    mem = pf.PhysicalMemory(2**20)
    frame = mem.alloc_frame()
    before = sys.getrefcount(None)
    for _ in range(1000):
        memoryview(frame).release()
    assert sys.getrefcount(None) - before < 500


def test_a_user_allocator_decides_who_gets_a_frame_that_alloc_frames_gave_back():
    """give_all_back() lets the lane keep one: its bit stays set, though dealloc() was told of it."""

    class Bump:
        def __init__(self):
            self.runs = []

        def add_free_memory(self, paddr, size):
            self.runs.append(range(paddr, paddr + size, PAGE))
            self.left = [paddr for run in self.runs for paddr in run][:3]

        def alloc(self, layout):
            return self.left.pop() if self.left else None

        def dealloc(self, paddr, size):
            pass

    mem = pf.PhysicalMemory(2**20, allocator=Bump())
    with pytest.raises(pf.OutOfFramesError):
        mem.alloc_frames(5)
    offset, size = next((offset, size) for name, offset, size in mem.layout if name == "bits")
    slots = mem.slots
    base = slots.ctypes.data - next(offset for name, offset, _ in mem.layout if name == "slots")
    import ctypes

    bits = int.from_bytes(ctypes.string_at(base + offset, size), "little")
    unused = [i for i, count in enumerate(slots["count"].tolist()) if count == pf.REF_COUNT_UNUSED]
    assert not [i for i in unused if bits >> i & 1]


def test_a_vector_that_is_dropped_while_it_is_pickled_is_refused():
    """What lists its frames is allocated; that reaps, and an on_drop drops the vector."""
    survives("""
        import os, pickle, signal
        mem = pf.PhysicalMemory.create(2**20)
        vecs = []
        class P(pf.FrameMeta):
            n: pf.u64
            def on_drop(self, reader):
                if vecs:
                    vecs.pop().drop()
        vec = mem.alloc_frames(2)
        vecs.append(vec)
        child = os.fork()
        if child == 0:
            held = mem.alloc_frames(mem.free_frames, P)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        try:
            pickle.dumps(vec)
        except pf.MovedError:
            pass
        else:
            raise AssertionError("it was pickled")
        assert vecs == [] and mem.used_frames == 0 and mem.audit().clean
    """)


def test_an_arena_that_its_regions_have_initialised_keeps_what_it_was_made_for():
    """What is kept for debugging is asked of the environment; that must not change an arena that is there."""
    survives("""
        import os
        mem = pf.PhysicalMemory.__new__(pf.PhysicalMemory)
        class Regions:
            def __iter__(self):
                mem.__init__(2**20)
                os.environ["PAGEFRAME_DEBUG"] = "trace"
                return iter(())
        try:
            mem.__init__(2**20, regions=Regions())
        except TypeError as error:
            assert "initialised already" in str(error)
        assert mem.debug == frozenset()
        try:
            mem.events()
        except TypeError:
            pass
        else:
            raise AssertionError("it has events")
    """)


def test_an_arena_is_not_mapped_over_another():
    """What finds the file of a view, or makes an arena's object, may initialise or give one that is used."""
    survives("""
        import os, tempfile
        folder = tempfile.TemporaryDirectory()
        shared = pf.PhysicalMemory.create(2**20, path=folder.name + "/arena")
        class Where:
            def __fspath__(self):
                used.__init__(2**22)
                return str(shared.path)
        class Again(pf.PhysicalMemory):
            def __new__(cls, *args, **kwargs):
                return used
        used = pf.PhysicalMemory.__new__(Again)
        for make in (
            lambda: pf.ArenaView.__init__(used, path=Where()),
            lambda: Again.create(2**21),
            lambda: Again.attach(path=shared.path),
        ):
            open_files = len(os.listdir("/proc/self/fd"))
            try:
                make()
            except TypeError as error:
                assert "initialised already" in str(error)
            else:
                raise AssertionError("it was mapped")
            assert used.size == 2**22 and not used.shared and used.name is None
        with used.alloc_frame() as frame:
            memoryview(frame)[:] = bytes(4096)
        used.close()
        shared.close()
        folder.cleanup()
    """)


def test_an_arena_that_is_only_looked_at_is_not_written_to():
    survives("""
        shared = pf.PhysicalMemory.create(2**20)
        seen = pf.PhysicalMemory.__new__(pf.PhysicalMemory)
        pf.ArenaView.__init__(seen, id=shared.id)
        assert seen.ticket_ttl == shared.ticket_ttl
        for use in (
            lambda: setattr(seen, "ticket_ttl", 1),
            lambda: seen.reap(),
            lambda: seen.audit(repair=True),
        ):
            try:
                use()
            except TypeError as error:
                assert "only shows" in str(error)
            else:
                raise AssertionError("it was used")
    """)
