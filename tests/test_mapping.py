# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Mappings, rings and arrays over scattered frames: what they show, hold, refuse and send."""

import gc
import pickle
import weakref

import numpy as np
import pytest

import pageframe as pf
from processes import run_program, shared_arena
from types_for_tests import Dropped, Node, Raw
from vm_state import NOTHING, PAGE, READ_ONLY, addresses, unchanged


def scatter(mem, count, meta=None):
    """Return a vector of frames no two of which are neighbours."""
    frames = mem.alloc_frames(2 * count, meta)
    order = np.argsort(frames.paddrs)
    chosen = pf.FrameVec.from_frames([frames[int(i)] for i in order[::2]])
    assert (np.diff(chosen.paddrs) > mem.page_size).all()
    frames.drop()
    return chosen


def exhaust_runs(mem):
    """Leave free only frames no two of which are neighbours; return what holds the others."""
    frames = mem.alloc_frames(mem.free_frames, zeroed=False)
    order = np.argsort(frames.paddrs)
    kept = pf.FrameVec.from_frames([frames[int(i)] for i in order[::2]])
    frames.drop()
    assert mem.stats().longest_free_run == 1
    return kept


@pytest.fixture
def holed(mem):
    """Return the arena with only single frames free."""
    kept = exhaust_runs(mem)
    yield mem
    gc.collect()
    kept.drop()


# -- mappings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_scattered_frames_are_one_buffer_in_the_order_given(page_size):
    with pf.PhysicalMemory(256 * page_size, page_size=page_size) as mem:
        frames = scatter(mem, 6)
        for i, frame in enumerate(frames):
            memoryview(frame)[:] = bytes([i]) * page_size
            frame.drop()
        kept = frames.clone()
        with mem.map(frames) as mapping:
            assert mapping.size == 6 * page_size
            assert mapping.mem is mem
            assert mapping.base % page_size == 0
            assert mapping.capacity == mem.size
            assert mapping.prop == pf.PageProperty()
            assert mapping.meta_type is pf.UntypedFrameMeta
            assert mapping.kernel_mappings == 7
            assert bytes(mapping) == b"".join(bytes([i]) * page_size for i in range(6))
            with pytest.raises(pf.MovedError):
                frames.clone()
            memoryview(mapping)[page_size - 1 : page_size + 1] = b"xy"
            assert bytes(memoryview(kept[0])[-1:]) == b"x"
            assert bytes(memoryview(kept[1])[:1]) == b"y"
            assert kept.reference_counts.tolist() == [2] * 6
        assert kept.reference_counts.tolist() == [1] * 6
        kept.drop()
        gc.collect()


def test_any_handles_and_any_iterable_of_them_are_mapped(mem):
    def handles():
        yield mem.alloc_frame()
        yield mem.alloc_segment(3)
        yield mem.alloc_frames(2)

    for source, count in [
        (mem.alloc_frame(), 1),
        (mem.alloc_segment(3), 3),
        (mem.alloc_frames(2), 2),
        (handles(), 6),
        (list(handles()), 6),
        (tuple(handles()), 6),
        (mem.alloc_segment(4).split(PAGE), 4),
    ]:
        with mem.map(source) as mapping:
            assert mapping.size == count * PAGE
    assert mem.used_frames == 0


def test_the_frames_of_a_mapping_are_had_with_references_of_their_own(mem):
    frames = scatter(mem, 3, Raw(number=4))
    paddrs = frames.paddrs.tolist()
    mapping = mem.map(frames)
    again = mapping.frames
    assert again.paddrs.tolist() == paddrs
    assert again.meta_type is Raw
    assert again.reference_counts.tolist() == [2] * 3
    mapping.drop()
    assert again.reference_counts.tolist() == [1] * 3
    again.drop()
    with mem.map([mem.alloc_frame(), mem.alloc_frame(Raw())]) as mapping:
        with unchanged(mem), pytest.raises(pf.FrameTypeError, match="one metadata type"):
            _ = mapping.frames
        assert len(bytes(mapping)) == 2 * PAGE


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ([], ValueError),
        ((), ValueError),
        (None, TypeError),
        (5, TypeError),
        ("", ValueError),
        ("frames", pf.FrameTypeError),
        (b"x", pf.FrameTypeError),
        ([None], pf.FrameTypeError),
        ({}, ValueError),
    ],
)
def test_what_are_no_frames_is_not_mapped(mem, frames, error):
    with mem.map(mem.alloc_frame()) as mapping, unchanged(mem):
        with pytest.raises(error):
            mem.map(frames)
        with pytest.raises(error):
            mapping.append(frames)
        assert mapping.size == PAGE


def test_a_handle_given_twice_is_refused(mem):
    frame = mem.alloc_frame()
    with mem.map(mem.alloc_frame()) as mapping, unchanged(mem):
        with pytest.raises(ValueError, match="given twice"):
            mem.map([frame, frame])
        with pytest.raises(ValueError, match="given twice"):
            mapping.append([frame, frame])
    assert frame.reference_count == 1
    with mem.map([frame.clone(), frame]) as mapping:
        memoryview(mapping)[:1] = b"x"
        assert bytes(memoryview(mapping)[PAGE : PAGE + 1]) == b"x"


def test_one_bad_handle_leaves_the_others_as_they_were(mem):
    good = [mem.alloc_frame(), mem.alloc_segment(2), mem.alloc_frames(2)]
    dropped, viewed, typed = mem.alloc_frame(), mem.alloc_frame(), mem.alloc_frame(Node())
    dropped.drop()
    view = memoryview(viewed)
    with mem.map(mem.alloc_frame()) as mapping:
        for bad, error in [
            (dropped, pf.MovedError),
            (viewed, BufferError),
            (typed, pf.FrameTypeError),
            (mapping, pf.FrameTypeError),
        ]:
            for place in range(4):
                handles = [*good[:place], bad, *good[place:]]
                with unchanged(mem):
                    with pytest.raises(error):
                        mem.map(handles)
                    with pytest.raises(error):
                        mapping.append(handles)
                    with pytest.raises(error):
                        mapping.append(handle for handle in handles)
        assert mapping.size == PAGE
        mapping.append(good)
        assert mapping.size == 6 * PAGE
    view.release()
    viewed.drop()
    typed.drop()


@pytest.mark.parametrize("reserve", [0, -PAGE, 1, PAGE + 1, 2**70 + 1, "1"])
def test_addresses_are_reserved_by_whole_pages(mem, reserve):
    frame = mem.alloc_frame()
    with unchanged(mem), pytest.raises(ValueError, match=r"reserve|size"):
        mem.map(frame, reserve=reserve)
    frame.drop()


@pytest.mark.parametrize("reserve", [2**60, 2**64, 2**100])
def test_more_addresses_than_there_are_can_not_be_reserved(mem, reserve):
    frame = mem.alloc_frame()
    with unchanged(mem), pytest.raises(ValueError, match=f"pages at the most, not {reserve // PAGE}"):
        mem.map(frame, reserve=reserve)
    frame.drop()


def test_frames_must_fit_into_what_is_reserved(mem):
    frames = mem.alloc_frames(3)
    with unchanged(mem), pytest.raises(pf.OutOfBoundError):
        mem.map(frames, reserve=2 * PAGE)
    with mem.map(frames, reserve="16 KiB") as mapping:
        assert mapping.capacity == 4 * PAGE
        more = mem.alloc_frames(2)
        with unchanged(mem), pytest.raises(pf.OutOfBoundError):
            mapping.append(more)
        assert mapping.size == 3 * PAGE
        mapping.append(more[0])
        assert mapping.size == mapping.capacity
        with unchanged(mem), pytest.raises(pf.OutOfBoundError):
            mapping.append(more[1:])
        more.drop()


@pytest.mark.parametrize("prop", PROPS := [READ_ONLY, pf.PageProperty(write=False, execute=True)], ids=str)
def test_a_mapping_that_is_read_only_gives_read_only_buffers(mem, prop):
    with mem.map(mem.alloc_frames(2), prop) as mapping:
        mapping.append(mem.alloc_frame())
        assert mapping.prop == prop
        assert memoryview(mapping).readonly
        array = mapping.array()
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(BufferError):
            pf.VmWriter(mapping)
        assert pf.VmReader(mapping).remain == 3 * PAGE
        with pytest.raises((BufferError, ValueError)):
            np.from_dlpack(array)[0] = 1
        assert {flags for _, _, flags, _ in addresses(mapping.base, 3 * PAGE)} == {
            "r-xs" if prop.execute else "r--s"
        }
        del array
        gc.collect()


def test_a_mapping_is_to_be_read(mem):
    frame = mem.alloc_frame()
    with unchanged(mem), pytest.raises(ValueError, match="to be read"):
        mem.map(frame, NOTHING)
    frame.drop()


def test_append_leaves_what_was_there_at_its_addresses_and_views_as_they_were(mem):
    mapping = mem.map(mem.alloc_frame())
    view, array = memoryview(mapping), mapping.array(dtype="u4")
    base = mapping.base
    for i in range(20):
        mapping.append(mem.alloc_frames(3))
        array[i] = i
        assert mapping.base == base
        assert mapping.size == (4 + 3 * i) * PAGE
    assert (len(view), array.size) == (PAGE, PAGE // 4)
    assert memoryview(mapping).nbytes == 61 * PAGE
    assert mapping.array(61 * PAGE).ctypes.data == array.ctypes.data == base
    assert mapping.array(20, "u4").tolist() == list(range(20))
    assert view[4] == 1
    del array
    view.release()
    mapping.drop()
    gc.collect()


def test_without_frames_for_the_table_a_mapping_does_not_grow(mem):
    mapping = mem.map(mem.alloc_frames(2), reserve="4 MiB")
    frames = [mem.alloc_frames(100), mem.alloc_frames(100)]
    for handle in frames:
        mapping.append(handle)
    frame = mem.alloc_frame()
    clones = [frame.clone() for _ in range(400)]
    taken = mem.alloc_frames(mem.free_frames)
    with unchanged(mem), pytest.raises(pf.OutOfFramesError):
        mapping.append(clones)
    assert mapping.size == 202 * PAGE
    assert all(clone.reference_count == 401 for clone in clones[:3])
    taken.drop()
    mapping.append(clones)
    assert mapping.size == 602 * PAGE
    mapping.drop()
    frame.drop()


def test_drop_with_live_views_takes_effect_with_the_last(mem):
    before = pf.map_budget()
    mapping = mem.map(scatter(mem, 2, Dropped(number=3)))
    Dropped.seen.clear()  # the frames between these
    view, array = memoryview(mapping), mapping.array()
    used = mem.used_frames
    mapping.drop()
    assert mem.used_frames == used
    array[0] = 5
    assert view[0] == 5
    view.release()
    assert mem.used_frames == used
    part = array[7:9]
    del array
    assert mem.used_frames == used
    assert Dropped.seen == []
    del part
    assert mem.used_frames == 0
    assert len(Dropped.seen) == 2
    assert pf.map_budget() == before


@pytest.mark.parametrize("viewed", [False, True])
def test_a_dropped_mapping_refuses_everything(mem, viewed):
    mapping = mem.map(mem.alloc_frame())
    view = memoryview(mapping) if viewed else None
    mapping.drop()
    frame = mem.alloc_frame()
    with unchanged(mem):
        for use in [
            lambda: mapping.size,
            lambda: mapping.base,
            lambda: mapping.capacity,
            lambda: mapping.prop,
            lambda: mapping.kernel_mappings,
            lambda: mapping.meta_type,
            lambda: mapping.frames,
            lambda: mapping.append(frame),
            lambda: mapping.array(),
            lambda: memoryview(mapping),
            lambda: pf.VmReader(mapping),
            lambda: mapping.drop(),
            lambda: mapping.__enter__(),
        ]:
            with pytest.raises(pf.MovedError):
                use()
    assert repr(mapping) == "<Mapping dropped>"
    mapping.__exit__(None, None, None)
    frame.drop()
    if view is not None:
        assert view[0] == 0
        view.release()


def test_a_with_block_drops_the_mapping_once(mem):
    with mem.map(mem.alloc_frame()) as mapping:
        assert repr(mapping) == f"<Mapping of 1 frames at {mapping.base:#x}: 2 kernel mappings>"
        mapping.drop()
    with pytest.raises(ZeroDivisionError), mem.map(mem.alloc_frame()) as mapping:
        1 / 0
    assert mem.used_frames == 0


def test_a_mapping_that_is_forgotten_gives_everything_back(mem):
    before = pf.map_budget()
    mapping = mem.map(mem.alloc_frames(3))
    array = mapping.array()
    gone = weakref.ref(array)
    del mapping
    gc.collect()
    assert mem.used_frames == 7
    array[0] = 1
    del array
    gc.collect()
    assert gone() is None
    assert mem.used_frames == 0
    assert pf.map_budget() == before


def test_a_mapping_keeps_its_arena_open():
    mem = pf.PhysicalMemory("1 MiB")
    mapping = mem.map(mem.alloc_frame())
    with pytest.raises(pf.ArenaInUseError):
        mem.close()
    mapping.drop()
    mem.close()
    with pf.PhysicalMemory("1 MiB") as other:
        frame = other.alloc_frame()
        with unchanged(other), pytest.raises(pf.ArenaClosedError):
            mem.map(frame)
        frame.drop()
    with pytest.raises(pf.ArenaClosedError):
        mem.ring(PAGE)


# -- arrays over mappings ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "shape"),
    [
        ({}, (4 * PAGE,)),
        ({"dtype": "f8"}, (2048,)),
        ({"dtype": "S3"}, (4 * PAGE // 3,)),
        ({"shape": 5}, (5,)),
        ({"shape": ()}, ()),
        ({"shape": (0,)}, (0,)),
        ({"shape": (3, 0, 5), "dtype": "f4"}, (3, 0, 5)),
        ({"shape": (2, 3), "dtype": [("a", "u1"), ("b", "f8")]}, (2, 3)),
        ({"shape": [4, 512], "dtype": float, "order": "F"}, (4, 512)),
        ({"shape": np.array([2, 2]), "dtype": "c16"}, (2, 2)),
        ({"shape": 0, "dtype": "V0"}, (0,)),
    ],
)
def test_an_array_has_the_shape_and_type_asked_for(mem, args, shape):
    with mem.map(scatter(mem, 4)) as mapping:
        array = mapping.array(**args)
        assert type(array) is pf.FrameArray
        assert array.shape == shape
        assert array.dtype == np.dtype(args.get("dtype", "u1"))
        assert array.flags.writeable
        if args.get("order") == "F":
            assert array.flags.f_contiguous
            array[...] = np.arange(2048.0).reshape(4, 512)
            assert (array == mapping.array(2048, float).reshape(512, 4).T).all()
        del array
        gc.collect()


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"shape": 4 * PAGE + 1}, pf.OutOfBoundError),
        ({"shape": (2**40, 2**40)}, (pf.OutOfBoundError, pf.OutOfFramesError)),
        ({"shape": 2**70}, (pf.OutOfBoundError, pf.OutOfFramesError)),
        ({"shape": (0, 2**70)}, (ValueError, OverflowError)),
        ({"shape": -1}, ValueError),
        ({"shape": (-1, -1)}, ValueError),
        ({"shape": (0, -1)}, ValueError),
        ({"shape": (1,) * 33}, ValueError),
        ({"shape": 1.5}, TypeError),
        ({"shape": "3"}, TypeError),
        ({"shape": (None,)}, TypeError),
        ({"dtype": object}, pf.FrameTypeError),
        ({"dtype": [("a", object)]}, pf.FrameTypeError),
        ({"dtype": "nonsense"}, TypeError),
        ({"order": "K"}, ValueError),
        ({"order": None}, ValueError),
    ],
)
def test_an_array_that_can_not_be_is_refused(mem, args, error):
    with mem.map(scatter(mem, 4)) as mapping:
        with unchanged(mem), pytest.raises(error):
            mapping.array(**args)
        mapping.append(mem.alloc_frame())
        assert mapping.array().size == 5 * PAGE


def test_buffers_of_all_kinds_show_the_same_bytes(mem):
    mapping = mem.map(scatter(mem, 2))
    np.frombuffer(mapping, "u4")[:] = np.arange(2048)
    assert np.asarray(memoryview(mapping).cast("I")).tolist() == list(range(2048))
    assert pf.VmReader(mapping).skip(PAGE - 4).read_val("<I") == 1023
    pf.VmWriter(mapping).skip(PAGE).write_val("<I", 77)
    dlpack = np.from_dlpack(mapping.array(dtype="u4"))
    assert dlpack[1024] == 77
    assert not mapping.array(dtype="u4").flags.owndata
    mapping.drop()
    dlpack[0] = 9
    assert dlpack[0] == 9
    del dlpack
    gc.collect()
    assert mem.used_frames == 0


def test_readonly_arrays_over_mappings_stay_read_only(mem):
    with mem.map(scatter(mem, 3)) as mapping:
        array = mapping.array(dtype="u2")
        for source in (array, array[PAGE // 2 - 1 :: 2], array[::-1], array[5:5]):
            fixed = pf.readonly(source)
            assert type(fixed) is pf.FrameArray
            assert (fixed == source).all()
            assert fixed.shape == source.shape
            with pytest.raises(ValueError, match="WRITEABLE"):
                fixed.flags.writeable = True
        array[PAGE // 2 + 1] = 8
        assert pf.readonly(array[PAGE // 2 :])[1] == 8
        del array, source, fixed
        gc.collect()


# -- arrays of an arena without runs -----------------------------------------------------------


def test_an_array_falls_back_to_scattered_frames(holed):
    mem = holed
    free = mem.free_frames
    array = mem.array((4, 1024), "f8", order="F")
    assert type(array) is pf.FrameArray
    assert array.flags.f_contiguous
    assert not array.any()
    assert free - mem.free_frames == 8 + 4
    array[...] = np.arange(4096.0).reshape(4, 1024)
    assert array.sum() == 4095 * 4096 / 2
    assert mem.asarray(array) is array
    copy = mem.asarray(array[:2])
    del array
    gc.collect()
    assert copy[1, 1023] == 2047
    del copy
    gc.collect()
    assert mem.free_frames == free


def test_frames_that_were_used_are_zeroed_for_an_array(mem):
    frames = mem.alloc_frames(mem.free_frames)
    for frame in frames:
        memoryview(frame)[:] = b"\xff" * PAGE
    frame.drop()
    frames.drop()
    gc.collect()
    kept = exhaust_runs(mem)
    assert mem.empty(4 * PAGE, "u1").all()
    assert not mem.zeros(4 * PAGE, "u1").any()
    gc.collect()
    kept.drop()


def test_an_array_of_an_arena_that_can_not_be_mapped_wants_a_run():
    with pf.PhysicalMemory("1 MiB", mappable=False) as mem:
        kept = exhaust_runs(mem)
        with unchanged(mem), pytest.raises(pf.OutOfFramesError, match="run"):
            mem.array(2 * PAGE, "u1")
        kept.drop()


def test_an_array_larger_than_what_is_free_is_refused(holed):
    mem = holed
    with unchanged(mem):
        for shape in ((mem.free_frames + 1) * PAGE, mem.free_frames * PAGE):  # the table takes some, too
            with pytest.raises(pf.OutOfFramesError):
                mem.array(shape, "u1")
        gc.collect()


@pytest.mark.parametrize("how", ["array", "map", "ring"])
def test_arrays_over_scattered_frames_are_pickled_by_handle(how):
    with shared_arena("1 MiB") as mem:
        kept = exhaust_runs(mem)
        if how == "array":
            array = mem.zeros((6, 1024))
        elif how == "map":
            array = mem.map(mem.alloc_frames(12)).array((6, 1024), float)
        else:
            array = mem.ring(6 * PAGE).array((6, 1024), float)
        array[:3] = np.arange(3072.0).reshape(3, 1024)
        for source in (array, array[1:3], array[:, ::7], array[::-1], array[0, :0], pf.readonly(array[2:])):
            sent = pickle.dumps(source)
            assert len(sent) < 1000
            loaded = pickle.loads(sent)
            assert type(loaded) is pf.FrameArray
            assert loaded.shape == source.shape
            assert loaded.dtype == source.dtype
            assert (loaded == source).all()
            assert loaded.flags.writeable == source.flags.writeable
            if loaded.size and loaded.flags.writeable:
                loaded.flat[0] = 1234.5
                assert source.flat[0] == 1234.5
            elif not loaded.flags.writeable:
                with pytest.raises(ValueError, match="WRITEABLE"):
                    loaded.flags.writeable = True
        del array, source, loaded
        gc.collect()
        mem.reap()
        kept.drop()


def test_an_array_over_scattered_frames_is_loaded_by_another_process(tmp_path):
    with shared_arena("1 MiB") as mem:
        kept = exhaust_runs(mem)
        array = mem.zeros(2048)
        array[:] = np.arange(2048)
        out = run_program(
            "import pickle, sys\n"
            "array = pickle.load(sys.stdin.buffer)\n"
            "array[1] = array.sum()\n"
            "print(type(array).__name__, array.flags.writeable)\n",
            input=pickle.dumps(array),
        )
        assert out == b"FrameArray True\n"
        assert array[1] == 2047 * 1024
        del array
        gc.collect()
        kept.drop()


def test_arrays_over_frames_of_two_types_are_not_pickled(mem):
    with shared_arena("1 MiB") as shared:
        mapping = shared.map([shared.alloc_frame(), shared.alloc_frame(Raw())])
        array = mapping.array()
        with unchanged(shared), pytest.raises(pf.FrameTypeError):
            pickle.dumps(array)
        assert pickle.loads(pickle.dumps(array[:10])).shape == (10,)
        del array
        mapping.drop()
        gc.collect()


# -- rings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [True, False])
def test_a_ring_shows_its_frames_twice(mem, runs):
    kept = None if runs else exhaust_runs(mem)
    ring = mem.ring(4 * PAGE)
    assert ring.size == 4 * PAGE
    assert len(memoryview(ring)) == 8 * PAGE
    assert bytes(ring) == bytes(8 * PAGE)
    view = memoryview(ring)
    view[4 * PAGE - 3 : 4 * PAGE + 3] = b"abcdef"
    assert bytes(view[:3]) == b"def"
    assert bytes(view[-3:]) == b"abc"
    assert bytes(ring.window(4 * PAGE - 3, 6)) == b"abcdef"
    frames = ring.frames
    assert len(frames) == 8
    assert frames.paddrs[:4].tolist() == frames.paddrs[4:].tolist()
    assert frames.reference_counts.tolist() == [4] * 8
    frames.drop()
    assert repr(ring).startswith("<Ring of 8 frames at ")
    assert ring.kernel_mappings == (2 if runs else 8)
    view.release()
    ring.drop()
    gc.collect()
    if kept:
        kept.drop()


def test_a_window_begins_anywhere_and_is_no_longer_than_the_ring(mem):
    with mem.ring(2 * PAGE) as ring:
        ring.array(2 * PAGE)[:] = np.arange(2 * PAGE) % 251
        whole = bytes(memoryview(ring)[: 2 * PAGE])
        for start in (0, 1, PAGE, 2 * PAGE - 1, 2 * PAGE, 5 * PAGE + 7, -1, -3 * PAGE, 2**70, -(2**70)):
            at = start % (2 * PAGE)
            assert bytes(ring.window(start)) == whole[at:] + whole[:at]
            assert bytes(ring.window(start, 3)) == (whole + whole)[at : at + 3]
            assert ring.window(start, 0).nbytes == 0
        with unchanged(mem):
            for length in (-1, 2 * PAGE + 1, 2**70, -(2**70)):
                with pytest.raises(pf.OutOfBoundError):
                    ring.window(0, length)
            for args in [("0",), (0, "1"), (0.0,), (0, 1.0), (None,), ()]:
                with pytest.raises(TypeError):
                    ring.window(*args)
        with pytest.raises(TypeError, match="can't grow"):
            ring.append(mem.alloc_frame())
        gc.collect()


@pytest.mark.parametrize("size", [0, -PAGE, 1, PAGE + 1, "1"])
def test_a_ring_has_whole_pages(mem, size):
    with unchanged(mem), pytest.raises(ValueError, match="size"):
        mem.ring(size)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((2**20 + PAGE,), pf.OutOfFramesError),
        ((2**64,), pf.OutOfFramesError),
        ((2**100,), pf.OutOfFramesError),
        ((PAGE, Node), pf.FrameTypeError),
        ((PAGE, Node()), pf.FrameTypeError),
        ((PAGE, "x"), TypeError),
        ((1.5,), TypeError),
        ((None,), TypeError),
    ],
)
def test_a_ring_that_can_not_be_is_refused(mem, args, error):
    with unchanged(mem):
        with pytest.raises(error):
            mem.ring(*args)
        gc.collect()


@pytest.mark.parametrize("free", [0, 1, 2, 4, 5])
def test_a_ring_without_frames_for_itself_and_its_table_is_refused(mem, free):
    taken = mem.alloc_frames(mem.free_frames - free)
    with unchanged(mem):
        with pytest.raises(pf.OutOfFramesError):
            mem.ring(2 * PAGE)
        gc.collect()
    taken.drop()


def test_a_ring_has_the_metadata_given(mem):
    with mem.ring(2 * PAGE, Raw(number=5)) as ring, ring.frames as frames:
        assert frames.meta["number"].tolist() == [5] * 4


def test_a_producer_and_a_consumer_never_wrap(mem):
    with mem.ring(PAGE) as ring:
        words = [bytes([65 + i % 26]) * (1 + i * 37 % 1000) for i in range(200)]
        at, out = 0, []
        for word in words:
            ring.window(at, len(word))[:] = word
            out.append(bytes(ring.window(at, len(word))))
            at += len(word)
        assert out == words
        gc.collect()
