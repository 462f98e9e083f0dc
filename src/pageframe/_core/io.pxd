# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cdef class BytesCursor:
    cdef Py_buffer buffer
    cdef bint held          # the buffer is ours to release
    cdef unsigned char *at  # NULL: closed
    cdef unsigned char *end

    cdef int open(self, object target, int flags) except -1
    cdef int check(self) except -1
    cdef unsigned char *take(self, Py_ssize_t size) except NULL
    cdef void close(self) noexcept


cdef class VmReader(BytesCursor):
    pass


cdef class VmWriter(BytesCursor):
    pass


cdef VmReader reader_over(unsigned char *data, size_t size)
