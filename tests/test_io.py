# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

import struct

import numpy as np
import pytest

from pageframe import MovedError, NotAlignedError, OutOfBoundError, VmReader, VmWriter

PAGE = 4096


def test_values_written_are_values_read(mem):
    with mem.alloc_frame() as frame:
        writer = frame.writer()
        writer.write_val("<IQ", 7, 1 << 40)
        writer.write_val("d", 0.5)
        writer.write(b"tail")
        assert writer.avail == PAGE - 24
        reader = frame.reader()
        assert reader.read_val("<I") == 7
        assert reader.read_val("<Qd") == (1 << 40, 0.5)
        assert reader.read_bytes(4) == b"tail"
        assert reader.remain == PAGE - 24
        assert reader.read_bytes() == bytes(PAGE - 24)
        assert reader.read_bytes() == b""
        del reader, writer


def test_a_copy_ends_where_the_shorter_side_ends(mem):
    with mem.alloc_frame() as source, mem.alloc_segment(2) as dest:
        np.frombuffer(source, np.uint8)[:] = 3
        reader, writer = source.reader().skip(96), dest.writer().limit(1000)
        assert reader.read(writer) == 1000
        assert (reader.remain, writer.avail) == (3000, 0)
        assert reader.read(writer) == 0
        room = bytearray(5000)
        assert reader.read(room) == 3000
        assert room[:3000] == b"\3" * 3000
        assert dest.writer().write(VmReader(b"abc")) == 3
        assert bytes(memoryview(dest)[:4]) == b"abc\3"
        del reader, writer


def test_a_copy_may_overlap_itself(mem):
    with mem.alloc_frame() as frame:
        np.frombuffer(frame, np.uint16)[:] = np.arange(2048)
        frame.writer().skip(2).write(frame.reader().limit(PAGE - 2))
        assert np.frombuffer(frame, np.uint16).tolist() == [0, *range(2047)]


def test_nothing_is_read_or_written_past_the_end(mem):
    with mem.alloc_frame() as frame:
        reader, writer = frame.reader().skip(PAGE - 4), frame.writer().skip(PAGE - 4)
        for use in (
            lambda: reader.read_val("Q"),
            lambda: reader.read_bytes(5),
            lambda: reader.read_bytes(-1),
            lambda: reader.skip(5),
            lambda: reader.skip(-1),
            lambda: reader.read_once(8),
            lambda: writer.write_val("Q", 1),
            lambda: writer.write_once(8, 1),
            lambda: writer.fill_zeros(5),
            lambda: writer.skip(1 << 60),
        ):
            with pytest.raises((OutOfBoundError, NotAlignedError)):
                use()
        assert (reader.remain, writer.avail) == (4, 4)
        with pytest.raises(ValueError, match="negative"):
            reader.limit(-1)
        with pytest.raises(struct.error):
            writer.write_val("I", -1)
        assert writer.avail == 4


def test_limit_never_widens(mem):
    reader = VmReader(b"0123456789").limit(4).limit(8)
    assert reader.remain == 4
    assert reader.skip(1).read_bytes() == b"123"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_once_is_aligned_and_of_the_native_order(mem, size):
    top = (1 << 8 * size) - 2
    with mem.alloc_frame() as frame:
        frame.writer().skip(size).write_once(size, top)
        assert frame.reader().skip(size).read_once(size) == top
        assert np.frombuffer(frame, f"u{size}")[1] == top
        for wrong in (-1, top + 2, 1 << 70):
            with pytest.raises(OverflowError, match="does not fit"):
                frame.writer().write_once(size, wrong)
        if size > 1:
            with pytest.raises(NotAlignedError):
                frame.reader().skip(1).read_once(size)
            with pytest.raises(NotAlignedError):
                frame.writer().skip(1).write_once(size, 0)


@pytest.mark.parametrize("size", [0, 3, 16, -8])
def test_once_takes_1_2_4_or_8_bytes(size):
    with pytest.raises(ValueError, match="1, 2, 4 or 8"):
        VmReader(b"0" * 64).read_once(size)
    with pytest.raises(ValueError, match="1, 2, 4 or 8"):
        VmWriter(bytearray(64)).write_once(size, 0)


def test_fill_zeros(mem):
    with mem.alloc_frame() as frame:
        np.frombuffer(frame, np.uint8)[:] = 1
        writer = frame.writer()
        assert writer.fill_zeros(10) == 10
        assert writer.skip(6).fill_zeros() == PAGE - 16
        assert np.flatnonzero(np.frombuffer(frame, np.uint8)).tolist() == list(range(10, 16))
        del writer


def test_a_cursor_keeps_its_frame_alive(mem):
    writer = mem.alloc_frame().writer()
    assert mem.used_frames == 1
    writer.write(b"x" * PAGE)
    del writer
    assert mem.used_frames == 0


@pytest.mark.parametrize("wrong", [None, 3, "text", np.zeros((4, 4))[:, ::2]])
def test_what_exports_no_contiguous_bytes_is_refused(wrong):
    for cls in (VmReader, VmWriter):
        with pytest.raises((TypeError, BufferError, ValueError)):
            cls(wrong)


def test_a_writer_needs_writable_memory(mem):
    with mem.alloc_frame() as frame:
        for wrong in (b"bytes", frame.readonly()):
            with pytest.raises(BufferError):
                VmWriter(wrong)
            with pytest.raises(BufferError):
                VmReader(b"x").read(wrong)
        del wrong


def test_empty_memory_has_nothing_to_read():
    reader, writer = VmReader(b""), VmWriter(bytearray())
    assert reader.remain == writer.avail == reader.read(writer) == 0
    assert reader.read_bytes() == b""


def test_a_reader_that_was_never_made_refuses():
    with pytest.raises((MovedError, TypeError)):
        VmReader.__new__(VmReader).remain
    with pytest.raises(TypeError, match="already"):
        VmReader(b"x").__init__(b"y")
