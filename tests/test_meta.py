# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

import contextlib
import copy
import gc
import math
import pickle
import sys
from typing import Annotated, ClassVar

import numpy as np
import pytest

import pageframe as pf
from pageframe import FrameMeta, FrameTypeError, Link, MovedError, PhysicalMemory, UntypedFrameMeta
from types_for_tests import Dropped, Node, Page, Raw


class Everything(FrameMeta):
    """One field of every type."""

    a: pf.u8
    b: pf.u16
    c: pf.u32
    d: pf.u64
    e: pf.i8
    f: pf.i16
    g: pf.i32
    h: pf.i64
    i: pf.f32
    j: pf.f64
    k: pf.bool_
    l: pf.bytes_[5]  # noqa: E741
    m: pf.atomic_u8
    n: pf.atomic_i16
    o: pf.atomic_u32
    p: pf.atomic_i64
    q: Annotated[bytes, 3]
    note: ClassVar[str] = "not a field"


INTEGERS = {name: np.dtype(f"{kind}{size}") for name, kind, size in [
    ("a", "u", 1), ("b", "u", 2), ("c", "u", 4), ("d", "u", 8), ("e", "i", 1), ("f", "i", 2),
    ("g", "i", 4), ("h", "i", 8), ("m", "u", 1), ("n", "i", 2), ("o", "u", 4), ("p", "i", 8)]}  # fmt: skip


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_field_holds_its_range_and_refuses_what_lies_outside(name):
    info = np.iinfo(INTEGERS[name])
    meta = Everything()
    for value in (int(info.min), int(info.max), 0, 1):
        setattr(meta, name, value)
        assert int(getattr(meta, name)) == value
    for value in (int(info.min) - 1, int(info.max) + 1, 1 << 200, -(1 << 200)):
        with pytest.raises(OverflowError, match="is not within"):
            setattr(meta, name, value)
        assert int(getattr(meta, name)) == 1
    with pytest.raises(TypeError):
        setattr(meta, name, 1.5)


def test_float_bool_and_bytes_fields_hold_their_values():
    meta = Everything(i=1.5, j=math.pi, k=7, l=b"abc", q=b"xyz")
    assert (meta.i, meta.j, meta.k, meta.l, meta.q) == (1.5, math.pi, True, b"abc\0\0", b"xyz")
    with pytest.raises(ValueError, match="6 bytes are too many"):
        meta.l = b"abcdef"
    with pytest.raises(TypeError, match="takes bytes"):
        meta.l = "abc"
    meta.l = memoryview(b"z")
    assert meta.l == b"z\0\0\0\0"


def test_fields_lie_in_order_at_their_natural_alignment():
    for field in Everything.__layout__.fields:
        assert field.offset % field.type.alignment == 0
    offsets = [field.offset for field in Everything.__layout__.fields]
    assert offsets == sorted(offsets)
    assert [field.name for field in Everything.__layout__.fields] == list("abcdefghijklmnopq")


def test_what_lies_in_the_slot_is_what_numpy_reads():
    value = Everything(d=1 << 63, e=-5, i=0.25, k=True, l=b"hey", p=-9)
    with PhysicalMemory("1 MiB", slot_size=128) as mem, mem.alloc_segment(1, value) as segment:
        assert segment.meta[["d", "e", "i", "k", "l", "p"]].tolist() == [
            (1 << 63, -5, 0.25, True, b"hey", -9)
        ]


def test_defaults_keywords_repr_and_equality():
    assert Page(inode=3).dirty is True
    assert Page().inode == 0
    assert Page(inode=3) == Page(inode=3) != Page(inode=4)
    assert Node(level=3) != Raw(number=3)
    assert repr(Node(level=3, delta=-1)) == "Node(level=3, delta=-1)"
    with pytest.raises(TypeError, match="no field 'nope'"):
        Page(nope=1)
    with pytest.raises(AttributeError):
        Page().nope = 1
    with pytest.raises(TypeError):
        hash(Page())


def test_inheritance_adds_fields():
    class Big(Node):
        extra: pf.u64 = 5

    assert repr(Big(level=2)) == "Big(level=2, delta=0, extra=5)"
    with PhysicalMemory("1 MiB") as mem, mem.alloc_frame(Big(level=9)) as frame:
        assert frame.meta.extra == 5
        assert frame.cast(Node) is frame


def test_a_type_that_can_fit_no_slot_fails_when_it_is_made():
    class Fits(FrameMeta):
        data: pf.bytes_[232]

    with pytest.raises(FrameTypeError, match="takes 240 bytes"):

        class Never(FrameMeta):
            data: pf.bytes_[233]

    assert Fits.__layout__.size == 232


def test_a_type_too_large_for_an_arena_fails_when_it_is_first_used_there():
    class Large(UntypedFrameMeta):
        data: pf.bytes_[41]

    with PhysicalMemory("1 MiB") as mem:
        for use in (
            lambda: mem.alloc_frame(Large),
            lambda: mem.alloc_frames(2, Large),
            lambda: mem.alloc_segment(2, Large),
            lambda: pf.Frame.from_unused(mem, 0x20000, Large),
        ):
            with pytest.raises(FrameTypeError, match="takes 48 bytes, a slot of this arena has 40"):
                use()
        assert mem.used_frames == 0
    with PhysicalMemory("1 MiB", slot_size=128) as mem, mem.alloc_frame(Large) as frame:
        assert frame.meta.data == bytes(41)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"__annotations__": {"x": int}}, "no field type"),
        ({"__annotations__": {"x": pf.bytes_}}, "say how many bytes"),
        ({"__annotations__": {"x": pf.u8}, "x": 256}, "bad default"),
        ({"__annotations__": {"x": pf.u8}, "x": "a"}, "bad default"),
        ({"__annotations__": {"on_drop": pf.u8}}, "the name is taken"),
        ({"__slots__": ("y",)}, "no slots of its own"),
    ],
)
def test_a_class_that_makes_no_sense_fails_when_it_is_made(body, message):
    with pytest.raises(FrameTypeError, match=message):
        type(FrameMeta)("Bad", (FrameMeta,), dict(body))


class HasDict:
    """Whose instances have a dict."""


class HasWeakref:
    """Whose instances can be referred to weakly."""

    __slots__ = ("__weakref__",)


@pytest.mark.parametrize("mixin", [HasDict, HasWeakref])
def test_what_is_mixed_in_brings_neither_a_dict_nor_weak_references(mixin):
    with pytest.raises(FrameTypeError, match="must have __slots__"):
        type(FrameMeta)("Mixed", (mixin, FrameMeta), {})


@pytest.mark.parametrize("size", [0, -1, 1.5, "a"])
def test_bytes_fields_have_a_size(size):
    with pytest.raises((TypeError, ValueError), match="bytes_"):
        pf.bytes_[size]
    with pytest.raises(TypeError, match="takes no size"):
        pf.u8[size]
    with pytest.raises(ValueError, match="1 to 256 bytes"):
        pf.bytes_[1 << 62]


def test_a_class_is_fixed_once_made():
    for name in ("level", "on_drop", "__layout__"):
        with pytest.raises(AttributeError, match="fixed"):
            setattr(Node, name, None)
    with pytest.raises(AttributeError, match="fixed"):
        del Node.level


def test_a_field_of_another_type_reaches_no_memory_outside():
    class Wide(FrameMeta):
        pad: pf.bytes_[224]
        last: pf.u64

    narrow = Node()
    with pytest.raises(FrameTypeError, match="has no field last"):
        Wide.last.__get__(narrow, Node)
    with pytest.raises(TypeError, match="is fixed"):
        narrow.__class__ = Wide


def test_an_instance_whose_class_was_changed_all_the_same_reaches_nothing_outside():
    class Wide(FrameMeta):
        pad: pf.bytes_[24]
        last: pf.u64

    class Plain(FrameMeta):
        words: pf.u64

    for made, other in ((Node(), Wide), (Page(), Plain)):
        # Python 3.11 refuses this, too; 3.13 does not.
        with contextlib.suppress(TypeError):
            object.__setattr__(made, "__class__", other)
        if type(made) is other:
            name = other.__layout__.fields[-1].name
            with pytest.raises(FrameTypeError, match="not made as"):
                getattr(made, name)
            with pytest.raises(FrameTypeError, match="not made as"):
                setattr(made, name, 1)
    if type(made) is Plain:
        with pytest.raises(FrameTypeError, match="not made as"):
            repr(made)


def test_a_field_of_a_base_is_the_same_field_wherever_the_class_puts_it():
    class Linked(Link, Node):
        pass

    value = Linked(level=7, delta=-2)
    assert Linked.level.offset != Node.level.offset
    assert (Node.level.__get__(value, Node), super(Linked, value).level) == (7, 7)
    Node.delta.__set__(value, 5)
    assert value.delta == 5
    with pytest.raises(FrameTypeError, match="has no field"):
        Raw.number.__get__(value, Raw)


def test_metadata_of_a_shared_frame_is_read_only_but_for_atomics(mem):
    with mem.alloc_frame(Page(inode=4)) as frame:
        meta = frame.meta
        for name, value in (("inode", 5), ("dirty", False), ("tag", b"x"), ("hits", 5)):
            with pytest.raises(AttributeError, match="read-only"):
                setattr(meta, name, value)
        meta.hits.store(5)
        assert meta.hits.fetch_add(3) == 5
        assert meta.hits.load() == 8
        assert meta.hits.compare_exchange(7, 1) is False
        assert meta.hits.compare_exchange(8, 1) is True
        assert meta.hits.fetch_add(-2) == 1
        assert meta.hits.load() == (1 << 32) - 1, "it wraps as the processor does"
        with pytest.raises(OverflowError):
            meta.hits.store(1 << 32)


def test_metadata_of_a_unique_frame_is_mutable_and_stays_when_shared(mem):
    unique = mem.alloc_frame(Page).try_unique()
    meta = unique.meta
    meta.inode, meta.dirty, meta.tag, meta.hits = 9, False, b"t", 3
    frame = unique.share()
    assert frame.meta == Page(inode=9, dirty=False, tag=b"t", hits=3)
    with pytest.raises(MovedError):
        meta.inode = 1
    frame.drop()


def test_a_view_stops_with_its_handle_even_if_the_frame_lives_on(mem):
    frame = mem.alloc_frame(Page(inode=1))
    clone = frame.clone()
    meta = frame.meta
    hits = meta.hits
    frame.drop()
    for use in (
        lambda: meta.inode,
        hits.load,
        lambda: repr(meta),
        lambda: meta == Page(),
        lambda: mem.alloc_frame(meta),
    ):
        with pytest.raises(MovedError):
            use()
    assert clone.meta.inode == 1
    clone.drop()


def test_a_view_keeps_the_handle_that_it_came_from(mem):
    meta = mem.alloc_frame(Page(inode=6)).meta
    gc.collect()
    assert meta.inode == 6
    assert mem.used_frames == 1


def test_a_view_can_serve_as_metadata_and_is_copied(mem):
    with mem.alloc_frame(Page(inode=6)) as frame, mem.alloc_frame(frame.meta) as other:
        frame.meta.hits.store(1)
        assert (other.meta.inode, other.meta.hits.load()) == (6, 0)


def test_values_copy_and_pickle(mem):
    assert (
        copy.copy(Page(inode=6)) == copy.deepcopy(Page(inode=6)) == pickle.loads(pickle.dumps(Page(inode=6)))
    )
    with mem.alloc_frame(Page(inode=6)) as frame:
        value = copy.copy(frame.meta)
    assert value == Page(inode=6)


def test_on_drop_runs_once_with_the_bytes_of_the_frame(mem):
    Dropped.seen.clear()
    frame = mem.alloc_frame(Dropped(number=7))
    memoryview(frame)[:4] = b"last"
    clone = frame.clone()
    frame.drop()
    assert Dropped.seen == []
    clone.drop()
    assert Dropped.seen == [(7, 4096, b"last")]
    mem.alloc_frames(3, lambda paddr: Dropped(number=paddr)).drop()
    mem.alloc_segment(3, Dropped).drop()
    assert len(Dropped.seen) == 7


def test_an_exception_in_on_drop_is_unraisable_and_the_frame_goes(mem, monkeypatch):
    class Fails(UntypedFrameMeta):
        def on_drop(self, reader):
            raise LookupError("no")

    caught = []
    monkeypatch.setattr(sys, "unraisablehook", caught.append)
    mem.alloc_frame(Fails).drop()
    del (frame := [mem.alloc_frame(Fails)])[:]
    mem.alloc_segment(2, Fails).drop()
    assert frame == []
    assert [type(each.exc_value) for each in caught] == [LookupError] * 4
    assert mem.used_frames == 0
    caught.clear()


def test_what_on_drop_was_given_works_only_during_the_call(mem):
    kept = []

    class Keeps(FrameMeta):
        number: pf.u64

        def on_drop(self, reader):
            self.number += 1
            kept.extend((self, reader, self.number))

    mem.alloc_frame(Keeps(number=1)).drop()
    meta, reader, number = kept
    assert number == 2
    with pytest.raises(MovedError):
        meta.number
    with pytest.raises(MovedError):
        reader.read_bytes(1)


def test_on_drop_may_use_the_arena(mem):
    class Allocates(UntypedFrameMeta):
        def on_drop(self, reader):
            mem.alloc_frame().drop()
            mem.alloc_segment(5).drop()

    mem.alloc_frame(Allocates).drop()
    mem.alloc_segment(5, Allocates).drop()
    assert mem.used_frames == 0


@pytest.mark.parametrize("meta", [3, "page", Page(inode=1).hits, object(), int])
def test_what_is_no_metadata_is_refused(mem, meta):
    for use in (lambda: mem.alloc_frame(meta), lambda: pf.UniqueFrame.from_unused(mem, 0x20000, meta)):
        with pytest.raises(TypeError):
            use()
    assert mem.used_frames == 0


def test_metadata_of_the_arena_is_not_for_users(mem):
    with pytest.raises(FrameTypeError, match="the arena's own"):
        mem.alloc_frame(pf.MetaPageMeta)


def test_an_arena_has_room_for_64_types_and_says_so(mem):
    types = [type(FrameMeta)(f"T{i}", (UntypedFrameMeta,), {}) for i in range(58)]
    for each in types:
        mem.alloc_frame(each).drop()
    with pytest.raises(FrameTypeError, match="no room to register"):
        mem.alloc_frame(Page)
    mem.alloc_frame(types[30]).drop()


def test_a_class_defined_again_is_the_same_type(mem):
    def define():
        class Again(UntypedFrameMeta):
            x: pf.u32

        return Again

    first, second = define(), define()
    frame = mem.alloc_frame(first(x=4))
    mem.alloc_frame(second(x=4)).drop()
    assert len([each for each in mem.types.values() if each.__name__ == "Again"]) == 1
    assert frame.cast(second).meta.x == 4
    frame.drop()


def test_link_takes_the_first_eight_bytes():
    assert Page.inode.offset == 8
    assert Raw.number.offset == 0
    assert Page.__layout__.size == 40, "what a slot of 64 bytes has room for"
    assert issubclass(Page, Link)
