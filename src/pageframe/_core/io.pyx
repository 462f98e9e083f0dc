# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Cursors over untyped memory.

A reader and a writer move through a range of bytes, never past its end.  The
range is the buffer of an untyped frame or segment, or of any other object that
exports bytes, so data comes and goes without a copy in between.  The buffer
keeps its frame alive for as long as the cursor lives.
"""

import struct

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer)
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memmove, memset

from pageframe._core.arena cimport as_int
from pageframe._core.errors import MovedError, NotAlignedError, OutOfBoundError
from pageframe._core.slot cimport (
    pf_load_u8, pf_load_u16, pf_load_u32, pf_load_u64,
    pf_store_u8, pf_store_u16, pf_store_u32, pf_store_u64)


cdef class BytesCursor:
    def __dealloc__(self):
        self.close()

    cdef int open(self, object target, int flags) except -1:
        cdef Py_buffer buffer
        PyObject_GetBuffer(target, &buffer, flags)
        if self.held:
            PyBuffer_Release(&buffer)
            raise TypeError(f"this {type(self).__name__} is initialised already")
        self.buffer = buffer
        self.held = True
        self.at = <unsigned char *>self.buffer.buf
        if self.at == NULL:     # an empty buffer may have no address
            self.at = <unsigned char *>&self.buffer
        self.end = self.at + self.buffer.len
        return 0

    cdef void close(self) noexcept:
        self.at = NULL
        self.end = NULL
        if self.held:
            self.held = False
            PyBuffer_Release(&self.buffer)

    cdef int check(self) except -1:
        if self.at == NULL:
            raise MovedError(f"the {type(self).__name__} is no longer valid")
        return 0

    cdef unsigned char *take(self, Py_ssize_t size) except NULL:
        """Move on by size bytes; return where they begin.  Within the critical section of its caller."""
        cdef unsigned char *start = self.at
        self.check()
        if size < 0 or size > self.end - start:
            raise OutOfBoundError(f"{size} bytes asked for, {self.end - start} left")
        self.at = start + size
        return start

    @cython.critical_section
    def skip(self, Py_ssize_t nbytes):
        """Move on without reading or writing; return the cursor itself.

        Raises
        ------
        OutOfBoundError
            If fewer bytes are left.
        """
        self.take(nbytes)
        return self

    @cython.critical_section
    def limit(self, Py_ssize_t max_remain):
        """Let the range end after so many more bytes at the most; return the cursor itself."""
        self.check()
        if max_remain < 0:
            raise ValueError(f"limit must not be negative, got {max_remain}")
        if max_remain < self.end - self.at:
            self.end = self.at + max_remain
        return self

    def __reduce__(self):
        raise TypeError(f"a {type(self).__name__} can't be pickled")


cdef int check_once(unsigned char *at, Py_ssize_t size) except -1:
    if size != 1 and size != 2 and size != 4 and size != 8:
        raise ValueError(f"size must be 1, 2, 4 or 8 bytes, got {size}")
    if <size_t>at % <size_t>size:
        raise NotAlignedError(f"an access of {size} bytes is not aligned to {size} bytes")
    return 0


@cython.final
cdef class VmReader(BytesCursor):
    """A cursor that reads memory.

    Parameters
    ----------
    source : buffer
        An untyped frame or segment, or anything that exports contiguous bytes.
    """

    @cython.critical_section
    def __init__(self, source):
        self.open(source, PyBUF_SIMPLE)

    @property
    @cython.critical_section
    def remain(self):
        """Bytes left to read."""
        self.check()
        return self.end - self.at

    def read(self, dest):
        """Copy bytes until either side has none left; return how many.

        Parameters
        ----------
        dest : VmWriter or writable buffer
        """
        cdef VmWriter writer = dest if isinstance(dest, VmWriter) else VmWriter(dest)
        cdef Py_ssize_t size
        with cython.critical_section(self, writer):
            self.check()
            writer.check()
            size = min(self.end - self.at, writer.end - writer.at)
            memmove(writer.take(size), self.take(size), size)
            return size

    @cython.critical_section
    def read_bytes(self, nbytes=None):
        """Return the next bytes, all that remain by default.

        Raises
        ------
        OutOfBoundError
            If fewer are left.
        """
        cdef Py_ssize_t size
        self.check()
        size = self.end - self.at if nbytes is None else nbytes
        return self.take(size)[:size]

    @cython.critical_section
    def read_val(self, str format):
        """Read a value.

        Parameters
        ----------
        format : str
            As in the `struct` module, such as ``"<Q"``.

        Returns
        -------
        object
            The value, or a tuple if the format has more or less than one.

        Raises
        ------
        OutOfBoundError
            If fewer bytes are left.
        """
        cdef Py_ssize_t size = struct.calcsize(format)
        values = struct.unpack(format, self.take(size)[:size])
        return values[0] if len(values) == 1 else values

    @cython.critical_section
    def read_once(self, Py_ssize_t size):
        """Read an unsigned integer of 1, 2, 4 or 8 bytes in one access.

        Native byte order; never torn by a writer that uses `VmWriter.write_once`.

        Raises
        ------
        NotAlignedError
            If the position is not a multiple of the size.
        OutOfBoundError
            If fewer bytes are left.
        """
        cdef unsigned char *at
        self.check()
        check_once(self.at, size)
        at = self.take(size)
        if size == 1:
            return pf_load_u8(<uint8_t *>at)
        if size == 2:
            return pf_load_u16(<uint16_t *>at)
        if size == 4:
            return pf_load_u32(<uint32_t *>at)
        return pf_load_u64(<uint64_t *>at)

    @cython.critical_section
    def __repr__(self):
        return "<VmReader closed>" if self.at == NULL else f"<VmReader remain={self.end - self.at}>"


@cython.final
cdef class VmWriter(BytesCursor):
    """A cursor that writes memory.

    Parameters
    ----------
    dest : writable buffer
        An untyped frame or segment, or anything that exports writable contiguous bytes.
    """

    @cython.critical_section
    def __init__(self, dest):
        self.open(dest, PyBUF_WRITABLE)

    @property
    @cython.critical_section
    def avail(self):
        """Bytes left to write."""
        self.check()
        return self.end - self.at

    def write(self, source):
        """Copy bytes until either side has none left; return how many.

        Parameters
        ----------
        source : VmReader or buffer
        """
        cdef VmReader reader = source if isinstance(source, VmReader) else VmReader(source)
        return reader.read(self)

    @cython.critical_section
    def write_val(self, str format, *values):
        """Write values packed by a format of the `struct` module.

        Raises
        ------
        OutOfBoundError
            If fewer bytes are left; nothing is written.
        """
        cdef bytes packed = struct.pack(format, *values)
        cdef Py_ssize_t size = len(packed)
        memmove(self.take(size), <unsigned char *>packed, size)

    @cython.critical_section
    def write_once(self, Py_ssize_t size, value):
        """Write an unsigned integer of 1, 2, 4 or 8 bytes in one access.

        Raises
        ------
        NotAlignedError
            If the position is not a multiple of the size.
        OutOfBoundError
            If fewer bytes are left.
        OverflowError
            If the value does not fit.
        """
        cdef unsigned char *at
        cdef uint64_t word
        self.check()
        check_once(self.at, size)
        value = as_int(value)
        if not 0 <= value <= 0xFFFFFFFFFFFFFFFF >> (64 - 8 * size):
            raise OverflowError(f"{value} does not fit {size} bytes")
        word = value
        at = self.take(size)
        if size == 1:
            pf_store_u8(<uint8_t *>at, <uint8_t>word)
        elif size == 2:
            pf_store_u16(<uint16_t *>at, <uint16_t>word)
        elif size == 4:
            pf_store_u32(<uint32_t *>at, <uint32_t>word)
        else:
            pf_store_u64(<uint64_t *>at, word)

    @cython.critical_section
    def fill_zeros(self, nbytes=None):
        """Write zeros, to the end of the range by default; return how many bytes."""
        cdef Py_ssize_t size
        self.check()
        size = self.end - self.at if nbytes is None else nbytes
        memset(self.take(size), 0, size)
        return size

    @cython.critical_section
    def __repr__(self):
        return "<VmWriter closed>" if self.at == NULL else f"<VmWriter avail={self.end - self.at}>"


cdef VmReader reader_over(unsigned char *data, size_t size):
    """A reader over memory that outlives it: its maker calls close()."""
    cdef VmReader reader = VmReader.__new__(VmReader)
    reader.at = data
    reader.end = data + size
    return reader
