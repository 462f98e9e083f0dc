# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a hostile or careless program may try with mapped frames: an exception, and no frame two owners.

What might crash runs in a process of its own, which must end well.
"""

import copy
import gc
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import pageframe as pf
from pageframe._core import backing
from processes import wait_until
from test_hostile import Lies, collecting, once
from types_for_tests import Raw
from vm_state import PAGE, READ_ONLY, assert_true_to_kernel, unchanged

PROLOGUE = """
import copy, ctypes, gc, os, pickle, sys, threading
import numpy as np
import pageframe as pf
PAGE = 4096
mem = pf.PhysicalMemory(2**20)
vm = pf.VmSpace(mem, 64 * PAGE)

def refused(use, *errors):
    try:
        use()
    except errors or Exception:
        return
    raise AssertionError("not refused")
"""


def survives(source):
    """Run a program that may crash; it must end well and say nothing."""
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROLOGUE + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr + result.stdout


class Index:
    """An index that does something first."""

    def __init__(self, value, action):
        self.value, self.action = value, action

    def __index__(self):
        self.action()
        return self.value


class Allocator:
    """Gives out frames one behind another, and calls back first."""

    def __init__(self):
        self.free = []
        self.on_alloc = self.on_dealloc = None

    def call(self, name, *args):
        action = getattr(self, name)
        if action is not None:
            setattr(self, name, None)
            with suppress(pf.PageFrameError):
                action(*args)

    def alloc(self, layout):
        self.call("on_alloc")
        size, align = layout
        for i in range(len(self.free)):
            paddr = self.free[i]
            run = list(range(paddr, paddr + size, PAGE))
            if paddr % align == 0 and set(run) <= set(self.free[i : i + len(run)]):
                del self.free[i : i + len(run)]
                return paddr
        return None

    def dealloc(self, paddr, size):
        self.free = sorted({*self.free, *range(paddr, paddr + size, PAGE)})
        self.call("on_dealloc")

    def add_free_memory(self, paddr, size):
        self.free = sorted({*self.free, *range(paddr, paddr + size, PAGE)})


@pytest.fixture
def own():
    """Return an arena with an allocator that calls back, empty again at the end."""
    allocator = Allocator()
    mem = pf.PhysicalMemory("8 MiB", allocator=allocator)
    yield mem, allocator
    allocator.on_alloc = allocator.on_dealloc = None
    gc.collect()
    assert mem.used_frames == 0, mem.stats()
    mem.close()


@pytest.fixture
def vm(mem):
    """Return a space of 64 pages that has gone at the end."""
    with pf.VmSpace(mem, 64 * PAGE) as space:
        yield space
        gc.collect()


# -- objects that are not what they should be --------------------------------------------------


def test_objects_that_were_never_initialised_refuse_everything():
    survives("""
        frame = mem.alloc_frame()
        cursor = vm.cursor()
        for cls in (pf.VmSpace, pf.VmCursor, pf.VmItem, pf.Mapping, pf.Ring, pf.Mapping.__base__):
            thing = cls.__new__(cls)
            assert isinstance(thing, cls)
            for name in dir(thing):
                if name in ("__class__", "__new__", "__init_subclass__", "__subclasshook__", "__doc__"):
                    continue
                try:
                    value = getattr(thing, name)
                except Exception:
                    continue
                if callable(value):
                    for args in [(), (0,), (frame,), (0, 4096), (None,), (None, None, None), ("x",)]:
                        try:
                            value(*args)
                        except Exception:
                            continue
            for use in (repr, hash, memoryview, copy.copy, copy.deepcopy, pickle.dumps, np.frombuffer,
                        pf.VmReader, pf.VmWriter, pf.readonly, mem.map, cursor.map):
                try:
                    use(thing)
                except Exception:
                    continue
        assert frame.reference_count == 1
        gc.collect()
        frame.drop()
        vm.close()
        assert mem.used_frames == 0
    """)


@pytest.mark.parametrize("name", ["VmCursor", "VmItem", "Mapping", "Ring"])
def test_what_is_had_from_a_method_can_not_be_made(name):
    cls = getattr(pf, name)
    for args in [(), (None,), (1, 2)]:
        with pytest.raises(TypeError):
            cls(*args)


@pytest.mark.parametrize("name", ["VmCursor", "VmItem", "Ring"])
def test_final_classes_have_no_subclasses(name):
    with pytest.raises(TypeError, match="acceptable base"):
        type("Sub", (getattr(pf, name),), {})


def test_a_space_is_initialised_once(mem, vm):
    with vm.cursor() as cursor:
        cursor.map(mem.alloc_frame())
    with unchanged(mem, vm):
        for args in [(mem, PAGE), (mem, 64 * PAGE), (mem, 0), (None, PAGE)]:
            with pytest.raises(TypeError):
                vm.__init__(*args)
    closed = pf.VmSpace(mem, PAGE)
    closed.close()
    with pytest.raises(TypeError, match="already"):
        closed.__init__(mem, PAGE)


def test_a_size_that_initialises_the_space_meanwhile_makes_one_space(mem):
    before = pf.map_budget()
    space = pf.VmSpace.__new__(pf.VmSpace)

    class Size(int):
        def __mod__(self, other):
            if space.closed:
                space.__init__(mem, 2 * PAGE)
            return 0

    try:
        space.__init__(mem, Size(PAGE))
    except TypeError:
        assert space.size == 2 * PAGE
    assert pf.map_budget()[0] == before[0] + 1
    space.close()
    assert pf.map_budget() == before


def test_a_subclass_may_forget_to_initialise_compare_as_it_likes_and_have_attributes(mem):
    class Lazy(pf.VmSpace):
        def __init__(self):
            self.later = 1

    with pytest.raises(pf.SpaceClosedError, match="never initialised"):
        Lazy().cursor()
    assert Lazy().closed
    Lazy().close()

    class Equal(pf.VmSpace):
        def __eq__(self, other):
            return True

        def __hash__(self):
            return 7

    class Unhashable(pf.VmSpace):
        __hash__ = None

    for cls in (Equal, Unhashable):
        with cls(mem, PAGE) as one, cls(mem, PAGE) as two:
            one.note = two
            for space in (one, two):
                with space.cursor() as cursor:
                    cursor.map(mem.alloc_frame())
            assert type(one.fork()) is pf.VmSpace
    gc.collect()


def test_spaces_that_compare_equal_are_both_rebuilt_in_a_forked_child():
    survives("""
        class Equal(pf.VmSpace):
            def __eq__(self, other): return True
            def __hash__(self): return 7
        spaces = [Equal(mem, PAGE), Equal(mem, PAGE)]
        for space in spaces:
            with space.cursor() as cursor:
                cursor.map(mem.alloc_frame())
        pid = os.fork()
        if pid == 0:
            for space in spaces:
                ctypes.memset(space.base, 1, 1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert [bytes(space.view()[:1]) for space in spaces] == [bytes(1)] * 2
    """)


def test_nothing_of_a_space_is_copied_or_pickled(mem, vm):
    with vm.cursor() as cursor:
        cursor.map(mem.alloc_frame())
        cursor.jump(0)
        mapping, ring = mem.map(mem.alloc_frame()), mem.ring(PAGE)
        for thing in (vm, cursor, cursor.query(), mapping, ring, vm.view(0, PAGE), memoryview(ring)):
            with unchanged(mem, vm):
                for use in (copy.copy, copy.deepcopy, pickle.dumps):
                    with pytest.raises(TypeError):
                        use(thing)
            del thing
        mapping.drop()
        ring.drop()
    gc.collect()


def test_integers_that_compute_as_they_like_are_taken_by_their_value(mem, vm):
    with vm.cursor(Lies(0), Lies(4 * PAGE)) as cursor:
        assert cursor.range == range(4 * PAGE)
        cursor.map(mem.alloc_frames(4))
        cursor.jump(Lies(PAGE))
        assert cursor.virt_addr == PAGE
        for use in (cursor.unmap, cursor.find_next, lambda size: cursor.protect(size, READ_ONLY)):
            with unchanged(mem, vm, cursors=[cursor]), pytest.raises(pf.OutOfBoundError):
                use(Lies(1 << 60))
        with unchanged(mem, vm, cursors=[cursor]), pytest.raises(pf.OutOfBoundError):
            cursor.jump(Lies(1 << 60))
        assert cursor.unmap(Lies(PAGE)) == 1
    with unchanged(mem, vm), pytest.raises(pf.OutOfBoundError):
        vm.array(Lies(0), Lies(1 << 30), "u1")


# -- user code in the middle -------------------------------------------------------------------


def test_a_shape_that_drops_the_mapping_is_refused():
    survives("""
        class Drops:
            def __init__(self, mapping, value):
                self.mapping, self.value = mapping, value
            def __index__(self):
                self.mapping.drop()
                return self.value

        for order in "CF":
            for dtype in ("u1", "V0"):
                for value in (8, 0):
                    for make in (lambda: mem.map(mem.alloc_frames(4)), lambda: mem.ring(PAGE)):
                        mapping = make()
                        drops = Drops(mapping, value)
                        refused(lambda: mapping.array(drops, dtype, order=order), pf.MovedError)
                        mapping = make()
                        refused(lambda: mapping.array((Drops(mapping, value), 1), dtype), pf.MovedError)
        assert mem.used_frames == 0
    """)


USES = [
    "vm.array(0, Evil(8))",
    "vm.array(Evil(0), 8)",
    "vm.view(Evil(0), PAGE)",
    "vm.view(0, Evil(PAGE))",
    "vm.cursor(0, Evil(PAGE))",
    "vm.make_writable(0, Evil(PAGE))",
    "vm.make_writable(meta=Evil(pf.UntypedFrameMeta()).__index__)",
    "cursor.jump(Evil(0))",
    "cursor.unmap(Evil(PAGE))",
    "cursor.protect(Evil(PAGE), pf.PageProperty())",
    "cursor.find_next(Evil(PAGE))",
    "mapping.array(Evil(8))",
    "mapping.append(frames())",
    "mem.map(frames())",
    "ring.window(Evil(0))",
    "ring.window(0, Evil(8))",
]


@pytest.mark.parametrize(
    "deed",
    ["vm.close()", "cursor.close()", "cursor.unmap(4 * PAGE)", "mapping.drop(); ring.drop()", "everything()"],
)
def test_arguments_that_close_what_is_used_leave_no_dangling_pages(deed):
    program = """
        def use(what, deed):
            global cursor, mapping, ring, vm
            print(what, deed, flush=True)
            vm = pf.VmSpace(mem, 64 * PAGE)
            with vm.cursor(0, 8 * PAGE) as cursor:
                cursor.map(mem.alloc_frames(4))
            snapshot = vm.fork()
            cursor = vm.cursor(4 * PAGE, 8 * PAGE) if "vm." in what else vm.cursor()
            mapping = mem.map(mem.alloc_frames(3))
            ring = mem.ring(2 * PAGE)

            def everything():
                for end in (mapping.drop, ring.drop, cursor.close, vm.close, snapshot.close):
                    attempt(end)

            def attempt(action):
                try:
                    return action()
                except (pf.PageFrameError, ValueError):
                    return None

            def do():
                attempt(lambda: exec(deed, globals(), {"everything": everything}))

            class Evil:
                def __init__(self, value):
                    self.value = value
                def __index__(self, paddr=None):
                    do()
                    return self.value

            def frames():
                yield mem.alloc_frame()
                do()

            result = attempt(lambda: eval(what, globals(), {"Evil": Evil, "frames": frames}))
            if isinstance(result, (memoryview, np.ndarray)):
                assert not any(bytes(result[:1]))
                if isinstance(result, np.ndarray) and result.flags.writeable:
                    result[:] = 1
                elif isinstance(result, memoryview) and not result.readonly:
                    result[:1] = b"x"
            if isinstance(result, pf.Mapping):
                result.drop()
            del result
            everything()
            del cursor, mapping, ring, vm, snapshot, everything
            gc.collect()
            assert mem.used_frames == 0, mem.stats()
        vm.close()
    """
    survives(textwrap.dedent(program) + f"for what in {USES!r}:\n    use(what, {deed!r})\n")


def test_a_query_during_which_the_collector_unmaps_the_page_finds_nothing_or_holds_it(mem, vm):
    """Where an allocation may run the collector, that may do anything."""
    for action in ("unmap", "close cursor", "close space"):
        for _ in range(10):
            space = pf.VmSpace(mem, 4 * PAGE)
            cursor = space.cursor()
            cursor.map(mem.alloc_frame())
            cursor.jump(0)
            others = []

            def act(cursor=cursor, space=space, others=others, action=action):
                if action == "unmap":
                    cursor.unmap(PAGE)
                    cursor.jump(0)
                elif action == "close cursor":
                    cursor.close()
                else:
                    space.close()
                others.append(mem.alloc_frame(Raw(number=9)))

            with collecting(once(act)):
                try:
                    item = cursor.query()
                except pf.SpaceClosedError:
                    item = None
            if item is not None:
                assert item.frame.reference_count >= 1
                assert type(item.frame.meta) is pf.UntypedFrameMeta
                assert all(other.start_paddr != item.frame.start_paddr for other in others)
                item.frame.drop()
            for other in others:
                assert other.reference_count == 1
                other.drop()
            cursor.close()
            space.close()
            assert mem.used_frames == 0


@pytest.mark.parametrize("use", ["map", "append", "array", "view", "frames", "fork", "make_writable", "ring"])
def test_the_collector_may_drop_and_close_what_is_used(mem, use):
    for _ in range(10):
        use_while_collecting(mem, use)
        gc.collect()
        assert mem.used_frames == 0, mem.stats()


def use_while_collecting(mem, use):
    """Use a space or a mapping while a collection drops and closes everything."""
    space = pf.VmSpace(mem, 8 * PAGE)
    with space.cursor() as first:
        first.map(mem.alloc_frames(2))
    mapping = mem.map(mem.alloc_frames(2))
    frames = mem.alloc_frames(2)
    cursor = space.cursor(4 * PAGE) if use in ("map", "array", "view") else None
    uses = {
        "map": lambda: cursor.map(frames),
        "append": lambda: mapping.append(frames),
        "array": lambda: space.array(0, 8),
        "view": lambda: space.view(0, PAGE),
        "frames": lambda: mapping.frames,
        "fork": space.fork,
        "make_writable": space.make_writable,
        "ring": lambda: mem.ring(PAGE),
    }

    def end_all():
        for end in (frames.drop, mapping.drop, space.close):
            with suppress(pf.MovedError):
                end()

    result = None
    with collecting(once(end_all)), suppress(pf.PageFrameError):
        result = uses[use]()
    if isinstance(result, memoryview | np.ndarray):
        assert not any(bytes(result[:1]))
    if isinstance(result, pf.FrameVec):
        assert (result.reference_counts >= 1).all()
    del result
    end_all()


@pytest.mark.parametrize("moment", ["on_alloc", "on_dealloc"])
@pytest.mark.parametrize("use", ["map", "unmap", "protect", "fork", "make_writable", "append"])
@pytest.mark.parametrize(
    "deed", ["close", "jump", "map here", "unmap", "drop frames", "append", "fork", "close cursor"]
)
def test_an_allocator_may_use_the_same_space(own, moment, use, deed):
    mem, allocator = own
    space = pf.VmSpace(mem, "4 MiB")
    segment = mem.alloc_segment(512, align=512 * PAGE)
    with space.cursor() as cursor:
        cursor.map(segment, READ_ONLY)
    mapping = mem.map(mem.alloc_frame(), reserve="4 MiB")
    held = space.cursor(0, 1024 * PAGE) if use in ("map", "unmap", "protect") else None
    snapshot = None if held else space.fork()
    frames = mem.alloc_frames(3)
    spare = mem.alloc_frames(2)
    found = []

    def act():
        if deed == "close":
            space.close()
            mapping.drop()
        elif deed == "jump" and held:
            held.jump(700 * PAGE)
        elif deed == "map here":
            if held:
                held.jump(600 * PAGE)
                held.map(spare)
                held.jump(600 * PAGE)
            else:
                with space.cursor() as cursor:
                    cursor.jump(600 * PAGE)
                    cursor.map(spare)
        elif deed == "unmap":
            cursor = held or space.cursor()
            cursor.jump(0)
            cursor.unmap(100 * PAGE)
            cursor.jump(0)
        elif deed == "drop frames":
            frames.drop()
        elif deed == "append":
            mapping.append(spare)
        elif deed == "fork":
            found.append(space.fork())
        elif deed == "close cursor" and held:
            held.close()

    setattr(allocator, moment, act)
    try:
        if use == "map":
            held.jump(600 * PAGE)
            held.map(frames)
        elif use == "unmap":
            held.jump(5 * PAGE)
            assert held.unmap(PAGE) in (0, 1)
        elif use == "protect":
            held.jump(5 * PAGE)
            assert held.protect(PAGE, pf.PageProperty()) in (0, 1)
        elif use == "fork":
            found.append(space.fork())
        elif use == "make_writable":
            assert space.make_writable(5 * PAGE, 6 * PAGE) in (0, 1)
        else:
            mapping.append(frames)
    except (pf.PageFrameError, MemoryError):
        pass
    allocator.on_alloc = allocator.on_dealloc = None
    if held:
        held.close()
    for each in (space, snapshot, *found):
        if each is not None and not each.closed:
            assert_true_to_kernel(each)
            each.close()
    for handle in (mapping, frames, spare):
        try:
            handle.drop()
        except pf.MovedError:
            continue
    gc.collect()
    assert mem.used_frames == 0, mem.stats()


def test_frames_that_an_allocator_appends_meanwhile_come_first(own):
    mem, allocator = own
    frames = [mem.alloc_frames(n) for n in (500, 300, 2)]
    paddrs = [list(vec.paddrs) for vec in frames]
    mapping = mem.map(frames[0], reserve="4 MiB")
    allocator.on_alloc = once(lambda: mapping.append(frames[2]))
    mapping.append(frames[1])  # takes another node
    assert list(mapping.frames.paddrs) == paddrs[0] + paddrs[2] + paddrs[1]
    mapping.drop()


def test_threads_that_map_first_at_once_open_the_file_of_a_shared_arena_once(monkeypatch):
    """The first one comes while the second is opening it."""
    opened = backing.open_again

    def descriptors():
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def open_while_another_thread_does(fd):
        monkeypatch.setattr(backing, "open_again", opened)
        pf.VmSpace(mem, PAGE).close()
        return opened(fd)

    with pf.PhysicalMemory.create("1 MiB") as mem:
        before = descriptors()
        monkeypatch.setattr(backing, "open_again", open_while_another_thread_does)
        with mem.map(mem.alloc_frame()) as mapping:
            assert descriptors() == before + 1
            assert not any(memoryview(mapping))


def test_nobody_takes_a_reference_to_a_node_that_is_about_to_be_used(own):
    """Nodes are had first; then the metadata of copies is asked for, which runs the user's code."""
    mem, allocator = own
    with pf.VmSpace(mem, "4 MiB") as space:
        segment = mem.alloc_segment(512, align=512 * PAGE)
        first, second = segment.slice(5 * PAGE, 6 * PAGE), segment.slice(6 * PAGE, 7 * PAGE)
        with space.cursor() as cursor:
            cursor.map(segment, READ_ONLY)
        second.drop()
        taken, tried = [], []

        def grab():
            counts = mem.slots["count"]
            nodes = np.flatnonzero(mem.slots["type"] == type_of_nodes) * PAGE
            for paddr in nodes.tolist():
                if counts[paddr // PAGE] == pf.REF_COUNT_UNUSED:
                    continue
                tried.append(paddr)
                try:
                    taken.append(pf.Frame.from_in_use(mem, paddr))
                except pf.GetFrameError:
                    continue

        type_of_nodes = next(i for i, cls in mem.types.items() if cls is pf.PageTableMeta)
        asked = []

        def meta(paddr):
            asked.append(paddr)
            if len(asked) == 1:  # the node comes next: by then one more frame is to be copied
                allocator.on_alloc = lambda: taken.append(pf.Frame.from_in_use(mem, first.start_paddr + PAGE))
            else:
                grab()
            return Raw()

        assert space.make_writable(5 * PAGE, 7 * PAGE, force=True, meta=meta) == 2
        assert len(asked) == 3
        assert len(tried) > 3
        assert [type(frame.meta) for frame in taken] == [pf.UntypedFrameMeta]
        assert_true_to_kernel(space)
        for frame in taken:
            frame.drop()
        first.drop()


@pytest.mark.parametrize("deed", ["map", "unmap", "close", "fork"])
def test_on_drop_may_use_the_space_that_its_frame_leaves(mem, deed):
    space = pf.VmSpace(mem, 8 * PAGE)
    cursor = space.cursor()
    seen = []

    class Last(pf.UntypedFrameMeta):
        number: pf.u64

        def on_drop(self, reader):
            seen.append(self.number)
            if len(seen) > 1:
                return
            if deed == "map":
                cursor.jump(0)
                cursor.map(mem.alloc_frame())
            elif deed == "unmap":
                cursor.jump(4 * PAGE)
                cursor.unmap(PAGE)
            elif deed == "close":
                space.close()
            else:
                cursor.close()
                space.fork().close()

    for va in (0, PAGE, 4 * PAGE):
        cursor.jump(va)
        cursor.map(mem.alloc_frame(Last(number=va)))
    cursor.jump(0)
    assert cursor.unmap(2 * PAGE) == 2
    if deed == "map":
        assert cursor.virt_addr == PAGE
    assert seen[:1] == [0]
    assert sorted(seen) == ([0, PAGE] if deed in ("map", "fork") else [0, PAGE, 4 * PAGE])
    cursor.close()
    space.close()
    assert sorted(seen) == [0, PAGE, 4 * PAGE]
    assert mem.used_frames == 0, deed


def test_on_drop_runs_at_the_end_of_a_space_and_may_not_bring_it_back(mem):
    space = pf.VmSpace(mem, 8 * PAGE)
    seen = []

    class Last(pf.UntypedFrameMeta):
        number: pf.u64

        def on_drop(self, reader):
            seen.append(self.number)
            space.close()
            try:
                space.cursor()
            except pf.SpaceClosedError:
                seen.append("closed")

    with space.cursor() as cursor:
        cursor.map(mem.alloc_frames(2, Last(number=1)))
    space.close()
    assert seen == [1, "closed"] * 2
    assert mem.used_frames == 0


def test_a_weakref_to_a_space_dies_before_its_frames(mem):
    space = pf.VmSpace(mem, PAGE)
    with space.cursor() as cursor:
        cursor.map(mem.alloc_frame())
    seen = []
    ref = weakref.ref(space, lambda ref: seen.append((ref(), mem.used_frames)))
    del space, cursor
    gc.collect()
    assert seen == [(None, 5)]
    assert ref() is None
    assert mem.used_frames == 0


# -- any order of ends -------------------------------------------------------------------------


def test_things_end_in_any_order():
    survives("""
        import itertools
        def make():
            global mem
            mem = pf.PhysicalMemory(2**20)
            vm = pf.VmSpace(mem, 8 * PAGE)
            cursor = vm.cursor()
            cursor.map(mem.alloc_frames(2))
            cursor.jump(0)
            return {
                "item": cursor.query(), "view": vm.view(0, PAGE), "array": vm.array(PAGE, 512),
                "cursor": cursor, "vm": vm, "mapping": mem.map(mem.alloc_frame()),
            }
        for order in itertools.permutations(make()):
            things = make()
            for name in order:
                thing = things.pop(name)
                if name == "item": thing.frame.drop()
                if name == "cursor": thing.close()
                if name == "vm": thing.close()
                if name == "mapping": thing.drop()
                if name == "view": thing.release()
                del thing
                for other, left in things.items():
                    if other in ("view", "array"):
                        assert left[0] == 0
                    repr(left)
                    del left
            assert mem.used_frames == 0, (order, mem.stats())
            mem.close()
    """)


@pytest.mark.parametrize("arena", ["pf.PhysicalMemory(2**20)", "pf.PhysicalMemory.create(2**20)"])
def test_the_interpreter_exits_with_everything_alive(arena):
    survives(f"""
        import builtins, atexit
        class Last(pf.UntypedFrameMeta):
            def on_drop(self, reader): pass
        mem = {arena}
        vm = pf.VmSpace(mem, 8 * PAGE)
        cursor = vm.cursor()
        cursor.map(mem.alloc_frames(2, Last))
        cursor.jump(0)
        kept = [cursor.query(), vm.view(0, PAGE), vm.array(PAGE, 512), mem.map(mem.alloc_frames(3)),
                mem.ring(PAGE), mem.ring(PAGE).window(3), mem.map(mem.alloc_frame()).array()]
        cycle = [kept, cursor]
        cycle.append(cycle)
        builtins.keep_me = kept
        threading.current_thread().keep = cycle
        def late():
            vm.view(0, PAGE)
            cursor.close()
        atexit.register(late)
        class AtEnd:
            def __del__(self, vm=vm, kept=kept): vm.close()
        builtins.at_end = AtEnd()
    """)


def test_the_interpreter_exits_while_a_thread_waits_for_a_range():
    survives("""
        cursor = vm.cursor()
        thread = threading.Thread(target=vm.cursor, daemon=True)
        thread.start()
        thread.join(0.1)
    """)


def test_cycles_through_a_space_are_collected(mem):
    class Space(pf.VmSpace):
        pass

    before = pf.map_budget()
    space = Space(mem, 8 * PAGE)
    cursor = space.cursor()
    cursor.map(mem.alloc_frames(2))
    cursor.jump(0)
    space.things = [cursor, cursor.query(), space]
    gone = weakref.ref(space)
    del space, cursor
    gc.collect()
    assert gone() is None
    assert mem.used_frames == 0
    assert pf.map_budget() == before


# -- threads -----------------------------------------------------------------------------------


def test_closing_beside_threads_that_map_leaves_nothing():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            mem = pf.PhysicalMemory("1 MiB")
            space = pf.VmSpace(mem, 64 * PAGE)
            failed = []

            def work(number, mem=mem, space=space, failed=failed):
                try:
                    while True:
                        with space.cursor(number * 8 * PAGE, (number + 1) * 8 * PAGE) as cursor:
                            cursor.map(mem.alloc_frames(3))
                            cursor.jump(number * 8 * PAGE)
                            cursor.query().frame.drop()
                            cursor.protect(8 * PAGE, READ_ONLY)
                            cursor.jump(number * 8 * PAGE)
                            assert cursor.unmap(8 * PAGE) == 3
                except pf.SpaceClosedError:
                    return
                except BaseException as error:
                    failed.append(error)

            threads = [threading.Thread(target=work, args=[i]) for i in range(3)]
            for thread in threads:
                thread.start()
            threads[0].join(0.005)
            space.close()
            for thread in threads:
                thread.join(30)
            assert failed == []
            gc.collect()
            assert mem.used_frames == 0, mem.stats()
            mem.close()
    finally:
        sys.setswitchinterval(interval)


def test_a_range_that_many_threads_want_has_one_owner_at_a_time(mem, vm):
    inside, most, failed = [], [], []

    def work(number):
        try:
            for _ in range(30):
                with vm.cursor(number % 3 * PAGE, (number % 3 + 2) * PAGE) as cursor:
                    inside.append(cursor.range)
                    overlaps = [
                        r for r in inside if r.start < cursor.range.stop and cursor.range.start < r.stop
                    ]
                    most.append(len(overlaps))
                    cursor.map(mem.alloc_frame())
                    cursor.jump(cursor.range.start)
                    assert cursor.unmap(PAGE) == 1
                    inside.remove(cursor.range)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=[i]) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
    assert len(most) == 150
    assert max(most) == 1


def test_a_cursor_may_be_closed_by_another_thread(vm):
    cursor = vm.cursor()
    thread = threading.Thread(target=cursor.close)
    thread.start()
    thread.join(30)
    vm.cursor().close()


def test_a_thread_that_waits_gets_the_range_of_a_cursor_that_is_forgotten(vm):
    cursors = [vm.cursor()]
    had = []

    def work():
        with vm.cursor(timeout=30) as cursor:
            had.append(cursor.range)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.05)
    assert not had
    cursors.clear()
    wait_until(lambda: had)
    thread.join(30)


@pytest.mark.parametrize("timeout", ["1", b"", [1], object()])
def test_a_timeout_is_a_number(mem, vm, timeout):
    with unchanged(mem, vm), pytest.raises(TypeError):
        vm.cursor(timeout=timeout)
    vm.cursor().close()


@pytest.mark.parametrize("timeout", [-5, -1, float("nan"), float("-inf")])
def test_a_timeout_that_is_over_waits_for_nobody(mem, vm, timeout):
    errors = []

    def work():
        try:
            vm.cursor(timeout=timeout)
        except pf.RangeLockedError as error:
            errors.append(error)

    with vm.cursor():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        assert len(errors) == 1


def test_a_timeout_may_be_for_ever(vm):
    for timeout in (float("inf"), 1e300, None):
        with vm.cursor(timeout=timeout) as cursor:
            assert cursor.virt_addr == 0
            had = []
            thread = threading.Thread(
                target=lambda timeout=timeout, had=had: had.append(vm.cursor(timeout=timeout).close())
            )
            thread.start()
            thread.join(0.02)
            assert not had
        thread.join(30)
        assert had == [None]
