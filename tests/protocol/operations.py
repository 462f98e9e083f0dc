# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The operations of the shared protocol, store by store, as the core does them.

Each function is that of the same name in the core (allocator.pyx, handle.pyx, ledger.h, slot.h,
reap.pyx, audit.pyx, ticket.pyx, client.pyx, fork.pyx), with its loads, its stores and its
compare-and-swaps in their order, and nothing else.  A step's name stands at the action before
which pf_step() stands there; test_protocol.py compares the two.

What the model leaves out, since nobody else reads it or since it decides nothing: hints (the
counters of chunks and which lane has one reserved, a lane's hint), the links of lists (a frame of
a list is its owner's alone), the registry of types (written under a file lock), contents of frames.

``fault`` names a mistake that was put in on purpose (test_protocol.py).
"""

from protocol.machine import Violation, add, cas, exchange, kernel, load, note, store
from protocol.words import (
    BUSY,
    CLAIM,
    DROPPING,
    FREE,
    GONE,
    LESS,
    MAX,
    MORE,
    NONE,
    ORPHAN,
    PLAIN,
    T_FILLING,
    T_FREE,
    T_LIVE,
    T_REDEEMING,
    T_RELEASING,
    UNIQUE,
    UNUSED,
    Arena,
    Lane,
)

KEPT, ENDED, TO_DROP = range(3)  # what becomes of a frame that is given back


class Protocol:
    """The operations on an arena."""

    def __init__(self, arena: Arena, fault: str | None = None) -> None:
        self.a = arena
        self.fault = fault

    # -- ledger.h --------------------------------------------------------------------------------

    def op_begin(self, me: Lane, op: int, frame: int, effect=None):
        a = self.a
        ops = yield load(a.of_lane("ops", me))
        if self.fault == "operation numbered first":
            yield store(None, a.of_lane("ops", me), ops + 1 & 0xFF)
        yield store("op_begin", a.of_lane("op", me), frame << 3 | op, effect=effect)
        if self.fault != "operation numbered first":
            yield store("op_number", a.of_lane("ops", me), ops + 1 & 0xFF)

    def op_end(self, me: Lane):
        yield store("op_end", self.a.of_lane("op", me), NONE)

    def ledger_claim(self, me: Lane, frame: int):
        yield store("claim_ledger", self.a.ledger(me.client, frame), 1)
        yield from self.op_end(me)

    def ledger_free(self, me: Lane, client: int, frame: int):
        yield from self.op_begin(me, FREE, frame)
        yield store("free_ledger", self.a.ledger(client, frame), 0)

    def more(self, me: Lane, frame: int, by_paddr: bool = False):
        """One more reference: of a holder, or of somebody who knows the paddr; False if refused."""
        a = self.a

        def believe(words, _):
            words[a.held(me.client, frame)] += 1

        yield from self.op_begin(me, MORE, frame)
        if self.fault == "ledger before count":
            yield add(None, a.ledger(me.client, frame), 1)
        if by_paddr:
            got = yield from self.slot_get(frame, believe)
        else:
            ordered = self.fault != "count not ordered"
            yield add("inc_count", a.count(frame), 1, release=ordered, effect=believe)
            got = 1
        if got and self.fault != "ledger before count":
            yield add("get_ledger" if by_paddr else "inc_ledger", a.ledger(me.client, frame), 1)
        yield from self.op_end(me)
        return got

    def slot_get(self, frame: int, believe):
        a = self.a
        count = yield load(a.count(frame), "get_count")
        while True:
            if count in (UNUSED, UNIQUE, BUSY, ORPHAN):
                return 0
            got = yield cas(None, a.count(frame), count, count + 1, effect=believe)
            if got:
                return 1
            count = yield load(a.count(frame))

    def ref_put(self, me: Lane, frame: int):
        """One reference less; True if it was the last, and the frame is busy and ours."""
        a = self.a

        def let_go(words, _):
            words[a.held(me.client, frame)] -= 1

        def ends(words, _):
            let_go(words, _)
            a.own(words, frame, me.client)

        count = yield load(a.count(frame), "put_last")
        if count == 1:
            ended = yield cas(None, a.count(frame), 1, BUSY, effect=ends)
            if ended:
                return True
        yield from self.op_begin(me, LESS, frame, let_go)
        if self.fault == "count before ledger":
            last = yield from self.slot_put(me, frame, "put_count")
            yield add(None, a.ledger(me.client, frame), 255, release=False)
        else:
            yield add("put_ledger", a.ledger(me.client, frame), 255)
            last = yield from self.slot_put(me, frame, "put_count")
        if last:
            yield store("put_mark", a.ledger(me.client, frame), 1)
        yield from self.op_end(me)
        return last

    # -- slot.h ----------------------------------------------------------------------------------

    def to_busy(self, me: Lane, frame: int, references: int):
        """The compare-and-swap of pf_slot_end()."""
        return cas(
            None,
            self.a.count(frame),
            references,
            BUSY,
            effect=lambda words, _: self.a.own(words, frame, me.client),
        )

    def slot_put(self, me: Lane, frame: int, step: str | None):
        def last(words, old):
            if old == 1:
                self.a.own(words, frame, me.client)

        old = yield add(step, self.a.count(frame), 255, effect=last)
        return old == 1

    def publish(self, me: Lane, frame: int, count: int, life: int | None = None):
        a = self.a

        def begun(words, _):
            if life is not None:
                words[a.at("life", frame)] = life
                words[a.at("dropped", frame)] = 0
            if count == UNIQUE:
                words[a.alone(me.client, frame)] = 1
            else:
                words[a.alone(me.client, frame)] = 0
                words[a.held(me.client, frame)] += 1
                a.disown(words, frame, me.client)

        yield store("publish", a.count(frame), count, effect=begun)

    def try_unique(self, me: Lane, frame: int):
        a = self.a

        def taken(words, _):
            words[a.held(me.client, frame)] -= 1
            words[a.alone(me.client, frame)] = 1
            a.own(words, frame, me.client)

        won = yield cas("unique_take", a.count(frame), 1, UNIQUE, release=False, effect=taken)
        return won

    def make_busy(self, me: Lane, frame: int):
        a = self.a

        def ends(words, _):
            words[a.alone(me.client, frame)] = 0

        yield store("unique_busy", a.count(frame), BUSY, release=False, effect=ends)

    def retire(self, me: Lane, frame: int):
        a = self.a
        generation = yield load(a.generation(frame))

        def ended(words, _):
            on_drop = words[a.at("type", frame)] == DROPPING
            if on_drop and not words[a.at("dropped", frame)] and not words[a.at("kills")]:
                raise Violation(f"the life of frame {frame} ends and its on_drop has not run")

        if self.fault != "missing generation":
            yield store("retire_generation", a.generation(frame), generation + 1 & 0xFF)
        yield store("retire_count", a.count(frame), UNUSED, effect=ended)

    # -- allocator.pyx ---------------------------------------------------------------------------

    def claim_one(self, me: Lane):
        """Claim any frame; -1 if there is none."""
        a = self.a
        kept = yield load(a.of_lane("kept", me))

        def taken(words, old):
            if old:
                a.own(words, old - 1, me.client)

        if kept:
            yield from self.op_begin(me, CLAIM, kept - 1)
            found = yield exchange("claim_kept", a.of_lane("kept", me), 0, effect=taken)
            if found == kept:
                yield from self.ledger_claim(me, kept - 1)
                return kept - 1
        while True:
            frame = yield from self.claim_in_word(me)
            if frame >= 0:
                return frame
            stolen = yield from self.take_kept(me)
            if not stolen:
                return -1

    def claim_in_word(self, me: Lane):
        a = self.a
        old = yield load(a.at("bits"))
        while old != (1 << a.frames) - 1:
            frame = (~old & old + 1).bit_length() - 1
            yield from self.op_begin(me, CLAIM, frame)
            won = yield cas(
                "claim_bit", a.at("bits"), old, old | 1 << frame,
                effect=lambda words, _: a.own(words, frame, me.client),  # noqa: B023 (it runs at once)
            )  # fmt: skip
            if won:
                yield from self.ledger_claim(me, frame)
                return frame
            old = yield load(a.at("bits"))
        yield from self.op_end(me)
        return -1

    def take_kept(self, me: Lane):
        """Give back what lanes keep, of all clients; returns how many frames."""
        taken = 0
        for client in range(self.a.clients):
            used = yield load(self.a.at("state", client))
            if used:
                more = yield from self.take_kept_of(me, client)
                taken += more
        return taken

    def take_kept_of(self, me: Lane, client: int):
        a = self.a
        taken = 0
        for lane in range(a.lanes):
            word = a.of_lane("kept", Lane(client, lane))
            kept = yield load(word)
            if not kept:
                continue
            yield from self.op_begin(me, CLAIM, kept - 1)

            def mine(words, old):
                if old:
                    a.own(words, old - 1, me.client)

            kept = yield exchange("take_kept", word, 0, effect=mine)
            if kept:
                yield from self.clear_bit("take_kept_bit", me, kept - 1)
                taken += 1
            yield from self.op_end(me)
        return taken

    def clear_bit(self, step: str, me: Lane, frame: int):
        a = self.a

        def cleared(words, _):
            a.disown(words, frame, me.client)
            words[a.at("bits")] &= ~(1 << frame)

        # An atomic "and"; by its effect, as adding would carry if the bit were clear already.
        yield add(step, a.at("bits"), 0, effect=cleared)

    def give_back(self, me: Lane, frame: int):
        a = self.a
        kept = yield load(a.of_lane("kept", me))
        if kept:
            yield from self.give_back_owned(me, me.client, (frame,))
            return
        yield from self.ledger_free(me, me.client, frame)
        yield store(
            "free_kept", a.of_lane("kept", me), frame + 1,
            effect=lambda words, _: a.disown(words, frame, me.client),
        )  # fmt: skip
        yield from self.op_end(me)

    def give_back_owned(self, me: Lane, client: int, frames: tuple):
        for frame in frames:
            yield from self.ledger_free(me, client, frame)
            yield from self.clear_bit("free_bit", me, frame)
        yield from self.op_end(me)

    # -- handle.pyx ------------------------------------------------------------------------------

    def begin_life(self, me: Lane, frame: int, type_id: int, count: int):
        a = self.a
        life = yield note(a.count(frame), lambda words: words[a.at("life", frame)])
        yield store("begin_type", a.at("type", frame), type_id, release=False)
        yield store("begin_storage", a.at("storage", frame), life + 1, release=False)
        yield from self.publish(me, frame, count, life + 1)

    def alloc(self, me: Lane, count: int = 1, type_id: int = PLAIN):
        """Allocate a frame; -1 if there is none."""
        frame = yield from self.claim_one(me)
        if frame >= 0:
            yield from self.begin_life(me, frame, type_id, count)
        return frame

    def put(self, me: Lane, frame: int):
        """Drop a handle."""
        last = yield from self.ref_put(me, frame)
        if last:
            yield from self.end_life(me, frame)

    def put_unique(self, me: Lane, frame: int):
        yield from self.make_busy(me, frame)
        yield from self.end_life(me, frame)

    def end_life(self, me: Lane, frame: int):
        a = self.a
        type_id = yield load(a.at("type", frame))
        if type_id == DROPPING:
            if me.client not in a.knows:
                yield from self.orphan(me, me.client, frame)
                return
            yield self.run_on_drop(frame)
        yield from self.retire(me, frame)
        yield from self.give_back(me, frame)

    def run_on_drop(self, frame: int):
        def run(words):
            if words[self.a.at("dropped", frame)]:
                raise Violation(f"on_drop of frame {frame} runs twice")
            words[self.a.at("dropped", frame)] = 1
            return 0

        return note(self.a.count(frame), run)

    def orphan(self, me: Lane, client: int, frame: int):
        a = self.a
        yield from self.op_begin(me, LESS, frame)
        yield store("orphan_ledger", a.ledger(client, frame), 0)
        yield add("orphan_total", a.at("orphans"), 1, release=False)
        yield store(
            "orphan_count", a.count(frame), ORPHAN,
            effect=lambda words, _: a.disown(words, frame, me.client),
        )  # fmt: skip
        yield from self.op_end(me)

    def from_in_use(self, me: Lane, frame: int):
        """Take a reference by paddr; who gets one sees the metadata of this life."""
        a = self.a
        got = yield from self.more(me, frame, by_paddr=True)
        if got:
            storage = yield load(a.at("storage", frame))

            def right(words):
                if storage != words[a.at("life", frame)]:
                    raise Violation(f"frame {frame} shows metadata of life {storage}")
                return 0

            yield note(a.count(frame), right)
        return got

    def borrow(self, me: Lane, frame: int):
        """Remember which life a frame lives, as a FrameRef does, of a frame that we hold."""
        a = self.a
        generation = yield load(a.generation(frame))
        life = yield note(a.count(frame), lambda words: words[a.at("life", frame)])
        return generation, life

    def clone_borrowed(self, me: Lane, frame: int, generation: int, life: int):
        """A reference to the life that was remembered, or none."""
        a = self.a
        got = yield from self.more(me, frame, by_paddr=True)
        if not got:
            return 0
        found = yield load(a.generation(frame))
        if found != generation:
            yield from self.put(me, frame)
            return 0

        def same(words):
            if words[a.at("life", frame)] != life:
                raise Violation(f"frame {frame} was taken for one of another life")
            return 0

        yield note(a.count(frame), same)
        return 1

    # -- unique.pyx ------------------------------------------------------------------------------

    def share(self, me: Lane, frame: int):
        yield from self.publish(me, frame, 1)

    def repurpose(self, me: Lane, frame: int, type_id: int = PLAIN):
        a = self.a
        yield from self.make_busy(me, frame)
        old = yield load(a.at("type", frame))
        if old == DROPPING:
            yield self.run_on_drop(frame)
        generation = yield load(a.generation(frame))
        yield store("repurpose_generation", a.generation(frame), generation + 1 & 0xFF, release=False)
        yield from self.begin_life(me, frame, type_id, UNIQUE)

    # -- ticket.pyx ------------------------------------------------------------------------------

    def ticket_frames(self, ticket: int):
        """The first frame and how many a ticket says it has."""
        first = yield load(self.a.at("first", ticket))
        size = yield load(self.a.at("size", ticket))
        return first, size

    def issue(self, me: Lane, first: int, size: int):
        """Send frames that we hold; returns the number of the ticket and the word that it has, or None."""
        a = self.a
        serial = yield add(None, a.at("last_ticket"), 1, release=False)
        serial = serial + 1 & 7
        for ticket in range(a.tickets):
            word = yield load(a.at("word", ticket))
            if word & 7 == T_FREE:
                filling = serial << 5 | me.client + 1 << 3 | T_FILLING
                won = yield cas("ticket_take", a.at("word", ticket), word, filling)
                if won:
                    break
        else:
            return None
        yield store("ticket_fill", a.at("first", ticket), first, release=False)
        yield store(None, a.at("size", ticket), size, release=False)
        for i in range(size):
            yield from self.op_begin(me, MORE, first + i)
            yield add("ticket_count", a.count(first + i), 1)
            yield store("ticket_done", a.at("done", ticket), i + 1)
        yield from self.op_end(me)
        yield store("ticket_live", a.at("word", ticket), serial << 5 | T_LIVE)
        return ticket, serial << 5 | T_LIVE

    def redeem(self, me: Lane, ticket: int, live: int):
        """Load a message; returns its frames, or None if it is no longer in transit."""
        a = self.a
        word = yield load(a.at("word", ticket))
        if word != live:
            return None
        first, size = yield from self.ticket_frames(ticket)
        won = yield cas(
            "redeem_take", a.at("word", ticket), live, live & ~7 | me.client + 1 << 3 | T_REDEEMING
        )
        if not won:
            return None
        for i in range(size, 0, -1):
            frame = first + i - 1

            def believe(words, _):
                words[a.held(me.client, frame)] += 1  # noqa: B023 (it runs at once)

            yield from self.op_begin(me, MORE, frame)
            yield store("redeem_done", a.at("done", ticket), i - 1)
            yield add("redeem_ledger", a.ledger(me.client, frame), 1, effect=believe)
        yield from self.op_end(me)
        yield from self.release(me, ticket)
        return tuple(range(first, first + size))

    def release(self, me: Lane, ticket: int):
        """Give up what a ticket of ours still holds, and free it."""
        a = self.a
        done = yield load(a.at("done", ticket))
        first, size = yield from self.ticket_frames(ticket)
        for i in range(min(done, size), 0, -1):
            frame = first + i - 1
            yield from self.op_begin(me, LESS, frame)
            yield store("release_done", a.at("done", ticket), i - 1)
            yield from self.put_counted(me, frame)
        word = yield load(a.at("word", ticket))
        yield store("ticket_free", a.at("word", ticket), word & ~31 | T_FREE)

    def put_counted(self, me: Lane, frame: int):
        """Give up a reference that is in no ledger."""
        a = self.a
        count = yield load(a.count(frame))
        if not 1 <= count <= MAX:
            raise Violation(f"a ticket holds frame {frame}, whose count is {count}")
        count = yield load(a.count(frame), "release_count")
        last = 0
        if count == 1:
            last = yield self.to_busy(me, frame, 1)
        if not last:
            last = yield from self.slot_put(me, frame, None)
        if not last:
            yield from self.op_end(me)
            return
        yield store("put_mark", a.ledger(me.client, frame), 1)
        yield from self.op_end(me)
        yield from self.end_life(me, frame)

    def settle_tickets(self, me: Lane, client: int):
        for ticket in range(self.a.tickets):
            word = yield load(self.a.at("word", ticket))
            if word >> 3 & 3 == client + 1:
                yield from self.release_as_owner(me, ticket, word)

    def expire_tickets(self, me: Lane):
        """Time is over for every message there is."""
        for ticket in range(self.a.tickets):
            word = yield load(self.a.at("word", ticket))
            if word & 7 == T_LIVE:
                yield from self.release_as_owner(me, ticket, word)

    def release_as_owner(self, me: Lane, ticket: int, word: int):
        won = yield cas(
            "release_take", self.a.at("word", ticket), word, word & ~31 | me.client + 1 << 3 | T_RELEASING
        )
        if won:
            yield from self.release(me, ticket)

    # -- client.pyx ------------------------------------------------------------------------------

    def lock(self, client: int, process: int):
        """Lock a place, if nobody has; the kernel drops the lock with the process."""

        def call(words):
            if words[self.a.at("lock", client)]:
                return 0
            words[self.a.at("lock", client)] = process + 1
            return 1

        return kernel(call)

    def unlock(self, client: int):
        def call(words):
            words[self.a.at("lock", client)] = 0
            return 0

        return kernel(call)

    def lock_place(self, me: Lane, used: int):
        """Lock a place of a state that nobody has locked; -1 if there is none."""
        a = self.a
        for client in range(a.clients):
            state = yield load(a.at("state", client))
            if state != used or (used and client == me.client):
                continue
            locked = yield self.lock(client, me.client)
            if not locked:
                continue
            state = yield load(a.at("state", client))
            if state == used:
                return client
            yield self.unlock(client)
        return -1

    def use_place(self, client: int):
        yield note(self.a.at("state", client), lambda words: 0, "join_describe")
        yield store("join_state", self.a.at("state", client), 1)
        if self.fault != "joining not counted":
            yield add("join_count", self.a.at("joined"), 1)

    def join(self, me: Lane):
        """Become a client at the first free place, which is ours; False if it isn't."""
        place = yield from self.lock_place(me, 0)
        if place != me.client:
            if place >= 0:
                yield self.unlock(place)
            return False
        yield from self.use_place(place)
        yield from self.give_back_all(me, place)  # what somebody may have left there
        return True

    def free_place(self, client: int):
        a = self.a

        def empty(words):
            for frame in range(a.frames):
                words[a.ledger(client, frame)] = 0
            for lane in range(a.lanes):
                for name in ("kept", "op"):
                    words[a.of_lane(name, Lane(client, lane))] = 0
            return 0

        yield kernel(empty, "leave_area")
        yield store("leave_state", a.at("state", client), 0)

    # -- reap.pyx --------------------------------------------------------------------------------

    def reap(self, me: Lane):
        """Give back what dead clients hold, let old messages go, run what waits for this process."""
        while True:
            client = yield from self.lock_place(me, 1)
            if client < 0:
                break
            yield from self.give_back_all(me, client)
            yield from self.free_place(client)
            yield self.unlock(client)
        yield from self.expire_tickets(me)
        yield from self.adopt_orphans(me)

    def leave(self, me: Lane):
        """Close the arena: as if dead."""
        yield kernel(lambda words: 0)  # a byte of the file is locked while a client goes
        yield from self.give_back_all(me, me.client)
        yield from self.free_place(me.client)
        yield self.unlock(me.client)

    def give_back_all(self, me: Lane, client: int):
        a = self.a
        yield from self.settle_tickets(me, client)
        ended = ()
        for frame in range(a.frames):
            references = yield load(a.ledger(client, frame))
            if references:
                result = yield from self.give_back_frame(me, client, frame, False, references)
                if result == ENDED:
                    ended = (*ended, frame)
        if ended:
            yield from self.give_back_owned(me, client, ended)
        for frame in range(a.frames):
            references = yield load(a.ledger(client, frame))
            if not references:
                continue
            result = yield from self.give_back_frame(me, client, frame, True, references)
            if result == ENDED:
                yield from self.give_back_owned(me, client, (frame,))
            elif result == TO_DROP:
                yield from self.drop_frame(me, client, frame)
        yield from self.take_kept_of(me, client)
        for lane in range(a.lanes):
            if Lane(client, lane) != me:
                yield store("reap_lanes", a.of_lane("op", Lane(client, lane)), NONE)
        if client == me.client:  # the lanes that the model leaves out
            yield note(a.of_lane("op", me), lambda words: 0, "reap_lanes")

    def inherit(self, me: Lane, frame: int, drops: bool):
        """A dead client's frame is its reaper's; one who leaves has it already."""

        def effect(words, count):
            a = self.a
            passed_over = words[a.at("type", frame)] == DROPPING and not drops
            if count in (UNUSED, BUSY) or (count == UNIQUE and not passed_over):
                a.own(words, frame, me.client, (GONE, me.client + 1))
                words[a.alone(me.client, frame)] = 0

        return effect

    def give_back_frame(self, me: Lane, client: int, frame: int, drops: bool, references: int):
        a = self.a
        count = yield load(a.count(frame), effect=self.inherit(me, frame, drops))
        type_id = yield load(a.at("type", frame))
        if count == UNUSED:
            return ENDED
        if count == BUSY:
            yield from self.retire(me, frame)
            return ENDED
        if type_id == DROPPING and not drops:
            return KEPT
        if count == UNIQUE:
            yield store("reap_busy", a.count(frame), BUSY)
        elif count == ORPHAN:
            yield store(None, a.ledger(client, frame), 0)
            return KEPT
        else:
            let_go = self.let_go_of_all(me, client, frame)
            count = yield load(a.count(frame), "reap_count", effect=let_go)
            ended = 0
            if count == references:
                ended = yield self.to_busy(me, frame, references)
            if not ended:
                yield from self.op_begin(me, LESS, frame)
                if self.fault != "reaper clears last":
                    yield store("reap_ledger", a.ledger(client, frame), 0)
                last = yield from self.drop_references(me, frame, references)
                if self.fault == "reaper clears last":
                    yield store("reap_ledger", a.ledger(client, frame), 0)
                if not last:
                    yield from self.op_end(me)
                    return KEPT
                yield store("reap_mark", a.ledger(client, frame), 1)
                yield from self.op_end(me)
        if type_id == DROPPING:
            return TO_DROP
        yield from self.retire(me, frame)
        return ENDED

    def let_go_of_all(self, me: Lane, client: int, frame: int):
        """One who leaves believes in his references no longer."""

        def effect(words, _):
            if client == me.client:
                words[self.a.held(client, frame)] = 0

        return effect

    def drop_references(self, me: Lane, frame: int, references: int):
        a = self.a
        count = yield load(a.count(frame), "reap_sub")
        while references <= count <= MAX:

            def last(words, old):
                if old == references:
                    a.own(words, frame, me.client)

            won = yield cas(None, a.count(frame), count, count - references, effect=last)
            if won:
                return count == references
            count = yield load(a.count(frame))
        return False

    def drop_frame(self, me: Lane, client: int, frame: int):
        if me.client in self.a.knows:
            yield self.run_on_drop(frame)
            yield from self.retire(me, frame)
            yield from self.give_back_owned(me, client, (frame,))
        else:
            yield from self.orphan(me, client, frame)

    def adopt_orphans(self, me: Lane):
        a = self.a
        orphans = yield load(a.at("orphans"))
        if orphans == 0:
            return
        for frame in range(a.frames):
            count = yield load(a.count(frame))
            if count != ORPHAN or me.client not in a.knows:
                continue
            yield from self.op_begin(me, MORE, frame)
            won = yield cas(
                "adopt_count", a.count(frame), ORPHAN, BUSY,
                effect=lambda words, _: a.own(words, frame, me.client),  # noqa: B023 (it runs at once)
            )  # fmt: skip
            if not won:
                yield from self.op_end(me)
                continue
            yield store("adopt_ledger", a.ledger(me.client, frame), 1)
            yield add("adopt_total", a.at("orphans"), 255, release=False)
            yield from self.op_end(me)
            yield from self.end_life(me, frame)

    # -- fork.pyx --------------------------------------------------------------------------------

    def fork(self, me: Lane, child: int):
        """Fork a process, which is client number child from then on; False if there is no place."""
        a = self.a
        place = yield from self.lock_place(me, 0)
        if place != child:
            if place >= 0:
                yield self.unlock(place)
            return False
        yield from self.use_place(child)
        for frame in range(a.frames):
            references = yield load(a.ledger(me.client, frame))
            if not references:
                continue
            yield from self.op_begin(me, MORE, frame)
            got = yield from self.slot_get_many(frame, references)
            if got:
                yield store("fork_ledger", a.ledger(child, frame), references)
        yield from self.op_end(me)

        def born(words):
            words[a.at("lock", child)] = child + 1
            for frame in range(a.frames):
                words[a.held(child, frame)] = words[a.ledger(child, frame)]
            return 0

        yield kernel(born)
        return True

    def slot_get_many(self, frame: int, references: int):
        a = self.a
        count = yield load(a.count(frame), "fork_count")
        while count not in (UNUSED, UNIQUE, BUSY, ORPHAN):
            got = yield cas(None, a.count(frame), count, count + references)
            if got:
                return True
            count = yield load(a.count(frame))
        return False

    def wait_to_be_forked(self, me: Lane):
        a = self.a
        yield kernel(lambda words: 0 if words[a.at("lock", me.client)] == me.client + 1 else -1)

    # -- audit.pyx -------------------------------------------------------------------------------

    def at_work(self, clients: tuple | None = None):
        """Which clients there are, how often one has joined, their operations; or None if one is at work."""
        a = self.a
        joined = yield load(a.at("joined"))
        if clients is None:
            clients = ()
            for client in range(a.clients):
                used = yield load(a.at("state", client))
                if used:
                    clients = (*clients, client)
        total = 0
        for i in range(len(clients)):
            for lane in range(a.lanes):
                where = Lane(clients[i], lane)
                ops = yield load(a.of_lane("ops", where))
                op = yield load(a.of_lane("op", where))
                if op != NONE:
                    return None
                total += ops
        return clients, joined, total

    def count_holders(self):
        """What all ledgers and tickets say, and what lanes keep."""
        a = self.a
        expected = (0,) * a.frames
        kept = (0,) * a.frames
        for client in range(a.clients):
            used = yield load(a.at("state", client))
            if not used:
                continue
            for frame in range(a.frames):
                references = yield load(a.ledger(client, frame))
                expected = plus(expected, frame, references)
            for lane in range(a.lanes):
                frame = yield load(a.of_lane("kept", Lane(client, lane)))
                if frame:
                    kept = plus(kept, frame - 1, 1)
        for ticket in range(a.tickets):
            word = yield load(a.at("word", ticket))
            if word & 7 == T_FREE:
                continue
            done = yield load(a.at("done", ticket))
            first, size = yield from self.ticket_frames(ticket)
            for i in range(min(done, size)):
                expected = plus(expected, first + i, 1)
        return expected, kept

    def audit(self, me: Lane, repair: bool):
        """Compare all counts with all holders; returns what is wrong: frame, verdict, count."""
        a = self.a
        if repair:
            repair = yield self.lock_repair(me)
        before = yield from self.at_work()
        counted = yield load(a.at("orphans"))
        expected, kept = yield from self.count_holders()
        wrong = ()
        orphans = 0
        for frame in range(a.frames):
            count = yield load(a.count(frame))
            bits = yield load(a.at("bits"))
            found = judge(count, bits >> frame & 1, expected[frame], kept[frame])
            if found == "orphan":
                orphans += 1
            elif found:
                wrong = (*wrong, (frame, found, count))
        after = before and (yield from self.at_work(before[0]))
        if repair and before and before == after:
            for i in range(len(wrong)):
                yield from self.put_right(me, wrong[i], expected[wrong[i][0]])
            yield add(None, a.at("orphans"), orphans - counted & 0xFF, release=False)
        if repair:
            yield self.unlock_repair()
        return wrong

    def lock_repair(self, me: Lane):
        """One process at a time repairs; another one finds that it can't."""

        def call(words):
            if words[self.a.at("repair")] and self.fault != "two repair":
                return 0
            words[self.a.at("repair")] = me.client + 1
            return 1

        return kernel(call)

    def unlock_repair(self):
        def call(words):
            words[self.a.at("repair")] = 0
            return 0

        return kernel(call)

    def put_right(self, me: Lane, wrong: tuple, expected: int):
        a = self.a
        frame, found, count = wrong
        if found != "leaked":
            if expected and 1 <= count <= MAX:
                yield cas("audit_count", a.count(frame), count, expected)
        elif count in (UNUSED, BUSY):
            yield note(a.count(frame), lambda words: a.own(words, frame, me.client, (GONE,)) or 0)
            if count == BUSY:
                yield from self.retire(me, frame)
            yield from self.give_back_owned(me, me.client, (frame,))
        else:
            won = yield cas(
                "audit_busy", a.count(frame), count, BUSY,
                effect=lambda words, _: a.own(words, frame, me.client, (0, GONE)),
            )  # fmt: skip
            if won:
                yield store("audit_ledger", a.ledger(me.client, frame), 1)
                yield from self.end_life(me, frame)


def plus(numbers: tuple, i: int, more: int) -> tuple:
    return (*numbers[:i], numbers[i] + more, *numbers[i + 1 :])


def judge(count: int, bit: int, expected: int, kept: int) -> str | None:
    """What is wrong with a frame that somebody does not work on, if anything is."""
    if count == UNUSED:
        if expected == 0:
            return "leaked" if bit and not kept else "damaged" if kept and not bit else None
        return None if bit else "damaged"
    if not bit or kept:
        return "damaged"
    if count == ORPHAN:
        return "orphan" if expected == 0 else "damaged"
    if expected == 0:
        return "leaked"
    if count == BUSY:
        return None
    if count == UNIQUE:
        return None if expected == 1 else "damaged"
    return None if count == expected else "miscounted" if count > expected else "damaged"
