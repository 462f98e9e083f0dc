# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Allocators of the user's own, in private arenas.

An arena asks such an allocator where to place frames and tells it which frames
have been released.  It decides nothing about ownership: the arena claims what
it was told to use, bit by bit, so an allocator that gives out a range twice,
unaligned or outside the arena gets an exception and no frame has two owners.
Frames claimed by their address it never hears of: it is told of the end of those
frames alone that it gave.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.ref cimport PyObject
from libc.string cimport memset

from pageframe._core.arena cimport as_int
from pageframe._core.errors import GetFrameError, NotAlignedError, OutOfFramesError

cdef extern from "Python.h":
    void PyErr_SetObject(object, object)
    void PyErr_Fetch(PyObject **, PyObject **, PyObject **)
    void PyErr_Restore(PyObject *, PyObject *, PyObject *)
    void PyErr_WriteUnraisable(object)


class Layout(NamedTuple):
    """What an allocator is asked for.

    Attributes
    ----------
    size
        Bytes; a multiple of the page size.
    align
        Bytes; a power of two, at least the page size.
    """

    size: int
    align: int


@runtime_checkable
class FrameAllocator(Protocol):
    """What an allocator of the user's own must have.

    Frames allocated together may come back one by one and in any order, and in
    any thread.
    """

    def alloc(self, layout):
        """Return the paddr of free memory of this layout, or None if there is none."""

    def dealloc(self, paddr, size):
        """Take back memory whose frames have been released."""

    def add_free_memory(self, paddr, size):
        """Learn of memory that can be given out; called when the arena is made."""


cdef int64_t user_alloc(Arena mem, uint64_t count, uint64_t align) except -1:
    """Ask for a run of frames."""
    cdef int64_t first
    allocator = mem.user_allocator
    layout = Layout(count << mem.a.page_shift, align << mem.a.page_shift)
    paddr = allocator.alloc(layout)
    if paddr is None:
        raise OutOfFramesError(f"{type(allocator).__name__}.alloc({layout}) gave none")
    paddr = as_int(paddr)
    try:
        first = mem.frame_at(paddr)
        mem.frame_stop(paddr + layout.size)
        if first % align:
            raise NotAlignedError(f"paddr {paddr:#x} is not a multiple of {layout.align}")
    except GetFrameError as error:
        raise type(error)(f"{type(allocator).__name__}.alloc({layout}): {error}") from None
    return first


cdef void user_given(Arena mem, uint64_t first, uint64_t count) noexcept:
    """Remember frames that the allocator gave and that have been claimed."""
    memset(PyByteArray_AS_STRING(mem.given) + first, 1, count)


cdef void user_dealloc(Arena mem, uint64_t first, uint64_t count, bint tell) noexcept:
    """Tell the arena's user allocator that frames are free again, if it gave them."""
    cdef char *given = PyByteArray_AS_STRING(mem.given) + first
    cdef PyObject *waiting[3]   # an exception on its way
    if not given[0]:
        return
    memset(given, 0, count)
    if not tell:
        return
    PyErr_Fetch(&waiting[0], &waiting[1], &waiting[2])
    call_dealloc(mem, first, count)
    PyErr_Restore(waiting[0], waiting[1], waiting[2])


cdef void call_dealloc(Arena mem, uint64_t first, uint64_t count) noexcept:
    allocator = mem.user_allocator
    try:
        allocator.dealloc(first << mem.a.page_shift, count << mem.a.page_shift)
    except BaseException as error:
        # Nobody to raise it to: the frames are free, whatever the allocator thinks.
        PyErr_SetObject(type(error), error)
        PyErr_WriteUnraisable(allocator)
