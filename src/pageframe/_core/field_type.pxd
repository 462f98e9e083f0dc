# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport uint64_t


cdef enum Kind:
    UNSIGNED
    SIGNED
    FLOAT
    BOOL
    BYTES


@cython.final
cdef class FieldType:
    cdef readonly str name
    cdef readonly Py_ssize_t size
    cdef readonly str format    # as NumPy spells it
    cdef readonly bint atomic
    cdef Kind kind


cdef object from_word(FieldType t, uint64_t word)
cdef int to_word(FieldType t, object value, uint64_t *word) except -1
cdef void store_word(unsigned char *p, Py_ssize_t size, uint64_t word) noexcept nogil
cdef uint64_t add_word(unsigned char *p, Py_ssize_t size, uint64_t word) noexcept nogil
cdef bint cas_word(
    unsigned char *p, Py_ssize_t size, uint64_t expected, uint64_t desired) noexcept nogil
cdef object load_field(FieldType t, const unsigned char *p)
cdef int store_field(FieldType t, unsigned char *p, object value) except -1
cdef void copy_field(FieldType t, unsigned char *p, const unsigned char *value) noexcept
