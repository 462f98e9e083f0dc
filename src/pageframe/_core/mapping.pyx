# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Mappings: scattered frames as one contiguous buffer.

A mapping is a space (vm_space.pyx) of its own, filled from its start.  Addresses are
reserved ahead, so that it grows where it is: what was there stays at its addresses, and
views of it go on.  A view shows what there was when it was made.

A ring shows its frames twice in a row, so that whatever begins in the first half is
contiguous, up to the size of the ring.
"""

import numpy

cimport cython
from libc.stdint cimport uint64_t

from pageframe._core.arena cimport Arena, as_int, fill_buffer
from pageframe._core.array cimport VirtualBytes, array_over, geometry, lay_out
from pageframe._core.early import parse_size
from pageframe._core.errors import NotAlignedError, OutOfBoundError, OutOfFramesError
from pageframe._core.frame cimport Frame
from pageframe._core.handle cimport Holder, raise_moved
from pageframe._core.meta import UntypedFrameMeta
from pageframe._core.page_property import PageProperty
from pageframe._core.page_table cimport ENTRY_EXECUTE, ENTRY_READ, ENTRY_WRITE
from pageframe._core.segment cimport Segment, alloc_segment
from pageframe._core.vector cimport FrameVec, alloc_frames
from pageframe._core.vm_space cimport VmSpace, flags_of, frames_at, new_space


cdef list handles_of(object frames):
    """The handles that a user gives, one or many."""
    handles = [frames] if isinstance(frames, (Frame, Segment, FrameVec)) else list(frames)
    if not handles:
        raise ValueError("a mapping takes at least one frame")
    return handles


cdef int add(Mapping mapping, list handles) except -1:
    """Map what handles hold behind what is there; they are moved."""
    cdef VmSpace space = mapping.space
    with cython.critical_section(space):
        space.take(None, &mapping.count, space.pages, handles, mapping.flags)
        mapping.nbytes = mapping.count << mapping.mem.a.page_shift
    return 0


cdef int set_up(Mapping mapping, Arena mem, object pages, uint64_t flags, list handles) except -1:
    cdef VmSpace space = new_space(mem, pages)
    mapping.mem = mem
    mapping.flags = flags
    mapping.writable = flags & ENTRY_WRITE != 0
    mapping.data = space.where.base
    mapping.space = space
    add(mapping, handles)
    return 0


cdef Mapping map_frames(Arena mem, object frames, object prop, object reserve):
    """PhysicalMemory.map()."""
    cdef Mapping mapping = Mapping.__new__(Mapping)
    cdef uint64_t flags = flags_of(prop)
    handles = handles_of(frames)
    mem.check_open()
    if not flags & ENTRY_READ:
        raise ValueError(f"a mapping is to be read: {prop} does not allow it")
    pages = mem.a.frames
    if reserve is not None:
        reserve = parse_size(reserve)
        if reserve <= 0 or reserve & ((1 << mem.a.page_shift) - 1):
            raise NotAlignedError(
                f"reserve must be a positive multiple of the page size {1 << mem.a.page_shift}, "
                f"not {reserve}")
        pages = reserve >> mem.a.page_shift
    set_up(mapping, mem, pages, flags, handles)
    return mapping


cdef Ring make_ring(Arena mem, object size, object meta, bint zeroed):
    """PhysicalMemory.ring()."""
    cdef Ring ring = Ring.__new__(Ring)
    cdef Holder frames
    size = parse_size(size)
    mem.check_open()
    if size <= 0 or size & ((1 << mem.a.page_shift) - 1):
        raise NotAlignedError(
            f"the size of a ring must be a positive multiple of the page size {1 << mem.a.page_shift}, "
            f"not {size}")
    count = size >> mem.a.page_shift
    if count > mem.a.frames:
        raise OutOfFramesError(f"a ring of {count} frames wanted, the arena has {mem.a.frames}")
    try:
        frames = alloc_segment(mem, count, meta, zeroed, None)
    except OutOfFramesError:        # there is no such run
        frames = alloc_frames(mem, count, meta, zeroed)
    set_up(ring, mem, 2 * count, ENTRY_READ | ENTRY_WRITE, [frames, (<object>frames).clone()])
    return ring


@cython.no_gc
cdef class Mapping(VirtualBytes):
    """Frames of an arena as one contiguous buffer; had from `PhysicalMemory.map`.

    It has the buffer protocol: ``memoryview(mapping)``, ``numpy.frombuffer(mapping)``.
    A view rests on the mapping's references; the mapping can be dropped while it lives.
    """

    def __dealloc__(self):
        if self.space is not None:
            self.space.close_down()

    cdef int check(self) except -1:
        if self.dropped or self.space is None:
            raise_moved(self)
        self.space.check()
        return 0

    @property
    def size(self):
        """Bytes that are mapped."""
        self.check()
        return self.nbytes

    @property
    def capacity(self):
        """Bytes that can be mapped: the addresses that were reserved."""
        self.check()
        return self.space.where.size

    @property
    def base(self):
        """Address in the process at which the mapping begins."""
        self.check()
        return <size_t>self.data

    @property
    def prop(self):
        """What may be done with the pages."""
        self.check()
        return PageProperty(True, self.writable, self.flags & ENTRY_EXECUTE != 0)

    @property
    def kernel_mappings(self):
        """Mappings of the kernel's that it takes; see `map_budget`."""
        self.check()
        return self.space.where.mappings

    @property
    def meta_type(self):
        """The base of the metadata of all its frames: they are untyped."""
        self.check()
        return UntypedFrameMeta

    @property
    @cython.critical_section
    def frames(self):
        """The frames in the order of their addresses: a `FrameVec` with references of its own.

        Raises
        ------
        FrameTypeError
            If they are not of one metadata type.
        """
        self.check()
        return frames_at(self.space, 0, self.count)

    @cython.critical_section
    def append(self, frames):
        """Map more frames behind those that are mapped, without copying any.

        What was there stays at its addresses. A view shows what there was when it was made.

        Parameters
        ----------
        frames : UFrame, USegment, FrameVec or iterable of them
            They are moved: their references become those of the mapping.

        Raises
        ------
        OutOfBoundError
            If they do not fit into the addresses that were reserved.
        FrameTypeError, MovedError, BufferError, OutOfFramesError, MapBudgetError, OSError, MemoryError
            As `VmCursor.map` does; all stays as it was.
        """
        handles = handles_of(frames)
        self.check()
        add(self, handles)

    @cython.critical_section
    def array(self, shape=None, dtype="u1", *, order="C"):
        """Return a NumPy array over what is mapped.

        Parameters
        ----------
        shape : int or tuple of int, optional
            As many elements as there are, by default.
        dtype : data-type
            Anything but objects; bytes by default.
        order : {"C", "F"}
            Rows or columns first.

        Returns
        -------
        FrameArray
            Over the first bytes. It is read-only if the mapping is, and is pickled by
            handle if the arena is shared and the frames are of one metadata type.

        Raises
        ------
        OutOfBoundError
            If what is mapped is smaller.
        FrameTypeError
            If the data type holds objects.
        """
        cdef geometry layout
        self.check()
        dtype = numpy.dtype(dtype)
        if shape is None:
            shape = self.nbytes // max(dtype.itemsize, 1)
        lay_out(&layout, shape, dtype, order)
        self.check()        # the user's code may have dropped it
        if layout.size > self.nbytes:
            raise OutOfBoundError(f"an array of {layout.size} bytes does not fit into {self.nbytes} bytes")
        array = array_over(
            self, layout.ndim, layout.lengths, layout.strides if order == "F" else NULL, dtype, 0, False)
        self.check()        # another thread may have dropped it before the array was a view
        return array

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def drop(self):
        """Unmap everything and give up the references, now; with live views, when the last goes."""
        # Not check(): like a handle's, the references can be given up whatever became of the space.
        if self.dropped or self.space is None:
            raise_moved(self)
        self.dropped = True
        if self.exports == 0:
            self.space.close_down()

    @cython.critical_section
    def __getbuffer__(self, Py_buffer *buffer, int flags):
        self.check()
        fill_buffer(buffer, self, self.data, self.nbytes, not self.writable, flags)
        self.exports += 1

    @cython.critical_section
    def __releasebuffer__(self, Py_buffer *buffer):
        self.unexport()

    cdef void unexport(self) noexcept:
        self.exports -= 1
        if self.dropped and self.exports == 0:
            self.space.close_down()

    cdef FrameVec frames_of(self, uint64_t first, uint64_t count):
        return frames_at(self.space, first, count)

    def __enter__(self):
        self.check()
        return self

    @cython.critical_section
    def __exit__(self, *exc_info):
        if not self.dropped:
            self.drop()

    def __repr__(self):
        if self.dropped or self.space is None:
            return f"<{type(self).__name__} dropped>"
        return (f"<{type(self).__name__} of {self.count} frames at {<size_t>self.data:#x}: "
                f"{self.space.where.mappings} kernel mappings>")


@cython.final
@cython.no_gc
cdef class Ring(Mapping):
    """Frames twice in a row, so that a window never wraps; had from `PhysicalMemory.ring`.

    The buffer is twice as long as the ring: what is written in one half is seen in the other.
    """

    @property
    def size(self):
        """Bytes of the ring: half of its buffer."""
        self.check()
        return self.nbytes // 2

    def append(self, frames):
        """Raise `TypeError`: a ring has the size that it was made with."""
        raise TypeError("a ring can't grow")

    def window(self, start, length=None):
        """Return a memoryview that begins anywhere in the ring and goes on over its end.

        Parameters
        ----------
        start : int
            Where it begins, modulo the size of the ring.
        length : int, optional
            Bytes; the whole ring by default.

        Raises
        ------
        OutOfBoundError
            If it would be longer than the ring, or of less than nothing.
        """
        start = as_int(start)
        length = None if length is None else as_int(length)
        self.check()
        size = self.nbytes // 2
        if length is None:
            length = size
        if not 0 <= length <= size:
            raise OutOfBoundError(f"a window of {length} bytes is not within a ring of {size}")
        start %= size
        return memoryview(self)[start:start + length]
