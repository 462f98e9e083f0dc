/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* What lies in an arena, and how this process finds it.
 *
 *   paddr 0: header | type registry | clients | tickets | bitfield | chunks | slots
 *   behind the last frame, in a shared arena: one area a client: its lanes, its ledger,
 *   and of a traced arena the rings of its lanes
 *
 * Everything in the arena is an offset or an index.  The header is at paddr 0;
 * the early allocator places the other tables in usable regions and the header
 * says where.  The areas of the clients are sparse, so they take no frames: a
 * page of one exists once its client has written there.  `pf_arena` is this
 * process's own view: the only pointers.
 */
#ifndef PAGEFRAME_ARENA_H
#define PAGEFRAME_ARENA_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "slot.h"

#define PF_MAGIC UINT64_C(0x00454d4152464750) /* "PGFRAME\0", little endian */
#define PF_VERSION 3
#define PF_BYTE_ORDER UINT32_C(0x01020304)
#define PF_TABLE_ALIGN 4096

/* The tables, in the order in which they are placed. */
enum {
    PF_TABLE_HEADER,
    PF_TABLE_TYPES,
    PF_TABLE_CLIENTS,
    PF_TABLE_TICKETS,
    PF_TABLE_BITS,
    PF_TABLE_CHUNKS,
    PF_TABLE_SLOTS,
    PF_TABLE_AREAS,
    PF_TABLES
};

typedef struct {
    uint64_t offset;
    uint64_t size;
} pf_table;

typedef struct {
    /* Never changes after creation; covered by the checksum. */
    uint64_t magic;
    uint32_t version;
    uint32_t byte_order;
    uint64_t size;
    uint64_t frames;
    uint32_t page_size;
    uint32_t slot_size;
    uint32_t type_capacity;
    uint32_t client_capacity;
    pf_table tables[PF_TABLES];
    unsigned char id[16];     /* of a shared arena: random, no other has it */
    uint64_t own_frames;      /* frames of the tables and of reserved and bad regions */
    uint64_t area_size;       /* bytes of a client's area */
    uint32_t ticket_capacity;
    uint32_t flags;
    uint64_t created;         /* when, in nanoseconds since the epoch */
    uint64_t checksum;        /* FNV-1a over everything above */
    unsigned char pad[256 - 232];
    /* Changes while the arena lives, each on a cache line of its own. */
    uint32_t type_count;
    unsigned char pad2[60];
    uint32_t last_list_id;
    unsigned char pad3[60];
    uint64_t last_ticket;     /* serial number */
    unsigned char pad4[56];
    uint32_t orphans;         /* frames whose on_drop waits for a process that knows the type */
    unsigned char pad5[60];
    uint64_t ticket_ttl;      /* nanoseconds that a ticket holds its frames */
    uint32_t gone;            /* the last client has left and taken the arena with it */
    uint32_t joined;          /* clients that have come: an audit sees whether one has meanwhile */
    unsigned char pad6[48];
} pf_header;

_Static_assert(offsetof(pf_header, tables) == 48, "no padding before the tables");
_Static_assert(offsetof(pf_header, checksum) == 224, "tables are 8 * 16 bytes");
_Static_assert(offsetof(pf_header, type_count) == 256, "own cache line");
_Static_assert(offsetof(pf_header, last_list_id) == 320, "own cache line");
_Static_assert(offsetof(pf_header, last_ticket) == 384, "own cache line");
_Static_assert(offsetof(pf_header, orphans) == 448, "own cache line");
_Static_assert(offsetof(pf_header, ticket_ttl) == 512, "own cache line");
_Static_assert(sizeof(pf_header) <= PF_TABLE_ALIGN, "the header fits its place");

/* Flags of an arena. */
#define PF_UNLINK_ON_LAST 1u /* its name goes with its last client */
#define PF_RESERVED_MEMORY 2u /* the file system has set aside all memory that is used */
#define PF_POISON 4u /* released frames are filled with a pattern: poison.h */
#define PF_TRACE 8u /* the last events of each lane are kept: trace.h */

/* A process that uses the arena.  Its lock on this record (backing.py), not this
 * record, says that it lives. */
typedef struct {
    uint32_t state;   /* PF_CLIENT_FREE or PF_CLIENT_USED */
    uint32_t pid;
    uint64_t started; /* nanoseconds since the epoch */
    char name[112];
} pf_client;

_Static_assert(sizeof(pf_client) == 128, "two cache lines");

#define PF_CLIENT_FREE 0u
#define PF_CLIENT_USED 1u

#define PF_TYPE_NAME 224

/* A metadata type: what every process must agree on about it. */
typedef struct {
    uint64_t fingerprint;
    uint32_t size;
    uint32_t flags;
    unsigned char reserved[16];
    char name[PF_TYPE_NAME];
} pf_type;

_Static_assert(sizeof(pf_type) == 256, "a registry entry");

/* Flags of a metadata type. */
#define PF_UNTYPED 1u
#define PF_LINKED 2u
#define PF_ON_DROP 4u
#define PF_ARENA 8u /* the arena's own: holds a count that nobody can drop */
#define PF_OPAQUE 16u /* this process has no class for it; never in the registry */

/* Those that every process must agree on.  The registry has PF_ON_DROP, too, once
 * any process has registered a class that has one. */
#define PF_REGISTERED (PF_UNTYPED | PF_LINKED | PF_ARENA)

/* 512 frames: their bits are one cache line. */
#define PF_CHUNK 512
#define PF_CHUNK_SHIFT 9
#define PF_CHUNK_WORDS 8

/* Free frames of a chunk that its lane has not counted itself, and which lane
 * has the chunk reserved (number + 1; 0: none). */
typedef struct {
    int32_t free;
    uint32_t lane;
} pf_chunk;

_Static_assert(sizeof(pf_chunk) == 8, "a chunk's counters");

/* A thread's place in the arena.  Only its thread writes it, except that anybody
 * may take the frame that it keeps (from nonzero to 0, by exchange). */
typedef struct {
    uint64_t kept;  /* frame + 1, reserved to the lane: its bit is set; 0: none */
    uint64_t hint;  /* frame whose bit was cleared last: still warm in the cache */
    uint32_t chunk; /* reserved chunk + 1; 0: none */
    int32_t free;   /* its free frames, as far as counted here */
    uint64_t op;    /* operation in progress, of a shared arena: ledger.h */
    uint64_t ops;   /* operations so far, of all clients that have had the lane: an audit sees
                     * whether there was one meanwhile */
    uint64_t events; /* traced so far */
    unsigned char pad[16];
} pf_lane;

_Static_assert(sizeof(pf_lane) == 64, "a lane is a cache line");

#define PF_LANES 64
#define PF_LANES_SIZE (PF_LANES * sizeof(pf_lane))

_Static_assert(PF_LANES_SIZE % PF_TABLE_ALIGN == 0, "a ledger begins on a page of its own");

/* What a lane has begun: trace.h. */
typedef struct {
    uint64_t serial; /* number of the event among those of the lane; 0: being written, or none */
    uint64_t time;   /* CLOCK_BOOTTIME, nanoseconds */
    uint64_t what;   /* frame << 8 | kind */
    uint32_t pid;    /* places of clients, and with them lanes, pass from process to process */
    uint32_t unused;
} pf_event;

_Static_assert(sizeof(pf_event) == 32, "two events a cache line");

#define PF_RING 256 /* events that a lane keeps */
#define PF_RINGS_SIZE (PF_LANES * PF_RING * sizeof(pf_event))

_Static_assert(PF_RINGS_SIZE % PF_TABLE_ALIGN == 0, "rings end an area, which is whole pages");

/* A message in transit, which holds its frames: ticket.pyx. */
typedef struct {
    uint64_t word;    /* serial number << 24 | owner << 8 | state */
    uint64_t first;   /* the first frame; or the first of a run that lists the frames */
    uint64_t count;   /* frames of the message */
    uint64_t done;    /* frames that the owner has dealt with in this state */
    uint64_t expires; /* CLOCK_BOOTTIME, nanoseconds */
    uint64_t started; /* when the sender did, as in its pf_client */
    uint32_t pid;     /* of the sender */
    uint32_t listed;  /* frames of the list; 0: the message is a run of frames */
    uint64_t issued;  /* CLOCK_BOOTTIME, nanoseconds */
} pf_ticket;

_Static_assert(sizeof(pf_ticket) == 64, "a ticket is a cache line");

/* Type numbers are below this; what a damaged slot says is cut down to it. */
#define PF_TYPE_LIMIT 128

/* What nogil code needs to know of a type, by type id. */
typedef struct {
    uint32_t size;
    uint32_t flags;
} pf_type_info;

typedef struct pf_arena {
    unsigned char *base;   /* paddr 0 */
    uint64_t size;
    uint64_t frames;
    uint64_t chunk_count;
    uint32_t page_shift;
    uint32_t slot_shift;
    int open;
    uint32_t watched;      /* who is to be told when this process lets go of a frame: pf_let_go() */
    int closing;           /* close() may still fail: not open, but what is held can be given back */
    int leaving;           /* closed, but the memory is still there for the last on_drop */
    int file;              /* the memory is that of a file */
    uint32_t views;        /* arrays over the arena's tables */
    int recorded;          /* what is done is written down, frame by frame: there is a ledger, or rings */
    uint32_t flags;        /* as in the header */
    uint32_t debug;        /* of its flags: PF_POISON, PF_TRACE */
    pf_header *header;
    pf_type *types;
    uint64_t *bits;
    pf_chunk *chunks;
    unsigned char *slots;
    pf_lane *lanes;        /* of this client; of a private arena memory of the process */
    uint32_t *raw;         /* raw references of this process, by frame */
    uint32_t type_capacity; /* what the header says is believed once, when it is checked */
    uint32_t types_known;  /* type numbers below this are in type_info */
    pf_type_info type_info[PF_TYPE_LIMIT];
    /* Of a shared arena only. */
    uint32_t client_capacity;
    uint32_t ticket_capacity;
    uint64_t area_size;
    uint32_t *ledger;      /* references of this client, by frame; NULL: the arena is private */
    unsigned char *areas;
    pf_client *clients;
    pf_ticket *tickets;
    uint32_t client;       /* number of this client */
    uint32_t epoch;        /* forks that led to this process since it was mapped */
    /* Of any arena again. */
    pf_lane *(*my_lane)(struct pf_arena *); /* the calling thread's, or NULL: allocator.pyx */
    pf_event *rings;       /* of this client, PF_RING events a lane; NULL: nothing is traced */
    /* By the bits of watched. */
    void (*untrack)(struct pf_arena *, uint64_t frame);  /* traces.pyx */
    void (*uncharge)(struct pf_arena *, uint64_t frame); /* adaptor.pyx */
    uint32_t *tags;        /* account << 8 | type, by frame; 0: no adaptor of this process gave it */
} pf_arena;

#define PF_WATCH_TRACES 1u
#define PF_WATCH_ACCOUNTS 2u
#define PF_WATCH_POISON 4u /* not to be told, but ends of lives go the long way */

/* From now on it is to be told.  Release pairs with the acquire in pf_let_go(): who sees
 * the bit sees what was set up for it. */
static inline void pf_watch(pf_arena *a, uint32_t who) {
    if (!(pf_load_relaxed_u32(&a->watched) & who))
        pf_or_release_u32(&a->watched, who);
}

/* This process lets go of a frame: its life ends, or others alone hold it from now on.
 * Must come before another owner can have it.  Called with and without the interpreter
 * lock; a frame that nobody was told of may be let go, too. */
static inline void pf_let_go(pf_arena *a, uint64_t frame) {
    uint32_t watched = pf_load_acquire_u32(&a->watched);
    if (watched == 0)
        return;
    if (watched & PF_WATCH_TRACES)
        a->untrack(a, frame);
    if (watched & PF_WATCH_ACCOUNTS)
        a->uncharge(a, frame);
}

/* Private arenas are their own only client. */
static inline uint32_t pf_client_count(const pf_arena *a) {
    return a->clients ? a->client_capacity : 1;
}

static inline int pf_client_used(const pf_arena *a, uint32_t client) {
    return !a->clients || pf_load_relaxed_u32(&a->clients[client].state) != PF_CLIENT_FREE;
}

static inline pf_lane *pf_lanes_of(const pf_arena *a, uint32_t client) {
    return a->clients ? (pf_lane *)(a->areas + client * a->area_size) : a->lanes;
}

static inline uint32_t *pf_ledger_of(const pf_arena *a, uint32_t client) {
    return (uint32_t *)(a->areas + client * a->area_size + PF_LANES_SIZE);
}

static inline pf_event *pf_rings_of(const pf_arena *a, uint32_t client) {
    return a->clients ? (pf_event *)(a->areas + (client + 1) * a->area_size - PF_RINGS_SIZE) : a->rings;
}

static inline pf_slot *pf_slot_at(const pf_arena *a, uint64_t frame) {
    return (pf_slot *)(a->slots + (frame << a->slot_shift));
}

static inline uint64_t pf_frame_of(const pf_arena *a, const pf_slot *s) {
    return (uint64_t)((const unsigned char *)s - a->slots) >> a->slot_shift;
}

static inline unsigned char *pf_bytes_at(const pf_arena *a, uint64_t frame) {
    return a->base + (frame << a->page_shift);
}

static inline uint32_t pf_type_flags(const pf_arena *a, const pf_slot *s) {
    return a->type_info[pf_load_relaxed_u32(&s->type_id) & (PF_TYPE_LIMIT - 1)].flags;
}

/* Whether a frame is the arena's own: nobody's to free, whatever counts and ledgers say. */
static inline int pf_is_own(const pf_arena *a, uint64_t frame) {
    return (pf_type_flags(a, pf_slot_at(a, frame)) & PF_ARENA) != 0;
}

/* FNV-1a, 64 bits: http://www.isthe.com/chongo/tech/comp/fnv/ */
static inline uint64_t pf_fnv1a(const void *data, size_t size) {
    const unsigned char *p = data;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ p[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static inline uint64_t pf_header_checksum(const pf_header *h) {
    return pf_fnv1a(h, offsetof(pf_header, checksum));
}

/* Bits first .. first + count - 1 of a word; 1 <= count <= 64. */
static inline uint64_t pf_mask(unsigned first, unsigned count) {
    return (UINT64_MAX >> (64 - count)) << first;
}

static inline unsigned pf_ctz(uint64_t w) { return (unsigned)__builtin_ctzll(w); }
static inline unsigned pf_popcount(uint64_t w) { return (unsigned)__builtin_popcountll(w); }
static inline uint64_t pf_highest(uint64_t w) { return UINT64_C(1) << (63 - __builtin_clzll(w)); }

#endif
