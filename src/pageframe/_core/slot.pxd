# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "atomic.h" nogil:
    uint8_t pf_load_u8(const uint8_t *)
    uint16_t pf_load_u16(const uint16_t *)
    uint32_t pf_load_u32(const uint32_t *)
    uint64_t pf_load_u64(const uint64_t *)
    void pf_store_u8(uint8_t *, uint8_t)
    void pf_store_u16(uint16_t *, uint16_t)
    void pf_store_u32(uint32_t *, uint32_t)
    void pf_store_u64(uint64_t *, uint64_t)
    uint8_t pf_add_u8(uint8_t *, uint8_t)
    uint16_t pf_add_u16(uint16_t *, uint16_t)
    uint32_t pf_add_u32(uint32_t *, uint32_t)
    uint64_t pf_add_u64(uint64_t *, uint64_t)
    bint pf_cas_u8(uint8_t *, uint8_t, uint8_t)
    bint pf_cas_u16(uint16_t *, uint16_t, uint16_t)
    bint pf_cas_u32(uint32_t *, uint32_t, uint32_t)
    bint pf_cas_u64(uint64_t *, uint64_t, uint64_t)
    uint32_t pf_load_relaxed_u32(const uint32_t *)
    uint64_t pf_load_relaxed_u64(const uint64_t *)
    int32_t pf_load_relaxed_i32(const int32_t *)
    void pf_store_relaxed_u32(uint32_t *, uint32_t)
    void pf_store_relaxed_i32(int32_t *, int32_t)
    void pf_store_relaxed_u64(uint64_t *, uint64_t)
    uint32_t pf_add_relaxed_u32(uint32_t *, uint32_t)
    uint32_t pf_sub_relaxed_u32(uint32_t *, uint32_t)
    int32_t pf_add_relaxed_i32(int32_t *, int32_t)
    int32_t pf_exchange_i32(int32_t *, int32_t)
    uint64_t pf_exchange_u64(uint64_t *, uint64_t)
    uint32_t pf_exchange_u32(uint32_t *, uint32_t)
    void pf_store_release_u64(uint64_t *, uint64_t)
    void pf_store_release_u32(uint32_t *, uint32_t)
    uint64_t pf_and_release_u64(uint64_t *, uint64_t)
    bint pf_cas_release_u32(uint32_t *, uint32_t, uint32_t)
    bint pf_cas_acquire_u32(uint32_t *, uint32_t, uint32_t)
    bint pf_cas_acquire_u64(uint64_t *, uint64_t, uint64_t)
    bint pf_cas_acq_rel_u64(uint64_t *, uint64_t, uint64_t)
    uint64_t pf_add_relaxed_u64(uint64_t *, uint64_t)
    uint64_t pf_load_acquire_u64(const uint64_t *)
    uint32_t pf_load_acquire_u32(const uint32_t *)
    uint32_t pf_add_release_u32(uint32_t *, uint32_t)
    void pf_fence_acquire()
    uint32_t pf_sub_release_u32(uint32_t *, uint32_t)


cdef extern from "slot.h" nogil:
    enum:
        PF_SLOT_HEADER
        PF_SLOT_MAX
        PF_OK
        PF_E_IN_USE
        PF_E_UNUSED
        PF_E_BUSY
        PF_E_UNIQUE
        PF_E_OVERFLOW
    const uint64_t PF_UNUSED
    const uint64_t PF_UNIQUE
    const uint64_t PF_ORPHAN
    const uint64_t PF_BUSY
    const uint64_t PF_MAX

    ctypedef struct pf_slot:
        uint64_t count
        uint64_t generation
        uint32_t type_id
        uint32_t list_id
        unsigned char storage[40]

    uint64_t pf_slot_count(const pf_slot *)
    bint pf_slot_in_use(const pf_slot *)
    int pf_slot_taken(const pf_slot *)
    void pf_slot_publish(pf_slot *, uint64_t)
    void pf_slot_make_busy(pf_slot *)
    int pf_slot_inc(pf_slot *)
    int pf_slot_get(pf_slot *)
    int pf_slot_get_many(pf_slot *, uint64_t references)
    bint pf_slot_put(pf_slot *)
    bint pf_slot_try_unique(pf_slot *)
    void pf_slot_retire(pf_slot *)
    bint pf_slot_end(pf_slot *, uint64_t)
