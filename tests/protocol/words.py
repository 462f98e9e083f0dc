# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The words of a small arena, as the model has them, and what must hold of them in every state.

One byte a word.  Most stand for a word of the arena (slot.h, ledger.h, arena.h), a few for what
the kernel knows (who has locked a place), and the rest, which no program reads, for what is true:
which process believes that it holds what, and who alone may touch a frame.
"""

from dataclasses import dataclass, field
from functools import cached_property

from protocol.machine import Violation

# States of a count, as in slot.h.
UNUSED, UNIQUE, ORPHAN, BUSY, MAX = 255, 254, 253, 0, 200

# Operations of a lane, as in ledger.h; the word is frame << 3 | operation.
NONE, CLAIM, FREE, MORE, LESS = range(5)

# States of a ticket; the word is serial << 5 | owner << 3 | state, and the owner a client + 1.
T_FREE, T_FILLING, T_LIVE, T_REDEEMING, T_RELEASING = range(5)

# Types of metadata.
PLAIN, DROPPING = 1, 2

GONE = 255  # the owner of a frame has been killed


@dataclass(frozen=True)
class Lane:
    """A thread: its client, and its lane among those of the client."""

    client: int
    lane: int = 0


@dataclass(frozen=True)
class Arena:
    """Where each word is."""

    frames: int
    clients: int
    lanes: int = 1  # a client
    tickets: int = 0
    knows: frozenset = field(default_factory=frozenset)  # clients that can run on_drop

    @cached_property
    def places(self) -> dict[str, int]:
        """Number of the first word of each kind."""
        sizes = {
            "kills": 1, "killed_threads": 1, "bits": 1, "orphans": 1, "last_ticket": 1, "joined": 1,
            "count": self.frames, "generation": self.frames, "type": self.frames, "storage": self.frames,
            "state": self.clients, "ledger": self.clients * self.frames,
            "kept": self.clients * self.lanes, "op": self.clients * self.lanes,
            "ops": self.clients * self.lanes,
            "word": self.tickets, "first": self.tickets, "size": self.tickets, "done": self.tickets,
            # What the kernel knows.
            "lock": self.clients, "repair": 1,
            # What is true.
            "held": self.clients * self.frames, "owner": self.frames, "dropped": self.frames,
            "life": self.frames, "alone": self.clients * self.frames,
        }  # fmt: skip
        found, place = {}, 0
        for name, size in sizes.items():
            found[name] = place
            place += size
        return {**found, "end": place}

    def at(self, name: str, i: int = 0) -> int:
        return self.places[name] + i

    def count(self, frame):
        return self.at("count", frame)

    def generation(self, frame):
        return self.at("generation", frame)

    def ledger(self, client, frame):
        return self.at("ledger", client * self.frames + frame)

    def of_lane(self, name, me):
        return self.at(name, me.client * self.lanes + me.lane)

    def held(self, client, frame):
        return self.at("held", client * self.frames + frame)

    def alone(self, client, frame):
        return self.at("alone", client * self.frames + frame)

    def new(self) -> bytearray:
        """An arena in which nobody is and all frames are free."""
        words = bytearray(self.places["end"])
        for frame in range(self.frames):
            words[self.count(frame)] = UNUSED
        return words

    def join(self, words: bytearray, client: int) -> None:
        """Make somebody a client before it all begins."""
        words[self.at("state", client)] = 1
        words[self.at("lock", client)] = client + 1

    def give(self, words: bytearray, client: int, frame: int, references: int = 1, type_id: int = PLAIN):
        """Have a client hold a frame before it all begins."""
        words[self.at("bits")] |= 1 << frame
        count = words[self.count(frame)]
        words[self.count(frame)] = references + (count if count != UNUSED else 0)
        words[self.at("type", frame)] = type_id
        words[self.ledger(client, frame)] += references
        words[self.held(client, frame)] += references

    # -- who may do what --------------------------------------------------------------------------

    def own(self, words: bytearray, frame: int, client: int, before: tuple = (0,)) -> None:
        """From now on a client alone may touch a frame."""
        owner = words[self.at("owner", frame)]
        if owner not in before:
            raise Violation(f"frame {frame} has two owners: {owner} and {client + 1}")
        words[self.at("owner", frame)] = client + 1

    def disown(self, words: bytearray, frame: int, client: int) -> None:
        owner = words[self.at("owner", frame)]
        if owner != client + 1:
            raise Violation(f"frame {frame} is given up by {client + 1}, and its owner is {owner}")
        words[self.at("owner", frame)] = 0

    def kill(self, words: bytearray, process: int) -> None:
        """What the death of a process does, and what it makes untrue."""
        words[self.at("kills")] += 1
        words[self.at("killed_threads")] += self.lanes
        for client in range(self.clients):
            if words[self.at("lock", client)] == process + 1:
                words[self.at("lock", client)] = 0
        if words[self.at("repair")] == process + 1:
            words[self.at("repair")] = 0
        for frame in range(self.frames):
            words[self.held(process, frame)] = words[self.alone(process, frame)] = 0
            if words[self.at("owner", frame)] == process + 1:
                words[self.at("owner", frame)] = GONE

    def alive(self, words: bytes, process: int) -> bool:
        return process + 1 in words[self.at("lock") : self.at("lock") + self.clients]

    def in_ticket(self, words: bytes, ticket: int) -> range:
        """The frames that a ticket holds."""
        if words[self.at("word", ticket)] & 7 == T_FREE:
            return range(0)
        first = words[self.at("first", ticket)]
        done = min(words[self.at("done", ticket)], words[self.at("size", ticket)])
        return range(first, min(self.frames, first + done))

    def invariant(self, words: bytes) -> None:
        """What must hold in every state."""
        counts = self.places["count"]
        live = [
            frame
            for t in range(self.tickets)
            if words[self.places["word"] + t] & 7 == T_LIVE
            for frame in self.in_ticket(words, t)
        ]
        held_at, ledger_at, alone_at = (self.places[name] for name in ("held", "ledger", "alone"))
        size = self.clients * self.frames
        for frame in range(self.frames):
            count = words[counts + frame]
            bit = words[2] >> frame & 1
            held = sum(words[held_at + frame : held_at + size : self.frames]) + live.count(frame)
            alone = sum(words[alone_at + frame : alone_at + size : self.frames])
            if alone:
                if alone > 1 or held or count != UNIQUE or not bit:
                    raise Violation(f"frame {frame} is not its owner's alone: count {count}, {held} held")
            elif held and not (held <= count <= MAX and bit):
                raise Violation(f"frame {frame} is held {held} times and its count is {count}, bit {bit}")
            if 1 <= count <= MAX:
                known = sum(words[ledger_at + frame : ledger_at + size : self.frames])
                for t in range(self.tickets):
                    known += frame in self.in_ticket(words, t)
                if known > count:
                    raise Violation(f"ledgers and tickets have {known} references, and the count is {count}")
