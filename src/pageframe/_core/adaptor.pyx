# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Adaptors: allocating through something that counts, limits or logs.

An adaptor has an account (account.h) and stands over an arena, or over another adaptor
whose account is the parent of its own.  It charges its account with the frames that an
allocation will take, asks its upstream for them, and settles the account with the frames
that came back; if the upstream raises, nothing has happened.

A frame counts from then on as long as this process holds it, whatever becomes of the
handle: clones and slices don't count twice, and it stops when its life ends or, in a
shared arena, when this process has no reference to it any more (pf_let_go() in arena.h).
What this process gets otherwise, by paddr or from a message, is in no account.  Nor are
the page-table frames of mappings.

The methods are compiled, so an allocation has no Python frame of an adaptor in its
traceback: tracemalloc shows the line of the user's that asked.

A forked child has accounts of its own, which say what it holds itself.
"""

import numpy

cimport cython
cimport numpy as np
from libc.stdint cimport uint32_t, uint64_t

from pageframe._core.arena cimport as_int, pf_arena, pf_frame_of, pf_slot_at
from pageframe._core.array cimport FrameBytes, bytes_of, geometry, lay_out
from pageframe._core.array import FrameArray
from pageframe._core.early import parse_size
from pageframe._core.errors import QuotaExceededError
from pageframe._core.handle cimport Handle, Holder, held
from pageframe._core.mapping cimport Mapping, Ring
from pageframe._core.memory cimport PhysicalMemory
from pageframe._core.page_table cimport frame_of_entry, lookup, span
from pageframe._core.segment cimport Segment
from pageframe._core.slot cimport (
    pf_load_relaxed_u64, pf_store_release_u32, pf_store_relaxed_u64)
from pageframe._core.vector cimport FrameVec

cdef extern from "account.h" nogil:
    enum:
        PF_LOG_ALLOCATE
        PF_LOG_FAILURE
        PF_TYPE_LIMIT

    int pf_accounts_setup()
    bint pf_account_watch(pf_arena *)
    pf_account *pf_account_claim(pf_account *parent)
    bint pf_account_charge(pf_account *, uint64_t frames)
    void pf_account_refund(pf_account *, uint64_t frames)
    void pf_account_add(pf_account *, uint32_t type, uint64_t frames)
    bint pf_account_tag(pf_arena *, pf_account *, uint32_t type, uint64_t frame)
    void pf_account_log(
        const pf_arena *, pf_account *, int event, uint32_t type, uint64_t first, uint64_t frames)
    pf_log *pf_log_open(int fd)
    void pf_log_break(pf_log *)
    int pf_log_flush(pf_log *, bint closes)

cdef extern from "<string.h>" nogil:
    char *strerror(int)

np.import_array()

if pf_accounts_setup() != 0:
    raise ImportError("no memory for the accounts of adaptors")


@cython.no_gc_clear     # its arena stays to the last
cdef class Adaptor:
    """Base of the adaptors of `pageframe.adaptors`: allocates as its upstream does.

    Parameters
    ----------
    upstream : PhysicalMemory or Adaptor
        What is asked for frames.

    Attributes
    ----------
    upstream
        What was given.
    mem : PhysicalMemory
        The arena at the bottom. What an adaptor has not itself is asked of it.
    """

    def __init__(self, upstream):
        cdef pf_account *parent = NULL
        cdef PhysicalMemory mem
        if isinstance(upstream, PhysicalMemory):
            mem = upstream
        elif isinstance(upstream, Adaptor):
            (<Adaptor>upstream).check()
            mem = (<Adaptor>upstream).mem
            parent = (<Adaptor>upstream).account
        else:
            raise TypeError(f"an adaptor stands over an arena or an adaptor, not {type(upstream).__name__}")
        mem.check_open()
        if not pf_account_watch(&mem.a):
            raise MemoryError(f"no memory for the accounts of {mem.a.frames} frames")
        with cython.critical_section(self):
            if self.account != NULL:
                raise TypeError("this adaptor is initialised already")
            self.account = pf_account_claim(parent)
            if self.account == NULL:
                raise MemoryError("this process has as many adaptors as it can")
            self.mem = mem
            self.upstream = upstream

    def __dealloc__(self):
        if self.account != NULL:
            if self.account.log != NULL:
                pf_log_flush(self.account.log, True)
            # Frames may still be charged: then the account goes on until they go.
            pf_store_release_u32(&self.account.owned, 0)

    cdef int check(self) except -1:
        if self.account == NULL:
            raise TypeError(f"this {type(self).__name__} was not initialised")
        return 0

    def __getattr__(self, name):
        if self.mem is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.mem, name)

    def __reduce__(self):
        raise TypeError(f"a {type(self).__name__} can't be pickled")

    def __enter__(self):
        self.check()
        return self

    def __exit__(self, *exc_info):
        self.close()

    def close(self):
        """Do nothing: there is nothing to close, and what was allocated stays."""

    def __repr__(self):
        if self.account == NULL:
            return f"<{type(self).__name__}>"
        return f"<{type(self).__name__} of {self.used_frames} frames over {self.upstream!r}>"

    # -- accounts ------------------------------------------------------------------------------

    @property
    def used_frames(self):
        """Frames that were allocated through this adaptor and that this process still holds."""
        self.check()
        return pf_load_relaxed_u64(&self.account.used)

    @property
    def used_bytes(self):
        """Bytes of these frames."""
        return self.used_frames << self.mem.a.page_shift

    def _set_limit(self, frames):
        self.check()
        self.account.limit = frames

    def _open_log(self, int fd):
        cdef pf_log *log
        self.check()
        with cython.critical_section(self):
            if self.account.log != NULL:
                raise TypeError("this adaptor has a log")
            log = pf_log_open(fd)
            if log == NULL:
                raise MemoryError("no memory for a log")
            self.account.log = log

    def _flush_log(self, bint closes):
        cdef int error
        self.check()
        error = pf_log_flush(self.account.log, closes) if self.account.log != NULL else 0
        if error:
            raise OSError(error, strerror(error).decode())

    def _figures(self):
        cdef pf_account *account = self.account
        self.check()
        return (pf_load_relaxed_u64(&account.peak), pf_load_relaxed_u64(&account.total),
                pf_load_relaxed_u64(&account.allocations))

    def _figures_by_type(self):
        cdef int i
        self.check()
        return [(pf_load_relaxed_u64(&self.account.used_by_type[i]),
                 pf_load_relaxed_u64(&self.account.peak_by_type[i])) for i in range(PF_TYPE_LIMIT)]

    def _reset(self):
        cdef pf_account *account = self.account
        cdef int i
        self.check()
        pf_store_relaxed_u64(&account.peak, pf_load_relaxed_u64(&account.used))
        pf_store_relaxed_u64(&account.total, 0)
        pf_store_relaxed_u64(&account.allocations, 0)
        for i in range(PF_TYPE_LIMIT):
            pf_store_relaxed_u64(
                &account.peak_by_type[i], pf_load_relaxed_u64(&account.used_by_type[i]))

    cdef uint64_t frames_of(self, object nbytes) except? 0:
        """Frames that so many bytes take, an array's at least one."""
        return min(max(1, -(-nbytes // (1 << self.mem.a.page_shift))), 1 << 40)

    cdef object run(self, uint64_t wanted, object method, tuple args, dict kwargs):
        """Allocate: charge the account, ask the upstream, settle."""
        cdef uint64_t charged = 0
        try:
            self.charge(wanted)
            charged = wanted
            handle = method(*args, **kwargs)
            self.settle(handle, wanted)
        except BaseException:
            pf_account_refund(self.account, charged)
            self.log_failure(wanted)
            raise
        return handle

    cdef int charge(self, uint64_t frames) except -1:
        """Charge the account, if the limit allows it."""
        cdef pf_account *account = self.account
        cdef unsigned shift = self.mem.a.page_shift
        if not pf_account_charge(account, frames):
            raise QuotaExceededError(
                f"{frames} frames ({frames << shift} bytes) wanted; of a limit of {account.limit} frames "
                f"({account.limit << shift} bytes) {pf_load_relaxed_u64(&account.charged)} are used")
        return 0

    cdef void log_failure(self, uint64_t wanted) noexcept:
        pf_account_log(&self.mem.a, self.account, PF_LOG_FAILURE, 0, 0, wanted)

    cdef int settle(self, object handle, uint64_t wanted) except -1:
        """Take the frames of a fresh handle into the account: these, and no others, are charged."""
        cdef uint64_t got = 0
        cdef uint64_t first = 0
        cdef uint64_t i, count, entry
        cdef uint32_t type_id = 0
        cdef unsigned level
        cdef pf_arena *a = &self.mem.a
        cdef FrameVec vec = None
        cdef Mapping mapping = None
        cdef object owner = handle
        cdef FrameBytes base
        if isinstance(handle, FrameArray):
            base = bytes_of(handle)
            owner = None if base is None else base.owner
        if not isinstance(owner, Holder) or (<Holder>owner).mem is not self.mem:
            raise TypeError(
                f"{type(self.upstream).__name__} gave {type(handle).__name__}, no frames of the arena")
        with cython.critical_section(owner):    # another thread may know it
            if isinstance(owner, FrameVec):
                vec = owner
                vec.check()
                count = vec.count
            elif isinstance(owner, Mapping):
                mapping = owner
                mapping.check()
                count = mapping.count // 2 if isinstance(owner, Ring) else mapping.count
            elif isinstance(owner, Segment):
                (<Segment>owner).check()
                first, count = (<Segment>owner).first, (<Segment>owner).count
            else:
                first, count = pf_frame_of(a, held(<Handle?>owner)), 1
            if count > wanted:      # a user's own upstream gives what it likes
                self.charge(count - wanted)
                wanted = count
            # From here on nothing raises.
            for i in range(count):
                if vec is not None:
                    got += self.take(vec.frames[i], &type_id)
                elif mapping is not None:
                    entry = lookup(&mapping.space.table, i, &level)
                    got += self.take(frame_of_entry(entry) + (i & (span(level) - 1)), &type_id)
                else:
                    got += self.take(first + i, &type_id)
        pf_account_add(self.account, type_id, got)
        if self.account.log != NULL:
            pf_log_break(self.account.log)
        pf_account_refund(self.account, wanted - got)
        return 0

    cdef bint take(self, uint64_t frame, uint32_t *type_id) noexcept:
        """Tag a frame, all of a handle having one type; False if it does not count here."""
        cdef pf_arena *a = &self.mem.a
        type_id[0] = pf_slot_at(a, frame).type_id & (PF_TYPE_LIMIT - 1)
        if not pf_account_tag(a, self.account, type_id[0], frame):
            return False
        pf_account_log(a, self.account, PF_LOG_ALLOCATE, type_id[0], frame, 1)
        return True

    # -- allocation ----------------------------------------------------------------------------

    def alloc_frame(self, meta=None, bint zeroed=True):
        """Allocate one frame; as `PhysicalMemory.alloc_frame`.

        Raises
        ------
        QuotaExceededError
            If that is more than the limit of an adaptor allows. Nothing is taken then.
        """
        self.check()
        return self.run(1, self.upstream.alloc_frame, (meta, zeroed), {})

    def alloc_frames(self, n, meta=None, bint zeroed=True):
        """Allocate many frames; as `PhysicalMemory.alloc_frames`, and raises as `alloc_frame`."""
        n = as_int(n)
        self.check()
        return self.run(min(max(n, 0), 1 << 40), self.upstream.alloc_frames, (n, meta, zeroed), {})

    def alloc_segment(self, n, meta_fn=None, bint zeroed=True, align=None):
        """Allocate contiguous frames; as `PhysicalMemory.alloc_segment`, and raises as `alloc_frame`."""
        n = as_int(n)
        self.check()
        return self.run(
            min(max(n, 0), 1 << 40), self.upstream.alloc_segment, (n, meta_fn, zeroed, align), {})

    def array(self, shape, dtype=float, *, order="C", bint zeroed=True):
        """Allocate an array; as `PhysicalMemory.array`, and raises as `alloc_frame`."""
        cdef geometry layout
        dtype = numpy.dtype(dtype)
        try:
            shape = tuple(shape)        # an iterator gives its numbers once
        except TypeError:
            pass
        lay_out(&layout, shape, dtype, order)
        self.check()
        return self.run(
            self.frames_of(layout.size), self.upstream.array, (shape, dtype),
            {"order": order, "zeroed": zeroed})

    def zeros(self, shape, dtype=float, *, order="C"):
        """Allocate an array of zeros; see `array`."""
        return self.array(shape, dtype, order=order)

    def empty(self, shape, dtype=float, *, order="C"):
        """Allocate an array that shows what the frames' last users left; see `array`."""
        return self.array(shape, dtype, order=order, zeroed=False)

    def asarray(self, array):
        """Return an array over frames with the same elements; as `PhysicalMemory.asarray`.

        An array that lies in frames of the arena already is returned as it is, and counts
        where it did. Raises as `alloc_frame` does.
        """
        cdef FrameBytes base
        array = numpy.asanyarray(array)
        self.check()
        if isinstance(array, FrameArray):
            base = bytes_of(array)
            if base is not None and base.owner.mem is self.mem:
                return array
        return self.run(self.frames_of(array.nbytes), self.upstream.asarray, (array,), {})

    def ring(self, size, meta=None, bint zeroed=True):
        """Allocate a ring, each of its frames counted once; as `PhysicalMemory.ring`.

        Raises as `alloc_frame` does.
        """
        size = parse_size(size)
        self.check()
        return self.run(
            0 if size < 1 else self.frames_of(size), self.upstream.ring, (size, meta, zeroed), {})
