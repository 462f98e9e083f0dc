# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Field types: what a metadata field may hold, and how it lies in memory.

Field types are ready-made, `bytes_[n]` aside.  Integers are loaded and stored in
one piece whatever their size: a field lies at its natural alignment, so it never
tears, whoever writes it meanwhile.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pageframe._core.arena cimport as_int
from pageframe._core.slot cimport (
    PF_SLOT_MAX, pf_add_u8, pf_add_u16, pf_add_u32, pf_add_u64, pf_cas_u8, pf_cas_u16, pf_cas_u32,
    pf_cas_u64, pf_load_u8, pf_load_u16, pf_load_u32, pf_load_u64, pf_store_u8, pf_store_u16,
    pf_store_u32, pf_store_u64)


@cython.final
cdef class FieldType:
    """The type of a metadata field: what an annotation of a metadata class names."""

    def __init__(self, *args, **kwargs):
        raise TypeError("field types are ready-made: u8 … u64, i8 … i64, f32, f64, bool_, "
                        "bytes_[n] and the atomic integers")

    @property
    def alignment(self):
        return 1 if self.kind == BYTES else self.size

    def __getitem__(self, size):
        if self.kind != BYTES or self.size:
            raise TypeError(f"{self.name} takes no size")
        if not isinstance(size, int):
            raise TypeError(f"bytes_[n] takes a number of bytes, not {size!r}")
        if not 1 <= size <= PF_SLOT_MAX:
            raise ValueError(f"bytes_[n] takes 1 to {PF_SLOT_MAX} bytes, not {size}")
        return field_type(f"bytes_[{size}]", BYTES, size, f"S{size}")

    def __repr__(self):
        return self.name

    def __reduce__(self):
        return self.name


cdef FieldType field_type(str name, Kind kind, Py_ssize_t size, str format, bint atomic=False):
    cdef FieldType t = FieldType.__new__(FieldType)
    t.name = name
    t.kind = kind
    t.size = size
    t.format = format
    t.atomic = atomic
    return t


u8 = field_type("u8", UNSIGNED, 1, "u1")
u16 = field_type("u16", UNSIGNED, 2, "u2")
u32 = field_type("u32", UNSIGNED, 4, "u4")
u64 = field_type("u64", UNSIGNED, 8, "u8")
i8 = field_type("i8", SIGNED, 1, "i1")
i16 = field_type("i16", SIGNED, 2, "i2")
i32 = field_type("i32", SIGNED, 4, "i4")
i64 = field_type("i64", SIGNED, 8, "i8")
f32 = field_type("f32", FLOAT, 4, "f4")
f64 = field_type("f64", FLOAT, 8, "f8")
bool_ = field_type("bool_", BOOL, 1, "?")
bytes_ = field_type("bytes_", BYTES, 0, "")
atomic_u8 = field_type("atomic_u8", UNSIGNED, 1, "u1", True)
atomic_u16 = field_type("atomic_u16", UNSIGNED, 2, "u2", True)
atomic_u32 = field_type("atomic_u32", UNSIGNED, 4, "u4", True)
atomic_u64 = field_type("atomic_u64", UNSIGNED, 8, "u8", True)
atomic_i8 = field_type("atomic_i8", SIGNED, 1, "i1", True)
atomic_i16 = field_type("atomic_i16", SIGNED, 2, "i2", True)
atomic_i32 = field_type("atomic_i32", SIGNED, 4, "i4", True)
atomic_i64 = field_type("atomic_i64", SIGNED, 8, "i8", True)


cdef object from_word(FieldType t, uint64_t word):
    """The Python integer that the low bytes of a word stand for."""
    cdef int unused = 64 - 8 * t.size
    if t.kind == SIGNED:
        return <int64_t>(word << unused) >> unused
    return word


cdef int to_word(FieldType t, object value, uint64_t *word) except -1:
    """The low bytes of a word that stand for a Python integer."""
    cdef object bits = 8 * t.size       # a Python integer, and so is what follows
    value = as_int(value)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if t.kind == SIGNED else (0, (1 << bits) - 1)
    if not low <= value <= high:
        raise OverflowError(f"{value} is not within {low} .. {high} of {t.name}")
    word[0] = value & 0xFFFFFFFFFFFFFFFF
    return 0


cdef uint64_t load_word(const unsigned char *p, Py_ssize_t size) noexcept nogil:
    if size == 8:
        return pf_load_u64(<const uint64_t *>p)
    if size == 4:
        return pf_load_u32(<const uint32_t *>p)
    if size == 2:
        return pf_load_u16(<const uint16_t *>p)
    return pf_load_u8(p)


cdef void store_word(unsigned char *p, Py_ssize_t size, uint64_t word) noexcept nogil:
    if size == 8:
        pf_store_u64(<uint64_t *>p, word)
    elif size == 4:
        pf_store_u32(<uint32_t *>p, <uint32_t>word)
    elif size == 2:
        pf_store_u16(<uint16_t *>p, <uint16_t>word)
    else:
        pf_store_u8(p, <uint8_t>word)


cdef uint64_t add_word(unsigned char *p, Py_ssize_t size, uint64_t word) noexcept nogil:
    if size == 8:
        return pf_add_u64(<uint64_t *>p, word)
    if size == 4:
        return pf_add_u32(<uint32_t *>p, <uint32_t>word)
    if size == 2:
        return pf_add_u16(<uint16_t *>p, <uint16_t>word)
    return pf_add_u8(p, <uint8_t>word)


cdef bint cas_word(
        unsigned char *p, Py_ssize_t size, uint64_t expected, uint64_t desired) noexcept nogil:
    if size == 8:
        return pf_cas_u64(<uint64_t *>p, expected, desired)
    if size == 4:
        return pf_cas_u32(<uint32_t *>p, <uint32_t>expected, <uint32_t>desired)
    if size == 2:
        return pf_cas_u16(<uint16_t *>p, <uint16_t>expected, <uint16_t>desired)
    return pf_cas_u8(p, <uint8_t>expected, <uint8_t>desired)


cdef object load_field(FieldType t, const unsigned char *p):
    if t.kind == UNSIGNED:
        return load_word(p, t.size)
    if t.kind == SIGNED:
        return from_word(t, load_word(p, t.size))
    if t.kind == BOOL:
        return p[0] != 0
    if t.kind == BYTES:
        return p[:t.size]
    return (<const double *>p)[0] if t.size == 8 else (<const float *>p)[0]


cdef int store_field(FieldType t, unsigned char *p, object value) except -1:
    cdef uint64_t word
    cdef Py_ssize_t length
    if t.kind == BYTES:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"{t.name} takes bytes, not {type(value).__name__}")
        value = bytes(value)
        length = PyBytes_GET_SIZE(value)
        if length > t.size:
            raise ValueError(f"{length} bytes are too many for {t.name}")
        memset(p, 0, t.size)
        memcpy(p, PyBytes_AS_STRING(value), length)
    elif t.kind == BOOL:
        p[0] = bool(value)
    elif t.kind == FLOAT:
        if t.size == 8:
            (<double *>p)[0] = value
        else:
            (<float *>p)[0] = value
    else:
        to_word(t, value, &word)
        store_word(p, t.size, word)
    return 0


cdef void copy_field(FieldType t, unsigned char *p, const unsigned char *value) noexcept:
    """Store a field's value in one piece, where it is an integer."""
    if t.kind == UNSIGNED or t.kind == SIGNED:
        store_word(p, t.size, load_word(value, t.size))
    else:
        memcpy(p, value, t.size)
