# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Fork: what a child gets of the arenas of its parent.

Of a shared arena the child becomes a client of its own.  Before the fork the parent
takes a place for it, locks that through a file description of its own, and within
fork() gives the child a reference for each of its own.  Then the child, whatever happens
to either, holds what the parent held: it needs only to let go of the parent's file
description and to use its own place.  Frames that are UNIQUE have one owner and stay
with the parent.

Of a private arena the child gets a copy.  Anonymous memory the kernel copies as it is
written to.  Memory that can be mapped more than once (vm_space.pyx) is a file that the
child would share with its parent, so within fork() the parent copies the frames that
are used to a file for the child.

The child turns to what is its own within fork(), too.  The interpreter clears what the
parent's other threads referred to before it calls any hook in the child, and what ends
there must not end for the parent.
"""

import os
import weakref
from threading import RLock

from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close

from pageframe._core import backing
from pageframe._core.allocator cimport my_lane, next_bit
from pageframe._core.arena cimport (
    PF_CLIENT_FREE, PF_POISON, Arena, pf_ledger_of, pf_let_go, pf_slot_at)
from pageframe._core.client cimport (
    become, describe, ledger_walk, lock_place, next_held, use_place, walk_ledger)
from pageframe._core.client import shared_arenas
from pageframe._core.errors import ClientsFullError
from pageframe._core.ledger cimport (
    PF_OP_MORE, PF_S_fork_count, PF_S_fork_ledger, pf_op_begin, pf_op_end, pf_step)
from pageframe._core.meta cimport forget_lock
from pageframe._core.slot cimport PF_OK, pf_load_relaxed_u32, pf_slot_get_many, pf_store_release_u32

private_arenas = weakref.WeakValueDictionary()  # those whose memory is a file

# What a process holds must not change between giving it to the child and the fork.  Hooks of
# Python's may let other threads run; so these take the places, and what is held is given by a
# handler of the C library, within fork() itself.
forking = RLock()               # one fork at a time: held from before it until after it
cdef list forking_arenas = []   # those of which a child has anything
cdef list turned_arenas = []    # in a child: those in which it is still to say who it is
cdef int (*note_spaces)() except -1     # NULL until vm_space is imported
cdef void (*leave_spaces)() noexcept

cdef extern from * nogil:
    """
    #include <pthread.h>
    #include <unistd.h>
    /* How many forks by way of Python this thread is in, one within the hooks of another. */
    static _Thread_local int pf_forking;
    """
    int pf_forking
    int pthread_atfork(void (*)() noexcept nogil, void *, void (*)() noexcept nogil)
    int64_t lseek(int, int64_t, int)
    int64_t pwrite(int, const void *, size_t, int64_t)
    int SEEK_DATA, SEEK_HOLE


# -- shared arenas -----------------------------------------------------------------------------

cdef int take_child_place(Arena mem) except -1:
    """Take a place for the child that is about to be forked."""
    cdef int64_t child
    fd = backing.open_again(mem.fd)
    try:
        child = lock_place(mem, fd, PF_CLIENT_FREE)
        if child < 0:
            mem.make_room()     # places of dead clients
            child = lock_place(mem, fd, PF_CLIENT_FREE)
        if child < 0:
            raise ClientsFullError(
                f"the arena has {mem.a.client_capacity} clients, the maximum: a forked child "
                "can't use it")
        use_place(mem, fd, child)
    except BaseException:
        os.close(fd)
        raise
    mem.child_fd = fd
    mem.child = child
    return 0


cdef void leave_child_file(Arena mem) noexcept:
    """Let go of the child's file, and with it of its place: they are the child's now, or nobody's."""
    if mem.child_fd >= 0:
        close(mem.child_fd)
        mem.child_fd = -1


cdef void give_child(Arena mem) noexcept nogil:
    """Give the child all that this process holds."""
    cdef ledger_walk walk = walk_ledger(mem, mem.a.client)
    cdef uint32_t *ledger = pf_ledger_of(&mem.a, mem.child)
    cdef uint64_t frame
    cdef uint32_t references
    while next_held(&walk, &frame):
        references = pf_load_relaxed_u32(&walk.ledger[frame])
        pf_op_begin(&mem.a, my_lane(&mem.a), PF_OP_MORE, frame)
        # What is UNIQUE, being built or torn down can't be had, and stays with us.
        pf_step(PF_S_fork_count)
        if pf_slot_get_many(pf_slot_at(&mem.a, frame), references) == PF_OK:
            pf_step(PF_S_fork_ledger)
            pf_store_release_u32(&ledger[frame], references)
    pf_op_end(&mem.a, my_lane(&mem.a))


cdef void forget(Arena mem, uint64_t start, uint64_t stop) noexcept:
    """In the child: it does not hold frames start .. stop - 1, whatever the parent does."""
    cdef uint64_t frame
    for frame in range(start, stop):
        if mem.a.raw[frame]:
            mem.a.raw[frame] = 0
        pf_let_go(&mem.a, frame)


cdef void use_child_place(Arena mem) noexcept:
    """In the child: use the place that the parent has taken."""
    if mem.fd >= 0:
        close(mem.fd)       # with it, the parent's lock would outlive the parent
        mem.fd = -1
    mem.a.epoch += 1
    mem.working = 0
    mem.registering = mem.reaper = 0
    mem.list_ids.clear()    # the parent may give them to lists of its own
    if mem.a.open and mem.child_fd >= 0:
        mem.fd = mem.child_fd
        mem.child_fd = -1
        become(mem, mem.child)
        return
    leave_child_file(mem)   # closed since it took a place
    if mem.a.open:
        mem.why_closed = (
            "this process was forked while the arena's table of clients was full, or by something "
            "that does not tell Python")
    mem.a.open = mem.a.closing = mem.a.leaving = False


cdef int settle(Arena mem) except -1:
    """In the child: say who uses the place, and forget what the parent alone holds."""
    cdef ledger_walk walk
    cdef uint64_t frame
    cdef uint64_t start = 0
    if not mem.a.open:
        if mem.a.watched:
            forget(mem, 0, mem.a.frames)
        shared_arenas.pop(id(mem), None)
        return 0
    if not mem.span:
        return 0
    describe(mem, mem.a.client)
    if mem.raw_used or mem.a.watched:
        walk = walk_ledger(mem, mem.a.client)
        while next_held(&walk, &frame):
            forget(mem, start, frame)
            start = frame + 1
        forget(mem, start, mem.a.frames)
    return 0


# -- private arenas ----------------------------------------------------------------------------

cdef bint copy_for_child(Arena mem) noexcept nogil:
    """Copy the frames that are used to the file for the child; free ones it has zeroed.

    Of a poisoned arena all: a fill that is gone would be taken for a write.
    """
    cdef int64_t data = lseek(mem.map_fd, 0, SEEK_DATA)
    cdef int64_t hole
    cdef uint64_t frame, stop, end
    while data >= 0:        # ENXIO: nothing but a hole from here on
        hole = lseek(mem.map_fd, data, SEEK_HOLE)
        end = (<uint64_t>hole + (1ull << mem.a.page_shift) - 1) >> mem.a.page_shift
        if mem.a.debug & PF_POISON:
            if not copy_range(mem, data, hole):
                return False
            frame = end
        else:
            frame = next_bit(&mem.a, <uint64_t>data >> mem.a.page_shift, end, True)
        while frame < end:
            stop = next_bit(&mem.a, frame, end, False)
            if not copy_range(
                    mem, max(frame << mem.a.page_shift, <uint64_t>data),
                    min(stop << mem.a.page_shift, <uint64_t>hole)):
                return False
            frame = next_bit(&mem.a, stop, end, True)
        data = lseek(mem.map_fd, hole, SEEK_DATA)
    return True


cdef bint copy_range(Arena mem, uint64_t start, uint64_t stop) noexcept nogil:
    cdef int64_t written
    while start < stop:
        written = pwrite(mem.child_fd, mem.a.base + start, stop - start, start)
        if written <= 0:
            return False
        start += written
    return True


cdef void use_copy(Arena mem) noexcept:
    """In the child: use the copy that the parent has made."""
    if mem.a.open and mem.child_fd >= 0:
        close(mem.map_fd)
        mem.map_fd = mem.child_fd
        mem.child_fd = -1
        try:
            mem.map_file()
            return
        except MemoryError:
            pass
    leave_child_file(mem)
    if mem.a.open:
        mem.why_closed = "the arena could not be copied when this process was forked"
    try:
        mem.release_memory()    # what is there is the parent's
    except MemoryError:
        pass


# -- hooks -------------------------------------------------------------------------------------

cdef void with_spaces(int (*note)() except -1, void (*leave)() noexcept) noexcept:
    """Have note() called within fork() before the child is given anything, leave() in the child.

    Nothing may be allocated from Python behind the first note: the collector could run.
    """
    global note_spaces, leave_spaces
    note_spaces, leave_spaces = note, leave


cdef void within_fork() noexcept nogil:
    """Called by fork() in the thread that forks."""
    if pf_forking:
        with gil:       # which this thread has
            try:
                note_arenas()
                if note_spaces != NULL:
                    note_spaces()
            except BaseException:       # no memory: the child finds them closed
                for mem in forking_arenas:
                    leave_child_file(<Arena>mem)
            for mem in forking_arenas:
                if not (<Arena>mem).a.open or (<Arena>mem).child_fd < 0:
                    continue
                if (<Arena>mem).span:
                    give_child(<Arena>mem)
                elif not copy_for_child(<Arena>mem):
                    leave_child_file(<Arena>mem)


cdef void within_child() noexcept nogil:
    """Called by fork() in the child."""
    if pf_forking:
        with gil:
            turn_to_own()


cdef void turn_to_own() noexcept:
    """In the child: use what is there for it.  No Python code may run before or in this."""
    global forking_arenas, turned_arenas
    forget_lock()
    for mem in forking_arenas:
        if (<Arena>mem).span:
            use_child_place(<Arena>mem)
        else:
            use_copy(<Arena>mem)
    if leave_spaces != NULL:
        leave_spaces()
    forking_arenas, turned_arenas = turned_arenas, forking_arenas


if pthread_atfork(within_fork, NULL, within_child):
    raise MemoryError("no memory for a fork handler")


cdef int note_arenas() except -1:
    """Note the arenas of which a child has anything, also those that a thread joins or leaves."""
    cdef Arena mem
    for mem in alive(shared_arenas) + alive(private_arenas):
        if mem.a.open or mem.fd >= 0 or mem.map_fd >= 0:
            note_arena(mem)
    return 0


cdef int note_arena(Arena mem) except -1:
    cdef Arena noted
    for noted in forking_arenas:
        if noted is mem:
            return 0
    forking_arenas.append(mem)
    return 0


cdef list alive(object known):
    """The values of a WeakValueDictionary, at one moment.

    Its iterators are Python code, in which other threads may run and signals arrive.
    """
    found = [reference() for reference in list(known.data.values())]
    return [value for value in found if value is not None]


def before_fork():
    """Take places and make files for the child."""
    global pf_forking
    errors = []
    forking.acquire()
    pf_forking += 1
    note_arenas()
    for mem in forking_arenas[:]:
        try:
            leave_child_file(mem)       # of a fork that a signal handler has interrupted
            if not (<Arena>mem).a.open:
                continue
            if (<Arena>mem).span:
                take_child_place(mem)
            else:
                (<Arena>mem).child_fd = backing.create_private(mem.size)
            note_arena(mem)     # such a fork has forgotten it
        except BaseException as error:  # shown below; the child finds the arena closed
            errors.append(error)
    if errors:
        raise errors[0]


def after_in_parent():
    """Let go of what is the child's."""
    global pf_forking
    if not pf_forking:
        return      # interrupted while it waited for the fork of another thread
    pf_forking -= 1
    for mem in forking_arenas:
        leave_child_file(mem)
    forking_arenas.clear()
    forking.release()


def after_in_child():
    """Say in all arenas who this process is, and forget what the parent alone holds."""
    global forking, pf_forking
    if not pf_forking:      # forked by something that does not tell Python before
        for mem in forking_arenas:      # by another thread's fork
            leave_child_file(mem)
        note_arenas()
        turn_to_own()
    pf_forking = 0
    forking = RLock()
    forking_arenas.clear()
    errors = []
    while turned_arenas:
        try:
            settle(turned_arenas.pop())
        except BaseException as error:      # such as a signal's: the others are settled all the same
            errors.append(error)
    if errors:
        raise errors[0]


os.register_at_fork(
    before=before_fork, after_in_parent=after_in_parent, after_in_child=after_in_child)
