# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is made by the package only, or out of range, is refused; and what the small things show."""

import pickle

import pytest

import pageframe as pf
from pageframe import LinkedList, VmReader, VmWriter, adaptors, u8, u64

PAGE = 4096


def test_field_types_are_ready_made_and_pickled_by_name():
    with pytest.raises(TypeError, match="ready-made"):
        type(u64)()
    assert pickle.loads(pickle.dumps(u8)) is u8


def test_cursors_over_bytes_show_what_is_left():
    assert repr(VmReader(bytes(8))) == "<VmReader remain=8>"
    assert repr(VmWriter(bytearray(8))) == "<VmWriter avail=8>"


def test_a_cursor_over_no_bytes_has_nothing_left():
    assert repr(VmReader(b"")) == "<VmReader remain=0>"


def test_a_cursor_of_a_list_shows_where_it_is(mem):
    class Item(pf.Link, pf.UntypedFrameMeta):
        pass

    items = LinkedList(mem, Item)
    assert repr(items.cursor_front()) == "<Cursor at the ghost position>"
    items.push_back(pf.UniqueFrame.from_unused(mem, 20 * PAGE, Item()))
    assert repr(items.cursor_front()) == f"<Cursor at {20 * PAGE:#x}>"
    items.drop()


def test_a_run_is_no_other_thing_and_has_only_its_own_frames(mem):
    with mem.alloc_segment(2) as run:
        assert "frame" not in run
        assert run != 2


def test_messages_live_for_a_time_that_fits():
    with pf.PhysicalMemory.create("1 MiB") as mem:
        for seconds in (-1, 2**32 + 1):
            with pytest.raises(ValueError, match="ticket_ttl"):
                mem.ticket_ttl = seconds


def test_atomic_fields_of_every_size_add_and_exchange(mem):
    class Counters(pf.FrameMeta):
        a: pf.atomic_u8
        b: pf.atomic_u16
        c: pf.atomic_u32
        d: pf.atomic_u64

    with mem.alloc_frame(Counters()) as frame:
        for name in "abcd":
            field = getattr(frame.meta, name)
            assert field.fetch_add(5) == 0
            assert field.compare_exchange(4, 6) is False
            assert field.compare_exchange(5, 7) is True
            assert (field.load(), range(9)[field]) == (7, 7)


def test_fields_and_layouts_come_from_metadata_classes_only(mem):
    class Plain(pf.FrameMeta):
        number: u64
        hits: pf.atomic_u64

    with mem.alloc_frame(Plain()) as frame:
        with pytest.raises(TypeError, match="annotating"):
            type(vars(Plain)["number"])()
        with pytest.raises(TypeError, match="metadata class"):
            type(Plain.__layout__)()
        with pytest.raises(TypeError, match="through the metadata"):
            type(frame.meta.hits)()
        assert frame.meta.hits == frame.meta.hits
    with pytest.raises(AttributeError, match="can't be deleted"):
        del Plain().number


def test_what_is_no_field_of_a_metadata_class_comes_and_goes():
    class Plain(pf.FrameMeta):
        number: u64

    Plain.note = 1
    del Plain.note
    assert not hasattr(Plain, "note")


def test_an_adaptor_shows_what_it_holds(mem):
    with adaptors.StatisticsAdaptor(mem) as counted, counted.alloc_frame():
        assert repr(counted).startswith("<StatisticsAdaptor of 1 frames over <")
