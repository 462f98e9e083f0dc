# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Damages of an arena: what somebody who can write its file might write where.

A damage is a list of writes, (offset, bytes), drawn from a generator that the caller has seeded; it
depends on nothing else but the bytes that are there.  Fields of tables get values that are hostile
to whoever believes them; bytes get noise, and pages those of another state of the arena.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pageframe._core import backing

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

Writes = list[tuple[int, bytes]]
Damage = tuple[str, str, Writes]  # in which table, of which kind
Fields = list[tuple[int, str]]

PAGE = 4096
LANES, LANE, LEDGER_AT = 64, 64, 4096
RING, EVENT = 256, 32
TICKET_PAGE, PAGE_TABLE = 5, 6  # numbers of types
UNIQUE = 2**64 - 2
WIDTH = {"B": 1, "I": 4, "i": 4, "Q": 8}

LIVE_HEADER = [(256, "I"), (320, "I"), (384, "Q"), (448, "I"), (512, "Q"), (520, "I")]
FIXED_HEADER = [
    (16, "Q"), (24, "Q"), (32, "I"), (36, "I"), (40, "I"), (44, "I"),
    *((48 + 8 * i, "Q") for i in range(16)), (192, "Q"), (200, "Q"), (208, "I"), (212, "I"),
]  # fmt: skip
TYPES = [(0, "Q"), (8, "I"), (12, "I"), *((32 + i, "B") for i in (0, 1, 5, 9, 223))]
CLIENTS = [(0, "I"), (4, "I"), (8, "Q"), (16, "B"), (127, "B")]
TICKETS = [(0, "Q"), (8, "Q"), (16, "Q"), (24, "Q"), (32, "Q"), (40, "Q"), (48, "I"), (52, "I"), (56, "Q")]
CHUNKS = [(0, "i"), (4, "I")]
SLOTS = [(0, "Q"), (8, "Q"), (16, "I"), (20, "I"), (24, "I"), (28, "I"), (32, "Q"), (40, "Q")]
LANE_FIELDS = [(0, "Q"), (8, "Q"), (16, "I"), (20, "i"), (24, "Q"), (32, "Q"), (40, "Q")]
EVENTS = [(0, "Q"), (8, "Q"), (16, "Q"), (24, "I")]


class Part(NamedTuple):
    """Entries of one size that lie one behind another."""

    offset: int
    entry: int
    count: int
    fields: Fields
    words: Callable[[random.Random, Layout], int] | None = None  # values that look right

    @property
    def size(self) -> int:
        return self.entry * self.count


def op_word(rng: random.Random, layout: Layout) -> int:
    return layout.some_frame(rng) << 8 | rng.randrange(6)


def ticket_word(rng: random.Random, layout: Layout) -> int:
    return rng.randrange(9) << 24 | rng.randrange(layout.clients + 2) << 8 | rng.randrange(6)


def table_entry(rng: random.Random, layout: Layout) -> int:
    return layout.some_frame(rng) << 12 | rng.randrange(128)


class Layout:
    """Where everything lies in an arena, by its header."""

    def __init__(self, fd: int) -> None:
        header = backing.read_header(fd, "the arena")
        self.size, self.frames, self.page_size = header.size, header.frames, header.page_size
        self.slot_size, self.clients, self.tickets = (
            header.slot_size,
            header.client_capacity,
            header.ticket_capacity,
        )
        self.slots = np.dtype(
            {
                "names": ["count", "type"],
                "formats": ["u8", "u4"],
                "offsets": [0, 16],
                "itemsize": self.slot_size,
            }
        )
        self.tables = {name: offset for name, (offset, _) in header.tables.items()}
        self.total = header.size + header.tables["areas"][1]
        areas = [self.tables["areas"] + i * header.area_size for i in range(self.clients)]
        slots = self.tables["slots"]
        self.parts: dict[str, list[Part]] = {
            "header": [Part(0, 576, 1, LIVE_HEADER)],
            "types": [Part(self.tables["types"], 256, header.type_capacity, TYPES)],
            "clients": [Part(self.tables["clients"], 128, self.clients, CLIENTS)],
            "tickets": [Part(self.tables["tickets"], 64, self.tickets, TICKETS, ticket_word)],
            "bits": [Part(self.tables["bits"], 8, -(-self.frames // 512) * 8, [(0, "Q")])],
            "chunks": [Part(self.tables["chunks"], 8, -(-self.frames // 512), CHUNKS)],
            "slots": [Part(slots, self.slot_size, self.frames, SLOTS)],
            "lanes": [Part(area, LANE, LANES, LANE_FIELDS, op_word) for area in areas],
            "ledgers": [Part(area + LEDGER_AT, 4, self.frames, [(0, "I")]) for area in areas],
        }
        if header.flags & backing.TRACE:
            rings = LANES * RING * EVENT
            self.parts["rings"] = [
                Part(area + header.area_size - rings, EVENT, RING * 2, EVENTS, op_word) for area in areas
            ]

    def some_frame(self, rng: random.Random) -> int:
        return rng.randrange(self.frames) if rng.random() < 0.8 else self.value(rng, 4)

    def value(self, rng: random.Random, width: int) -> int:
        """Return a number that is hostile, or might pass for a right one."""
        top = 1 << 8 * width
        kind = rng.randrange(8)
        if kind == 0:
            return rng.choice((0, 1, 2, top - 1, top - 2, top - 3))
        if kind == 1:
            return rng.choice((top >> 1, (top >> 1) - 1, (top >> 1) + 1, top >> 2))
        if kind == 2:
            return (self.frames + rng.randrange(-2, 3)) % top
        if kind == 3:
            near = rng.choice((self.size, self.total, *self.tables.values()))
            return (near + rng.randrange(-1, 2) >> rng.choice((0, 0, 12))) % top
        if kind == 4:
            return rng.choice((62, 63, 64, 65, 126, 127, 128, 255, 256, 511, 512, 513)) % top
        if kind == 5:
            return rng.randrange(16)
        if kind == 6:
            return rng.randrange(self.frames) % top
        return rng.getrandbits(8 * width)

    def framed(self, data: memoryview, table: str) -> list[Part]:
        """Return the frames that are nodes of page tables, lists of tickets, or plain bytes."""
        slots = np.frombuffer(data, self.slots, self.frames, self.tables["slots"])
        count, kind = slots["count"], slots["type"]
        if table == "nodes":
            chosen, entry, form, words = (kind == PAGE_TABLE) & (count == UNIQUE), 8, "Q", table_entry
        elif table == "lists":
            chosen, entry, form, words = (kind == TICKET_PAGE) & (count - 1 < 8), 4, "I", None
        else:
            chosen, entry, form, words = (kind == 1) & (count - 1 < 8), 8, "Q", None
        return [
            Part(frame * self.page_size, entry, self.page_size // entry if words else 16, [(0, form)], words)
            for frame in chosen.nonzero()[0].tolist()
        ]


TABLES = ("header", "types", "clients", "tickets", "bits", "chunks", "slots", "lanes", "ledgers", "rings",
          "nodes", "lists", "data")  # fmt: skip
WEIGHTS = (4, 7, 11, 17, 23, 26, 38, 46, 54, 56, 62, 65, 66)  # added up
KINDS = ("hostile", "bits", "noise", "fill", "copy", "splice")
KIND_WEIGHTS = (12, 15, 17, 19, 22, 24)


def hostile(rng: random.Random, layout: Layout, part: Part, data: memoryview) -> Writes:
    """Hostile values in fields of some entries, often the same one in all."""
    writes = []
    offset, form = rng.choice(part.fields)
    same = layout.value(rng, WIDTH[form])
    for _ in range(min(rng.choice((1, 1, 2, 4, part.count)), 24)):
        at = part.offset + rng.randrange(part.count) * part.entry + offset
        if part.words is not None and form == "Q" and rng.random() < 0.4:
            value = part.words(rng, layout)
        else:
            value = same if rng.random() < 0.5 else layout.value(rng, WIDTH[form])
        writes.append((at, value.to_bytes(8, "little")[: WIDTH[form]]))
    return writes


def flipped(rng: random.Random, layout: Layout, part: Part, data: memoryview) -> Writes:
    """Single bits the other way round."""
    writes = []
    for _ in range(rng.choice((1, 2, 16))):
        at = part.offset + rng.randrange(part.size)
        writes.append((at, bytes([data[at] ^ 1 << rng.randrange(8)])))
    return writes


def stretch(rng: random.Random, part: Part) -> tuple[int, int]:
    """Choose some of the bytes."""
    start = rng.randrange(part.size)
    return part.offset + start, min(part.size - start, rng.choice((1, 8, 64, 512, 4096)))


def noise(rng: random.Random, layout: Layout, part: Part, data: memoryview) -> Writes:
    """Random bytes."""
    at, size = stretch(rng, part)
    return [(at, rng.randbytes(size))]


def fill(rng: random.Random, layout: Layout, part: Part, data: memoryview) -> Writes:
    """One byte over and over."""
    at, size = stretch(rng, part)
    return [(at, rng.choice((b"\0", b"\xff", b"\x01", b"\x7f", b"\x80")) * size)]


def copied(rng: random.Random, layout: Layout, part: Part, data: memoryview) -> Writes:
    """Entries in the places of others."""
    writes = []
    for _ in range(rng.choice((1, 2, 8))):
        at, other = (part.offset + rng.randrange(part.count) * part.entry for _ in range(2))
        writes.append((at, bytes(data[other : other + part.entry])))
    return writes


MAKE = {"hostile": hostile, "bits": flipped, "noise": noise, "fill": fill, "copy": copied}


def damage(rng: random.Random, layout: Layout, data: memoryview, others: list[bytes]) -> Damage:
    """Draw a damage.

    Parameters
    ----------
    rng
        Says which.
    layout
        Of the arena.
    data
        The bytes of the arena as they are.
    others
        Those of other states of it, and of other arenas, to be spliced in.
    """
    table = rng.choices(TABLES, cum_weights=WEIGHTS)[0]
    parts = layout.parts.get(table) or layout.framed(data, table)
    if not parts:  # no page table at this moment, for instance
        table, parts = "slots", layout.parts["slots"]
    part = rng.choice(parts)
    kind = rng.choices(KINDS, cum_weights=KIND_WEIGHTS)[0]
    if kind == "splice":
        other = rng.choice(others)
        at = part.offset // PAGE * PAGE
        size = part.size if rng.random() < 0.5 else PAGE
        source = at if rng.random() < 0.8 else rng.randrange(len(other) // PAGE) * PAGE
        return table, kind, [(at, other[source : source + min(size, len(data) - at)])]
    return table, kind, MAKE[kind](rng, layout, part, data)


HEADER_KINDS = ("hostile", "bits", "noise", "truncate", "grow", "empty")


def header_damage(rng: random.Random, layout: Layout, data: memoryview) -> tuple[str, bytes | None, int]:
    """Draw a damage of the whole file, at rest: kind, another header (None: as it is), length."""
    kind = rng.choice(HEADER_KINDS)
    header = bytearray(data[: backing.HEADER_SIZE])
    if kind == "truncate":
        return kind, None, rng.choice((rng.randrange(layout.total), rng.randrange(600), layout.size))
    if kind == "grow":
        return kind, None, layout.total + rng.randrange(1 << 20)
    if kind == "empty":
        return kind, bytes(rng.choice((0, 8, 576, 4096))), 0
    if kind == "noise":
        at = rng.choice((0, 16, 48, 176))
        size = rng.randrange(1, backing.CHECKED - at)
        header[at : at + size] = rng.randbytes(size)
    elif kind == "bits":
        for _ in range(rng.choice((1, 2, 8))):
            header[rng.randrange(backing.CHECKED + 8)] ^= 1 << rng.randrange(8)
    else:
        for _ in range(rng.choice((1, 2, 3))):
            offset, form = rng.choice(FIXED_HEADER)
            value = layout.value(rng, WIDTH[form])
            if rng.random() < 0.3:  # near what is there
                value = int.from_bytes(header[offset : offset + WIDTH[form]], "little")
                value = value + rng.choice((-1, 1, -8, 64, -4096, 4096)) & (1 << 8 * WIDTH[form]) - 1
            header[offset : offset + WIDTH[form]] = value.to_bytes(WIDTH[form], "little")
    if rng.random() < 0.75:  # with a checksum that is right
        header[224:232] = backing.fnv1a(bytes(header[:224])).to_bytes(8, "little")
        kind += ", sealed"
    return kind, bytes(header), layout.total
