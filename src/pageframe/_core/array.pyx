# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Arrays: NumPy arrays over the frames of an arena.

A `FrameArray` is a `numpy.ndarray` in every respect but one: it is pickled by handle
(message.pyx).  Its memory is that of a segment, which it keeps through its base: a plain
array over a memoryview of the segment.  The view rests on the segment's references
(segment.pyx), so the frames stay as long as any array over them, slices included.

What is computed from such an array is an ordinary one, in ordinary memory.
"""

import operator

import numpy as np

from cpython.buffer cimport (
    PyBUF_STRIDED_RO, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer)
from libc.stdint cimport int64_t

from pageframe._core.arena cimport Arena, pf_bytes_at
from pageframe._core.errors import FrameTypeError, OutOfFramesError
from pageframe._core.segment cimport USegment, alloc_segment

ndarray = np.ndarray
frombuffer = np.frombuffer
uint8 = np.uint8


class FrameArray(np.ndarray):
    """A NumPy array whose memory is frames of an arena; had from `PhysicalMemory.array`.

    Of a shared arena it is pickled as a handle, a few dozen bytes whatever its size, and
    so are its slices. Whoever loads it sees the same memory; an array that is read-only
    arrives read-only.
    """

    __module__ = "pageframe"

    def __array_wrap__(self, array, context=None, return_scalar=False):
        """Leave what is computed from the array an ordinary one."""
        return array[()] if return_scalar else array


cdef object new_array(Arena mem, object shape, object dtype, object order, bint zeroed):
    """An array over fresh frames."""
    cdef USegment segment
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise FrameTypeError(f"an array of {dtype} holds references to objects, which frames can't")
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    try:
        shape = tuple(map(operator.index, shape))
    except TypeError:
        shape = (operator.index(shape),)
    size = dtype.itemsize
    for length in shape:
        if length < 0:
            raise ValueError(f"negative dimensions are not allowed: {shape}")
        size *= length
    mem.check_open()
    frames = max(1, -(-size >> mem.a.page_shift))
    if frames > mem.a.frames:
        raise OutOfFramesError(
            f"an array of {size} bytes takes {frames} frames, the arena has {mem.a.frames}")
    segment = alloc_segment(mem, frames, None, zeroed, None)
    return ndarray.__new__(
        FrameArray, shape, dtype, frombuffer(segment, uint8), 0, None, order)


cdef object array_like(Arena mem, object source):
    """An array over frames with the elements of another one; that one if it is of this arena."""
    cdef USegment segment
    source = np.asanyarray(source)
    if isinstance(source, FrameArray):
        segment = segment_of(source)
        if segment is not None and segment.mem is mem:
            return source
    order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
    array = new_array(mem, source.shape, source.dtype, order, False)
    array[...] = source
    return array


cdef object array_over(
        USegment segment, object shape, object dtype, object offset, object strides, bint readonly):
    """An array over a segment; frames, offset and strides must fit."""
    root = frombuffer(memoryview(segment).toreadonly() if readonly else segment, uint8)
    return ndarray.__new__(FrameArray, shape, dtype, root, offset, strides)


cdef USegment segment_of(object array):
    """The segment that an array lies in; None if it lies in other memory."""
    base = array.base
    while isinstance(base, ndarray):
        base = base.base
    if type(base) is memoryview:
        base = base.obj
    return base if type(base) is USegment else None


cdef int find_extent(object array, USegment segment, extent *found) except -1:
    """Which of a segment's frames an array lies in."""
    cdef Py_buffer view
    cdef int64_t low = 0
    cdef int64_t high
    cdef int64_t start, first
    cdef int i
    cdef Arena mem = segment.mem
    PyObject_GetBuffer(array, &view, PyBUF_STRIDED_RO)
    try:
        high = view.itemsize
        for i in range(view.ndim):
            if view.shape[i] == 0:
                low = 0
                high = 1        # no element at all: the frame where the first would be
                break
            if view.strides[i] < 0:
                low += (view.shape[i] - 1) * view.strides[i]
            else:
                high += (view.shape[i] - 1) * view.strides[i]
        start = <unsigned char *>view.buf - pf_bytes_at(&mem.a, 0)
        first = (start + low) >> mem.a.page_shift
        found.first = max(first, <int64_t>segment.first)
        found.count = ((start + max(high, low + 1) - 1) >> mem.a.page_shift) - found.first + 1
        found.offset = start - (found.first << mem.a.page_shift)
        found.readonly = view.readonly
        found.contiguous = PyBuffer_IsContiguous(&view, 67)     # "C"
    finally:
        PyBuffer_Release(&view)
    return 0


def readonly(array):
    """Return an array over the same frames that can't be made writable.

    Parameters
    ----------
    array : FrameArray
        Or a slice of one.

    Returns
    -------
    FrameArray
        With the same shape and elements. Setting its ``flags.writeable`` raises
        `ValueError`, here and wherever it is sent.

    Raises
    ------
    FrameTypeError
        If the array is not over frames.
    """
    cdef extent found
    cdef USegment segment = segment_of(array) if isinstance(array, ndarray) else None
    if segment is None:
        raise FrameTypeError(f"{type(array).__name__} is no array over frames")
    find_extent(array, segment, &found)
    part = segment.part(found.first - segment.first, found.first - segment.first + found.count)
    return array_over(part, array.shape, array.dtype, found.offset, array.strides, True)
