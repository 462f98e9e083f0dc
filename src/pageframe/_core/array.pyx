# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Arrays: NumPy arrays over the frames of an arena.

A `FrameArray` is a `numpy.ndarray` in every respect but one: it is pickled by handle
(message.pyx).  Its memory is that of a segment, or of frames that are mapped one behind
another (mapping.pyx), which it keeps through its base, the `FrameBytes`.  Like any view
they rest on the references of that (segment.pyx), so the frames stay as long as any
array over them, slices included.

What is computed from such an array is an ordinary one, in ordinary memory.
"""

import operator

import numpy

cimport cython
cimport numpy as np
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint64_t

from pageframe._core.arena cimport Arena, fill_buffer, pf_bytes_at
from pageframe._core.errors import ArenaDamagedError, FrameTypeError, OutOfFramesError
from pageframe._core.segment cimport USegment

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(
        PyTypeObject *, np.dtype, int, np.npy_intp *, np.npy_intp *, void *, int, PyObject *)

np.import_array()


@cython.no_gc
cdef class VirtualBytes:
    cdef void unexport(self) noexcept:
        """A view has gone."""

    cdef FrameVec frames_of(self, uint64_t first, uint64_t count):
        """References to the frames of some pages."""


cdef unsigned char *locate(Holder owner, uint64_t *size) except NULL:
    """The bytes of a segment or of something mapped."""
    if not isinstance(owner, USegment):
        if not isinstance(owner, VirtualBytes):
            raise FrameTypeError(f"{owner!r} has no bytes for an array")
        size[0] = (<VirtualBytes>owner).nbytes
        return (<VirtualBytes>owner).data
    size[0] = (<USegment>owner).count << owner.mem.a.page_shift
    return pf_bytes_at(&owner.mem.a, (<USegment>owner).first)


class FrameArray(numpy.ndarray):
    """A NumPy array whose memory is frames of an arena; had from `PhysicalMemory.array`.

    Of a shared arena it is pickled as a handle, a few dozen bytes whatever its size, and
    so are its slices. Whoever loads it sees the same memory; an array that is read-only
    arrives read-only.
    """

    __module__ = "pageframe"
    __slots__ = ()

    def __array_wrap__(self, array, context=None, return_scalar=False):
        """Leave what is computed from the array an ordinary one."""
        return array[()] if return_scalar else array


cdef int lay_out(geometry *found, object shape, object dtype, object order) except -1:
    """What an array of a shape takes; runs the user's code."""
    cdef int64_t stride
    cdef int i
    if dtype.hasobject:
        raise FrameTypeError(f"an array of {dtype} holds references to objects, which frames can't")
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    try:
        shape = tuple(map(operator.index, shape))
    except TypeError:
        shape = (operator.index(shape),)
    size = dtype.itemsize
    stride = size
    for length in shape:
        if length < 0:
            raise ValueError(f"negative dimensions are not allowed: {shape}")
        size *= length
    if len(shape) > MAX_DIMS:
        raise ValueError(f"an array has {MAX_DIMS} dimensions at the most, not {len(shape)}")
    found.ndim = len(shape)
    found.size = min(size, 1 << 63)
    if size >= 1 << 63:
        return 0        # nothing has room for it
    for i in range(found.ndim):
        found.lengths[i] = shape[i]
    for i in range(found.ndim if order == "F" else 0):
        found.strides[i] = stride
        stride *= max(found.lengths[i], 1)
    return 0


cdef object new_array(Arena mem, object shape, object dtype, object order, bint zeroed):
    """An array over fresh frames."""
    cdef geometry layout
    cdef uint64_t frames
    dtype = numpy.dtype(dtype)
    lay_out(&layout, shape, dtype, order)
    mem.check_open()
    frames = max(<uint64_t>1, (layout.size + (1ull << mem.a.page_shift) - 1) >> mem.a.page_shift)
    if frames > mem.a.frames:
        raise OutOfFramesError(
            f"an array of {layout.size} bytes takes {frames} frames, the arena has {mem.a.frames}")
    return array_over(
        mem.room_for(frames, zeroed), layout.ndim, layout.lengths,
        layout.strides if order == "F" else NULL, dtype, 0, False)


cdef object array_like(Arena mem, object source):
    """An array over frames with the elements of another one; that one if it is of this arena."""
    cdef FrameBytes base
    source = numpy.asanyarray(source)
    if isinstance(source, FrameArray):
        base = bytes_of(source)
        if base is not None and base.owner.mem is mem:
            return source
    order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
    array = new_array(mem, source.shape, source.dtype, order, False)
    array[...] = source
    return array


cdef bint add_extent(int64_t length, int64_t stride, int64_t size, int64_t *low, int64_t *high) noexcept:
    """Add a dimension to an extent; False if it would be larger than size, whatever the figures."""
    if length < 0:
        return False
    if length <= 1 or stride == 0:
        return True
    if not -size <= stride <= size or length - 1 > size // abs(stride):
        return False
    if stride < 0:
        low[0] += (length - 1) * stride
    else:
        high[0] += (length - 1) * stride
    return high[0] - low[0] <= size


cdef object array_over(
        Holder owner, int ndim, const int64_t *lengths, const int64_t *strides, np.dtype dtype,
        uint64_t offset, bint readonly):
    """An array over a segment or something mapped; without strides, in C order.

    What was pickled may say anything, so nothing is believed.
    """
    cdef int64_t steps[MAX_DIMS]
    cdef uint64_t room
    cdef unsigned char *data = locate(owner, &room)
    cdef int64_t size = room
    cdef int64_t low = 0
    cdef int64_t high = dtype.itemsize
    cdef int64_t stride = high
    cdef bint fits = 0 <= ndim <= MAX_DIMS and high <= size and offset <= <uint64_t>size
    cdef bint empty = False
    cdef np.ndarray array
    cdef FrameBytes base
    cdef int i
    if dtype.hasobject:
        raise FrameTypeError(f"an array of {dtype} holds references to objects, which frames can't")
    for i in range(ndim - 1 if fits else -1, -1, -1):
        empty = empty or lengths[i] == 0
    for i in range(ndim - 1 if fits else -1, -1, -1):
        steps[i] = strides[i] if strides != NULL else stride
        fits = fits and (empty and lengths[i] >= 0 or add_extent(lengths[i], steps[i], size, &low, &high))
        if fits and not empty:
            stride *= lengths[i]
    if empty:
        low = high = 0
    if not fits or not 0 <= <int64_t>offset + low <= <int64_t>offset + high <= size:
        raise ArenaDamagedError(f"this array does not fit its frames of {size} bytes")
    base = FrameBytes.__new__(FrameBytes)
    base.owner = owner
    base.data = data
    base.size = size
    base.readonly = readonly = readonly or (
        isinstance(owner, VirtualBytes) and not (<VirtualBytes>owner).writable)
    with cython.critical_section(owner):
        owner.exports += 1
    Py_INCREF(dtype)        # PyArray_NewFromDescr() takes the reference
    array = PyArray_NewFromDescr(
        <PyTypeObject *>FrameArray, dtype, ndim, <np.npy_intp *>lengths, <np.npy_intp *>steps,
        data + offset, 0 if readonly else np.NPY_ARRAY_WRITEABLE, NULL)
    np.set_array_base(array, base)
    np.PyArray_UpdateFlags(array, np.NPY_ARRAY_UPDATE_ALL)
    return array


@cython.final
@cython.no_gc
cdef class FrameBytes:
    """The bytes of a segment, or of something mapped, as the base of the arrays over them."""

    def __init__(self, *args, **kwargs):
        raise TypeError("FrameBytes are had as the base of a FrameArray")

    def __dealloc__(self):
        if self.owner is None:
            return
        with cython.critical_section(self.owner):
            if isinstance(self.owner, USegment):
                (<USegment>self.owner).unexport()
            else:
                (<VirtualBytes>self.owner).unexport()

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.owner is None:
            raise BufferError("these FrameBytes belong to no array")
        fill_buffer(buffer, self, self.data, self.size, self.readonly, flags)

    def __reduce__(self):
        raise TypeError("FrameBytes can't be pickled")


cdef FrameBytes bytes_of(np.ndarray array):
    """The bytes that an array lies in; None if it lies in other memory."""
    cdef object base = np.get_array_base(array)
    while isinstance(base, np.ndarray):
        base = np.get_array_base(base)
    return base if type(base) is FrameBytes else None


cdef int find_extent(np.ndarray array, extent *found) except -1:
    """Which pages of its bytes an array lies in."""
    cdef int64_t low = 0
    cdef int64_t high = np.PyArray_ITEMSIZE(array)
    cdef int64_t start, length, stride
    cdef uint64_t end
    cdef int i
    cdef FrameBytes base = bytes_of(array)
    cdef unsigned shift = base.owner.mem.a.page_shift
    for i in range(np.PyArray_NDIM(array)):
        length, stride = np.PyArray_DIM(array, i), np.PyArray_STRIDE(array, i)
        if length == 0:
            low = high = 0
            break
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    start = <unsigned char *>np.PyArray_DATA(array) - base.data
    # Of an array without elements: the page where the first would be, if there is one.
    found.first = min((start + low) >> shift, (base.size - 1) >> shift)
    end = max((start + high - 1) >> shift, <int64_t>found.first)
    found.count = end - found.first + 1
    found.offset = start - (found.first << shift)
    found.readonly = not np.PyArray_ISWRITEABLE(array)
    found.contiguous = np.PyArray_IS_C_CONTIGUOUS(array)
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
    cdef FrameBytes base = bytes_of(array) if isinstance(array, np.ndarray) else None
    if base is None:
        raise FrameTypeError(f"{type(array).__name__} is no array over frames")
    find_extent(array, &found)
    if isinstance(base.owner, USegment):
        part = (<USegment>base.owner).part(found.first, found.first + found.count)
    else:
        part = base.owner
        found.offset += found.first << base.owner.mem.a.page_shift
    return array_over(
        part, np.PyArray_NDIM(array), <const int64_t *>np.PyArray_DIMS(array),
        <const int64_t *>np.PyArray_STRIDES(array), array.dtype, found.offset, True)
