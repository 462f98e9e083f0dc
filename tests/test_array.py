# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Arrays over frames: real NumPy arrays, which are pickled by handle."""

import copyreg
import gc
import io
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pageframe as pf
from processes import Forked, shared_arena
from types_for_tests import Node

PAGE = 4096
DTYPES = ("?", "u1", "<i2", ">i4", "<u8", "<f4", "<f8", "<c16", "S7", "<U5", "<M8[s]", "<m8[ms]", "V6")
RECORD = np.dtype([("id", "<u4"), ("name", "S5"), ("point", "<f4", (2,)), ("when", "<M8[D]")])


@pytest.fixture
def shared():
    """Return a shared arena without a name; at the end nothing may be held, and nobody else be there."""
    with shared_arena("2 MiB") as mem:
        yield mem


def numbered(mem, *shape, dtype=np.int64):
    array = mem.empty(shape, dtype)
    array[...] = np.arange(array.size).reshape(shape)
    return array


def send(array):
    return pickle.loads(pickle.dumps(array))


def same(left, right):
    """Equal in shape, type and elements, whatever these are."""
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


# -- they are arrays -------------------------------------------------------------------------------


def test_an_array_is_a_numpy_array_of_zeros_over_frames(shared):
    for array in (shared.array((3, 4)), shared.zeros((3, 4)), shared.array((3, 4), order="F")):
        assert isinstance(array, np.ndarray)
        assert type(array) is pf.FrameArray
        assert array.dtype == np.float64
        assert array.shape == (3, 4)
        assert not array.any()
        assert array.flags.writeable
        assert array.flags.aligned
        assert np.shares_memory(array, array.base)
    assert array.flags.f_contiguous
    assert shared.empty(5, "u1").shape == (5,)


def test_zeros_are_zero_even_where_others_wrote_and_empty_shows_what_they_left(shared):
    first = shared.zeros(shared.free_frames * PAGE, "u1")
    first[...] = 7
    frames = first.size // PAGE
    del first
    left = 0xAA if "poison" in shared.debug else 7
    assert (shared.empty(frames * PAGE, "u1") == left).all()
    assert not shared.zeros(frames * PAGE, "u1").any()


def test_an_array_holds_just_the_frames_that_its_bytes_need_and_as_long_as_a_view_lives(shared):
    for nbytes, frames in ((0, 1), (1, 1), (PAGE, 1), (PAGE + 1, 2), (10 * PAGE, 10)):
        array = shared.zeros(nbytes, "u1")
        assert shared.used_frames == frames
        part = array[:1]
        del array
        assert shared.used_frames == frames
        del part
        assert shared.used_frames == 0


def test_asarray_copies_once_and_not_at_all_what_lies_in_the_arena_already(shared):
    source = np.arange(12.0).reshape(3, 4)
    array = shared.asarray(source)
    assert type(array) is pf.FrameArray
    assert same(np.asarray(array), source)
    array += 1
    assert source[0, 0] == 0
    assert shared.asarray(array) is array
    assert shared.asarray(array[1:]).base is not None
    assert np.shares_memory(shared.asarray(array[1:]), array)
    assert shared.asarray(np.asfortranarray(source)).flags.f_contiguous
    assert shared.asarray([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    assert shared.asarray(5).shape == ()
    with shared_arena() as other:
        moved = other.asarray(array)
        assert not np.shares_memory(moved, array)
        assert same(moved, array)
        del moved


def test_what_is_computed_from_an_array_is_an_ordinary_array(shared):
    array = numbered(shared, 4, 5)
    for result in (array + 1, -array, np.sqrt(array), array @ array.T, array.sum(axis=0), array == 3):
        assert type(result) is np.ndarray
        assert not np.shares_memory(result, array)
    for scalar in (array.sum(), array.max(), array.mean(), np.add.reduce(array, axis=None), array[1, 2]):
        assert isinstance(scalar, np.generic)
        assert not isinstance(scalar, np.ndarray)
    used = shared.used_frames
    array += 1
    np.multiply(array, 2, out=array)
    array[array > 10] = 0
    array.sort(axis=0)
    assert type(array) is pf.FrameArray
    assert shared.used_frames == used


def test_arrays_of_objects_are_refused(shared):
    for dtype in (object, [("a", "O")]):
        with pytest.raises(pf.FrameTypeError):
            shared.array(3, dtype)
    with pytest.raises(pf.FrameTypeError):
        shared.asarray([None, "x"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (((-1,),), ValueError),
        (("x",), TypeError),
        ((2.5,), TypeError),
        (((1,) * 65,), ValueError),
        ((2**40,), pf.OutOfFramesError),
        (((2**62, 2**62),), pf.OutOfFramesError),
        ((10**30,), pf.OutOfFramesError),
    ],
)
def test_arrays_that_can_not_be_are_refused_and_take_nothing(shared, arguments, error):
    with pytest.raises(error):
        shared.array(*arguments)
    gc.collect()
    assert shared.used_frames == 0
    with pytest.raises(ValueError, match="order"):
        shared.array(3, order="A")


def test_an_array_bigger_than_what_is_free_is_refused_at_once(shared):
    most = shared.free_frames
    kept = shared.alloc_frame()
    with pytest.raises(pf.OutOfFramesError):
        shared.empty(most * PAGE, "u1")
    assert shared.used_frames == 1
    kept.drop()
    assert shared.empty(most * PAGE, "u1").size == most * PAGE


def test_save_load_memoryview_and_dlpack_see_the_same_elements(shared):
    array = numbered(shared, 6, 7, dtype=np.float32)
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    assert same(np.load(file), np.asarray(array))
    view = memoryview(array)
    assert (view.shape, view.format, view.readonly) == ((6, 7), "f", False)
    view[1, 1] = 99
    assert array[1, 1] == 99
    imported = np.from_dlpack(array)
    assert np.shares_memory(imported, array)
    del array
    assert imported[1, 1] == 99
    view.release()
    del imported


def test_torch_shares_the_memory(shared):
    torch = pytest.importorskip("torch")
    array = numbered(shared, 3, 4)
    tensor = torch.from_numpy(array)
    tensor += 1
    assert array[0, 0] == 1
    del array
    gc.collect()
    assert shared.used_frames == 1
    assert int(tensor.sum()) == 78
    del tensor


# -- they are pickled by handle --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*map(np.dtype, DTYPES), RECORD], ids=str)
def test_arrays_of_every_type_arrive_equal_and_are_the_same_memory(shared, dtype):
    rng = np.random.default_rng(1)
    array = shared.empty((7, 3), dtype)
    words = rng.integers(0, 100, array.nbytes, dtype=np.uint8)
    if dtype.kind in "b":
        words &= 1
    elif dtype.kind == "U":
        words[...] = np.frombuffer(np.arange(60, 60 + words.size // 4, dtype="<u4"), np.uint8)
    array.reshape(-1).view("V1")[...] = words.view("V1")
    loaded = send(array)
    assert type(loaded) is pf.FrameArray
    assert loaded.dtype == dtype
    assert same(loaded, array)
    assert np.shares_memory(loaded, array)
    loaded[0, 0] = loaded[3, 1]
    assert same(loaded, array)


VIEWS = {
    "slice": lambda a: a[2:5],
    "step": lambda a: a[::3, 1::2],
    "reversed": lambda a: a[::-1],
    "both reversed": lambda a: a[::-2, ::-3],
    "transposed": lambda a: a.T,
    "column": lambda a: a[:, 3],
    "scalar": lambda a: a[4, 4, ...],
    "empty": lambda a: a[3:3],
    "empty at the end": lambda a: a[:, 9:],
    "broadcast": lambda a: np.broadcast_to(a[3], (4, 9), subok=True),
    "new axis": lambda a: a[None, :, None],
    "reshaped": lambda a: a.reshape(3, -1),
    "other type": lambda a: a.view("u1"),
    "last rows": lambda a: a[-2:],
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_arrive_as_views_of_the_same_memory_and_hold_only_their_frames(shared, view):
    array = shared.zeros((1000, 9), np.int64)  # 18 frames
    array[...] = np.arange(9000).reshape(1000, 9)
    part = VIEWS[view](array)
    expected = part.tolist()
    data = pickle.dumps(part)
    writable = part.flags.writeable
    strides = part.strides
    del part, array
    gc.collect()
    loaded = pickle.loads(data)
    assert loaded.tolist() == expected
    assert loaded.strides == strides or loaded.size <= 1 or 1 in loaded.shape
    assert loaded.flags.writeable == writable
    if view in ("slice", "scalar", "empty", "last rows", "broadcast"):
        assert shared.used_frames == 1
    if writable and loaded.size:
        loaded[...] = 5
        assert send(loaded).reshape(-1)[0] == 5


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_order_of_an_array_arrives(shared, order):
    array = shared.zeros((3, 4, 5), order=order)
    array[...] = np.arange(60).reshape(3, 4, 5)
    loaded = send(array)
    assert loaded.strides == array.strides
    assert loaded.flags.f_contiguous == (order == "F")
    assert same(loaded, array)


def test_an_array_sent_to_another_process_is_the_same_memory_there(shared):
    array = numbered(shared, 100, 100)

    def work(conn):
        mine = conn.recv()
        column = conn.recv()
        mine[0, 0] = -1
        column += 1000
        conn.send(mine[50])
        conn.recv()

    with Forked(work) as child:
        child.say(array)
        child.say(array[:, 1])
        row = child.hear()
        assert type(row) is pf.FrameArray
        assert np.shares_memory(row, array)
        assert array[0, 0] == -1
        assert (array[:, 1] == np.arange(100) * 100 + 1001).all()
        child.say()
        child.result()
    del array, row


def test_arrays_of_private_arenas_are_pickled_by_value(mem):
    array = mem.zeros(5)
    array += 2
    loaded = send(array)
    assert loaded.tolist() == [2] * 5
    assert not np.shares_memory(loaded, array)
    assert mem.used_frames == 1
    del array


def test_frame_arrays_over_ordinary_memory_are_pickled_by_value(shared):
    array = np.arange(4).view(pf.FrameArray)
    loaded = send(array)
    assert loaded.tolist() == [0, 1, 2, 3]
    assert shared.audit().tickets == 0
    copied = shared.zeros(3).copy()
    assert send(copied).tolist() == [0, 0, 0]
    assert shared.used_frames == 0


def test_arrays_made_over_a_segment_by_hand_are_ordinary_and_go_by_value(shared):
    segment = shared.alloc_segment(1)
    array = np.frombuffer(segment, np.uint8)
    assert type(send(array)) is np.ndarray
    assert segment[0].reference_count == 2  # of which one is this very handle's
    del array
    segment.drop()


@settings(max_examples=150, derandomize=True)
@given(data=st.data())
def test_any_slice_of_any_array_arrives_as_plain_numpy_has_it(data):
    with shared_arena() as mem:
        shape = data.draw(st.lists(st.integers(0, 7), max_size=4))
        dtype = np.dtype(data.draw(st.sampled_from(("u1", "<i2", ">i4", "<f8", "S3", "<c16"))))
        order = data.draw(st.sampled_from("CF"))
        plain = np.zeros(shape, dtype, order)
        plain[...] = (np.arange(plain.size) % 100).reshape(shape).astype(dtype)
        array = mem.asarray(plain)
        index = tuple(
            data.draw(st.one_of(st.slices(n), st.integers(0, n - 1)) if n else st.slices(n)) for n in shape
        )
        index = (*index, ...)
        axes = data.draw(st.permutations(range(plain[index].ndim)))
        part, expected = array[index].transpose(axes), plain[index].transpose(axes)
        loaded = send(part)
        assert same(loaded, expected)
        if loaded.size:
            assert np.shares_memory(loaded, array)
            loaded[...] = loaded.reshape(-1)[::-1].reshape(loaded.shape).copy()
            expected[...] = expected.reshape(-1)[::-1].reshape(expected.shape).copy()
            assert same(array, plain)
        del array, part, loaded


# -- read-only arrays ------------------------------------------------------------------------------


def assert_read_only(array):
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[...] = 1
    for part in (array, array[1:], array.T, array[::2], array.view(np.ndarray)):
        with pytest.raises(ValueError, match="WRITEABLE"):
            part.flags.writeable = True
        with pytest.raises(ValueError, match="WRITEABLE"):
            part.setflags(write=True)
    base = array
    while isinstance(base, np.ndarray):
        with pytest.raises(ValueError, match="WRITEABLE"):
            base.flags.writeable = True
        base = base.base
    assert memoryview(array).readonly
    assert memoryview(base).readonly


def test_a_read_only_array_is_so_here_and_wherever_it_is_sent(shared):
    array = numbered(shared, 10, 10)
    fixed = pf.readonly(array)
    assert type(fixed) is pf.FrameArray
    assert same(fixed, array)
    for seen in (fixed, send(fixed), send(send(fixed)), send(fixed[2:]), send(fixed.T), pf.readonly(fixed)):
        assert_read_only(seen)
    array[0, 0] = 77  # the writable one still is
    assert fixed[0, 0] == 77
    assert pf.readonly(array[::-2, 1]).tolist() == array[::-2, 1].tolist()

    def work(conn):
        assert_read_only(conn.recv())

    with Forked(work) as child:
        child.say(fixed)
        child.result()
    del seen, array
    gc.collect()
    assert shared.used_frames == 1
    del fixed


def test_an_array_made_read_only_by_its_flag_arrives_read_only(shared):
    array = numbered(shared, 5)
    array.flags.writeable = False
    assert_read_only_here = send(array)
    assert not assert_read_only_here.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        assert_read_only_here.flags.writeable = True
    array.flags.writeable = True


@pytest.mark.parametrize("thing", [np.zeros(3), [1, 2], b"bytes", None])
def test_what_lies_in_no_frame_has_no_read_only_array(thing):
    with pytest.raises(pf.FrameTypeError):
        pf.readonly(thing)


# -- nothing dangles -------------------------------------------------------------------------------


def test_an_arena_with_a_live_array_refuses_to_close_and_the_array_goes_on():
    for mem in (pf.PhysicalMemory.create("1 MiB"), pf.PhysicalMemory("1 MiB")):
        array = mem.zeros(10)
        part = array[5:]
        del array
        with pytest.raises(pf.ArenaInUseError):
            mem.close()
        part += 3
        assert part.tolist() == [3] * 5
        del part
        mem.close()


def test_an_array_outlives_the_name_of_its_arena():
    mem = pf.PhysicalMemory.create("1 MiB")
    array = mem.zeros(10)
    array += 1
    part = array[1:]
    del array, mem
    gc.collect()
    assert part.tolist() == [1] * 9
    assert send(part).tolist() == [1] * 9


def test_resizing_an_array_is_refused(shared):
    array = shared.zeros(10)
    with pytest.raises(ValueError, match="own its"):
        array.resize(100)
    del array


def test_arrays_are_never_over_typed_frames(shared):
    with shared.alloc_segment(2, Node()) as segment, pytest.raises(TypeError):
        np.frombuffer(segment, np.uint8)


MESSAGE = struct.Struct("<16sQIIIIIBBH")  # as in message.pyx: the last is the size of what follows
LAYOUT = struct.Struct("<QBBBBI")  # offset, dimensions, strided, read-only, size of the name, reserved


def forge(array, shape=None, strides=(), offset=0, name=b"<i8", dtype=None, **sizes):
    """What loads an array, and a message that describes another one than was sent."""
    load, (message, *_) = copyreg.dispatch_table[pf.FrameArray](array)
    shape = array.shape if shape is None else shape
    words = struct.pack(f"<{len(shape) + len(strides)}q", *shape, *strides)
    ndim, name_size = sizes.get("ndim", len(shape)), sizes.get("name_size", len(name))
    shown = LAYOUT.pack(offset, ndim, bool(strides), 0, name_size, 0) + words + name
    *head, _ = MESSAGE.unpack_from(message)
    forged = MESSAGE.pack(*head, sizes.get("shown", len(shown))) + shown
    return load, (forged[: sizes.get("cut")], *([] if dtype is None else [dtype]))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (10**6,)},
        {"shape": (-1,)},
        {"shape": (2**62, 2**62)},
        {"shape": (1,) * 65},
        {"offset": PAGE},
        {"offset": 2**63},
        {"offset": 2**64 - 8},
        {"strides": (-8,)},
        {"strides": (4096,)},
        {"strides": (2**62,)},
        {"shape": (9,), "strides": (2**61,)},  # the last would be at the first, had it wrapped
        {"shape": (9,), "strides": (-(2**61),)},
        {"shape": (2**32, 2**32)},
        {"shape": (2**61 + 1,)},
        {"name": b"O"},
        {"name": b"O,O"},
        {"name": b"no type"},
        {"name": b"\xff"},
        {"dtype": np.dtype(object)},
        {"dtype": np.dtype([("a", "O"), ("b", "V4000")])},
        {"dtype": 5},
        {"ndim": 255},
        {"name_size": 200},
        {"shown": 0},
        {"shown": 2**16 - 1},
        {"cut": 60},
        {"cut": 10},
        {"cut": 0},
    ],
    ids=str,
)
def test_forged_arrays_are_refused_and_what_was_sent_comes_back(shared, changes):
    shared.ticket_ttl = 0
    load, arguments = forge(numbered(shared, 10), **changes)
    with pytest.raises((TypeError, ValueError, OverflowError, MemoryError)):
        load(*arguments)
    gc.collect()
    shared.reap()
    assert shared.used_frames == 0


def test_the_forgeries_are_refused_for_what_is_forged(shared):
    load, arguments = forge(numbered(shared, 10))
    assert load(*arguments).tolist() == list(range(10))


def test_a_frame_sent_as_an_array_is_refused(shared):
    shared.ticket_ttl = 0
    load, (message, *_) = forge(shared.zeros(3))
    load(message)
    for handle in (shared.alloc_frame(), shared.alloc_frames(2), shared.alloc_segment(2, Node())):
        theirs = copyreg.dispatch_table[type(handle)](handle)[1][0]
        *head, _ = MESSAGE.unpack_from(theirs)
        *_, shown = MESSAGE.unpack_from(message)
        with pytest.raises((TypeError, pf.ArenaDamagedError)):
            load(MESSAGE.pack(*head, shown) + message[MESSAGE.size :])
        handle.drop()
