# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport uint32_t, uint64_t

from pageframe._core.arena cimport pf_arena, pf_event, pf_lane
from pageframe._core.slot cimport pf_slot


cdef extern from "origin.h" nogil:
    uint64_t pf_now()


cdef extern from "poison.h" nogil:
    enum:
        PF_POISON_BYTE

    ctypedef struct pf_release:
        uint64_t time
        uint32_t client
        uint32_t pid

    void pf_poison_again(const pf_arena *, pf_slot *, uint32_t client)
    bint pf_poison_sound(const pf_arena *, uint64_t frame)


cdef extern from "trace.h" nogil:
    enum:
        PF_EVENT_UNIQUE
        PF_EVENT_SHARE
        PF_EVENT_REPURPOSE
        PF_EVENT_MAP
        PF_EVENT_UNMAP
        PF_EVENT_SEND
        PF_EVENT_LOAD

    void pf_note(pf_arena *, unsigned kind, uint64_t frame)
    bint pf_event_read(const pf_event *, uint64_t place, pf_event *event)


cdef extern from "ledger.h" nogil:
    enum:
        PF_OP_NONE
        PF_OP_CLAIM
        PF_OP_FREE
        PF_OP_MORE
        PF_OP_LESS
        PF_LEDGER_MAX

    void pf_op_write(pf_lane *, unsigned op, uint64_t frame)
    void pf_op_begin(const pf_arena *, pf_lane *, unsigned op, uint64_t frame)
    void pf_op_end(const pf_arena *, pf_lane *)
    void pf_ledger_claim(pf_arena *, pf_lane *, uint64_t frame)
    void pf_ledger_free(pf_arena *, uint32_t *ledger, pf_lane *, uint64_t frame)
    int pf_ref_inc(pf_arena *, pf_slot *)
    int pf_ref_get(pf_arena *, pf_slot *)
    bint pf_ref_put(pf_arena *, pf_slot *)
    void pf_end_life(pf_arena *, pf_slot *)
    void pf_end_life_of(pf_arena *, pf_slot *, uint32_t client)
    # One name for each store that a kill may come before: step.h.
    void pf_step(int)
    enum:
        PF_S_claim_bit
        PF_S_claim_kept
        PF_S_free_kept
        PF_S_free_bit
        PF_S_take_kept
        PF_S_take_kept_bit
        PF_S_chunk_lane
        PF_S_trim_type
        PF_S_begin_type
        PF_S_begin_storage
        PF_S_put_mark
        PF_S_repurpose_generation
        PF_S_list_link
        PF_S_list_id
        PF_S_list_unlink
        PF_S_list_no_id
        PF_S_orphan_ledger
        PF_S_orphan_total
        PF_S_orphan_count
        PF_S_adopt_count
        PF_S_adopt_ledger
        PF_S_adopt_total
        PF_S_join_describe
        PF_S_join_state
        PF_S_join_count
        PF_S_leave_area
        PF_S_leave_state
        PF_S_reap_count
        PF_S_reap_ledger
        PF_S_reap_sub
        PF_S_reap_mark
        PF_S_reap_busy
        PF_S_reap_chunk
        PF_S_reap_lanes
        PF_S_audit_busy
        PF_S_audit_ledger
        PF_S_audit_count
        PF_S_fork_count
        PF_S_fork_ledger
        PF_S_ticket_take
        PF_S_ticket_fill
        PF_S_ticket_count
        PF_S_ticket_done
        PF_S_ticket_live
        PF_S_redeem_take
        PF_S_redeem_done
        PF_S_redeem_ledger
        PF_S_release_take
        PF_S_release_done
        PF_S_release_count
        PF_S_ticket_free
        PF_S_type_entry
        PF_S_type_count
        PF_S_type_flags
