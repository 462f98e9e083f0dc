# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What processes do at the same time, in every order, while any of them may be killed.

Each scenario is a few processes with a program each on one to three frames.  Whatever has
happened when all of them are done or dead, somebody else then reaps, audits and repairs, and finds
that no more than a frame a killed thread was held too long, and in the end none.
"""

from collections.abc import Callable
from dataclasses import dataclass

from protocol.machine import Explored, System, Violation, explore, load, run_alone
from protocol.operations import Protocol
from protocol.words import DROPPING, GONE, ORPHAN, T_FREE, UNIQUE, UNUSED, Arena, Lane


@dataclass(frozen=True)
class Scenario:
    """What is set up, and who does what."""

    arena: Arena  # the last client is whoever looks at the end
    programs: list[tuple[Lane, Callable]]  # program(protocol, lane)
    setup: Callable[[Arena, bytearray], None] = lambda arena, words: None
    kills: int = 1
    weak_kills: int | None = None  # with weak memory; None: not explored so
    quick: bool = True  # few enough states for every run of the tests
    weak_quick: bool = False


def system_of(scenario: Scenario, weak: bool = False, fault: str | None = None) -> System:
    """The scenario as something to explore."""
    arena = scenario.arena
    protocol = Protocol(arena, fault)
    words = arena.new()
    for client in range(arena.clients - 1):
        if any(lane.client == client and run not in LATE for lane, run in scenario.programs):
            arena.join(words, client)
    scenario.setup(arena, words)
    return System(
        bytes(words),
        [
            (lane.client, lambda run=run, lane=lane: run(protocol, lane))
            for lane, run in scenario.programs
        ],
        arena.invariant,
        Judge(arena, fault),
        arena.kill,
        arena.alive,
        kills=scenario.weak_kills if weak else scenario.kills,
        weak=weak,
    )  # fmt: skip


class Judge:
    """Looks at what is left when all is done: reaps, audits, repairs."""

    def __init__(self, arena: Arena, fault: str | None) -> None:
        self.arena = arena
        self.me = Lane(arena.clients - 1)
        self.protocol = Protocol(arena, fault)
        self.seen: set[bytes] = set()

    def __call__(self, end: bytes) -> None:
        if end in self.seen:
            return
        self.seen.add(end)
        arena, me, protocol = self.arena, self.me, self.protocol
        words = bytearray(end)
        arena.join(words, me.client)
        run_alone(words, protocol.reap(me))
        wrong, _ = run_alone(words, protocol.audit(me, False))
        if ORPHAN in words[arena.count(0) : arena.count(arena.frames)]:
            raise Violation("a frame waits for its on_drop, and nobody knows")
        if any(verdict == "damaged" for _, verdict, _ in wrong):
            raise Violation(f"an audit finds damage: {wrong}")
        if len(wrong) > words[arena.at("killed_threads")]:
            raise Violation(
                f"{words[arena.at('killed_threads')]} threads were killed, and this is left: {wrong}"
            )
        run_alone(words, protocol.audit(me, True))
        wrong, _ = run_alone(words, protocol.audit(me, False))
        if wrong:
            raise Violation(f"an audit has repaired, and this is left: {wrong}")
        run_alone(words, protocol.reap(me))
        self.check_free(words)

    def check_free(self, words: bytearray) -> None:
        """What nobody holds is free."""
        arena = self.arena
        kept = [words[arena.at("kept", i)] - 1 for i in range(arena.clients * arena.lanes)]
        for frame in range(arena.frames):
            count = words[arena.count(frame)]
            held = sum(words[arena.held(client, frame)] for client in range(arena.clients))
            alone = any(words[arena.alone(client, frame)] for client in range(arena.clients))
            free = not words[arena.at("bits")] >> frame & 1 or frame in kept
            if alone:
                right = count == UNIQUE and not free
            else:
                right = (count == held and not free) if held else (count == UNUSED and free)
            if not right:
                raise Violation(f"frame {frame}: count {count}, held {held}, alone {alone}, free {free}")
        for ticket in range(arena.tickets):
            if words[arena.at("word", ticket)] & 7 != T_FREE:
                raise Violation(f"ticket {ticket} is not free: {words[arena.at('word', ticket)]:#x}")


def run(scenario: Scenario, weak: bool = False, fault: str | None = None) -> Explored:
    """Explore a scenario."""
    return explore(system_of(scenario, weak, fault))


# -- programs ------------------------------------------------------------------------------------


def alloc_and_drop(p, me):
    frame = yield from p.alloc(me)
    if frame >= 0:
        yield from p.put(me, frame)


def alloc_twice(p, me):
    """The second time the frame comes from the lane, or from another's."""
    yield from alloc_and_drop(p, me)
    yield from alloc_and_drop(p, me)


def alloc_two(p, me):
    """The lane keeps one, the bit of the other is cleared."""
    one = yield from p.alloc(me)
    two = yield from p.alloc(me)
    if one >= 0:
        yield from p.put(me, one)
    if two >= 0:
        yield from p.put(me, two)


def clone_and_drop(p, me):
    """Holds frame 0."""
    yield from p.more(me, 0)
    yield from p.put(me, 0)
    yield from p.put(me, 0)


def drop(p, me):
    """Holds frame 0."""
    yield from p.put(me, 0)


def drop_and_alloc(p, me):
    """Holds frame 0, which has another life then."""
    yield from p.put(me, 0)
    yield from p.alloc(me)


def drop_then_alloc(p, me):
    """Has nothing at first."""
    yield from p.alloc(me)


def find(p, me):
    """Knows the paddr of frame 0."""
    got = yield from p.from_in_use(me, 0)
    if got:
        yield from p.put(me, 0)


def find_twice(p, me):
    yield from find(p, me)
    yield from find(p, me)


def borrow(p, me):
    """Has a reference of frame 0 in a table, and clones that after having dropped the frame."""
    generation, life = yield from p.borrow(me, 0)
    yield from p.put(me, 0)
    got = yield from p.clone_borrowed(me, 0, generation, life)
    if got:
        yield from p.put(me, 0)


def unique(p, me):
    """Holds frame 0; makes it its own if it is alone."""
    won = yield from p.try_unique(me, 0)
    if won:
        yield from p.put_unique(me, 0)
    else:
        yield from p.put(me, 0)


def unique_life(p, me):
    frame = yield from p.alloc(me, UNIQUE, DROPPING)
    if frame >= 0:
        yield from p.repurpose(me, frame)
        yield from p.share(me, frame)
        yield from p.put(me, frame)


def drop_with_on_drop(p, me):
    frame = yield from p.alloc(me, 1, DROPPING)
    if frame >= 0:
        yield from p.put(me, frame)


def keep_unique(p, me):
    yield from p.alloc(me, UNIQUE, DROPPING)


def send(p, me):
    """Sends frame 0, which it holds, and drops it."""
    yield from p.issue(me, 0, 1)
    yield from p.put(me, 0)


def send_two(p, me):
    yield from p.issue(me, 0, 2)
    yield from p.put(me, 0)
    yield from p.put(me, 1)


LIVE = 1 << 5 | 2  # the word of the first ticket that is sent


def receive(p, me):
    """Loads the message as soon as it has seen it."""
    word = yield load(p.a.at("word", 0))
    if word == LIVE:
        frames = yield from p.redeem(me, 0, LIVE)
        for i in range(len(frames or ())):
            yield from p.put(me, frames[i])


def receive_and_keep(p, me):
    yield from p.redeem(me, 0, LIVE)


def expire(p, me):
    yield from p.expire_tickets(me)


def reap(p, me):
    yield from p.reap(me)


def repair(p, me):
    yield from p.reap(me)
    yield from p.audit(me, True)


def audit_only(p, me):
    yield from p.audit(me, True)


def adopt(p, me):
    yield from p.adopt_orphans(me)


def audit_and_alloc(p, me):
    yield from p.audit(me, True)
    yield from p.alloc(me)


def reap_and_alloc(p, me):
    yield from p.reap(me)
    yield from p.alloc(me)


def leave(p, me):
    yield from p.leave(me)


def alloc_and_leave(p, me):
    yield from p.alloc(me, UNIQUE, DROPPING)
    yield from p.leave(me)


def join_and_leave(p, me):
    joined = yield from p.join(me)
    if joined:
        yield from p.alloc(me)
        yield from p.leave(me)


def fork(p, me):
    """Holds frame 0; is client 0 and its child client 1."""
    forked = yield from p.fork(me, 1)
    yield from p.put(me, 0)
    return forked


def child(p, me):
    """Drops what it was given."""
    yield from p.wait_to_be_forked(me)
    references = yield load(p.a.ledger(me.client, 0))
    for _ in range(references):
        yield from p.put(me, 0)


LATE = (child, join_and_leave)  # who is no client at first


# -- what is set up ------------------------------------------------------------------------------


def both_hold(arena, words):
    arena.give(words, 0, 0)
    arena.give(words, 1, 0)


def all_hold(arena, words):
    both_hold(arena, words)
    arena.give(words, 2, 0)


def first_holds(arena, words):
    arena.give(words, 0, 0)


def first_holds_two(arena, words):
    arena.give(words, 0, 0)
    arena.give(words, 0, 1)


def first_holds_twice(arena, words):
    arena.give(words, 0, 0, 2)


def second_holds_twice(arena, words):
    arena.give(words, 1, 0, 2)


def leaked(arena, words):
    """A reference of somebody who was killed before his ledger had it."""
    words[arena.at("bits")] = 1
    words[arena.count(0)] = 1
    words[arena.at("type", 0)] = 1
    words[arena.at("kills")] = words[arena.at("killed_threads")] = 1


def counted_twice(arena, words):
    """The same beside one who holds the frame."""
    arena.give(words, 0, 0)
    words[arena.count(0)] = 2
    words[arena.at("kills")] = words[arena.at("killed_threads")] = 1


def lost_bit(arena, words):
    """A frame that somebody had claimed who was killed before his ledger had it."""
    words[arena.at("bits")] = 1
    words[arena.at("owner")] = GONE
    words[arena.at("kills")] = words[arena.at("killed_threads")] = 1


def first_and_third_hold(arena, words):
    arena.give(words, 0, 0)
    arena.give(words, 2, 0)


def sent(arena, words):
    """A message with two frames that its sender has dropped since."""
    arena.give(words, 0, 0)
    arena.give(words, 0, 1)
    for frame in range(2):
        words[arena.ledger(0, frame)] = words[arena.held(0, frame)] = 0
    words[arena.at("last_ticket")] = 1
    words[arena.at("size", 0)] = words[arena.at("done", 0)] = 2
    words[arena.at("word", 0)] = LIVE


ALL = frozenset(range(8))
A, B, C = Lane(0), Lane(1), Lane(2)
B2 = Lane(1, 1)

SCENARIOS = {
    "two allocate from two frames": Scenario(
        Arena(2, 3), [(A, alloc_twice), (B, alloc_and_drop)], kills=2, weak_kills=1
    ),
    "two allocate the last frame": Scenario(
        Arena(1, 3), [(A, alloc_twice), (B, alloc_twice)], kills=2, weak_kills=1,
        quick=False,
    ),
    "three allocate the last frame": Scenario(
        Arena(1, 4), [(A, alloc_and_drop), (B, alloc_and_drop), (C, alloc_and_drop)], kills=2,
        quick=False,
    ),
    "one gives back two frames, another takes them": Scenario(
        Arena(2, 3), [(A, alloc_two), (B, alloc_two)], kills=1, weak_kills=0,
        quick=False,
    ),
    "two threads of one client allocate": Scenario(
        Arena(1, 3, lanes=2), [(B, alloc_and_drop), (B2, alloc_and_drop), (A, alloc_and_drop)], kills=2,
        quick=False,
    ),
    "two drop the same frame": Scenario(
        Arena(1, 3), [(A, clone_and_drop), (B, clone_and_drop)], both_hold, kills=2, weak_kills=2,
        weak_quick=True,
    ),
    "three drop the same frame": Scenario(
        Arena(1, 4), [(A, drop), (B, drop), (C, drop)], all_hold, kills=3, weak_kills=1
    ),
    "two threads of one client drop the same frame": Scenario(
        Arena(1, 3, lanes=2), [(B, drop), (B2, drop), (A, find)], second_holds_twice,
        kills=2, weak_kills=1,
    ),
    "found by paddr while it goes and comes again": Scenario(
        Arena(1, 3), [(A, drop_and_alloc), (B, find)], first_holds, kills=2, weak_kills=1,
        weak_quick=True,
    ),
    "borrowed, released and used again": Scenario(
        Arena(1, 3), [(A, drop_and_alloc), (B, borrow)], both_hold, kills=2, weak_kills=1
    ),
    "made unique by two": Scenario(
        Arena(1, 3), [(A, unique), (B, unique)], both_hold, kills=2, weak_kills=1,
        weak_quick=True,
    ),
    "unique, repurposed, shared; found by paddr": Scenario(
        Arena(1, 3, knows=ALL), [(A, unique_life), (B, find)], kills=2, weak_kills=1,
        weak_quick=True,
    ),
    "sent and loaded": Scenario(
        Arena(1, 3, tickets=1), [(A, send), (B, receive)], first_holds, kills=2, weak_kills=1,
        weak_quick=True,
    ),
    "loaded by two": Scenario(
        Arena(2, 4, tickets=1), [(B, receive), (C, receive)], sent, kills=2, weak_kills=1,
        weak_quick=True,
    ),
    "sent, loaded and expired": Scenario(
        Arena(1, 4, tickets=1), [(A, send), (B, receive), (C, expire)], first_holds, kills=1
    ),
    "two frames sent, loaded and kept": Scenario(
        Arena(2, 3, tickets=1), [(A, send_two), (B, receive_and_keep)], first_holds_two, kills=2, weak_kills=0
    ),
    "a client is reaped": Scenario(
        Arena(1, 3), [(A, alloc_and_drop), (B, reap)], kills=2, weak_kills=1,
        weak_quick=True,
    ),
    "a client is reaped by two": Scenario(
        Arena(1, 4), [(A, drop), (B, reap), (C, reap)], first_holds, kills=3
    ),
    "a client that shares a frame is reaped": Scenario(
        Arena(1, 4), [(A, drop), (B, drop), (C, reap)], both_hold, kills=3
    ),
    "a client whose frames have an on_drop is reaped": Scenario(
        Arena(1, 3, knows=ALL), [(A, drop_with_on_drop), (B, reap)], kills=2, weak_kills=1,
        weak_quick=True,
    ),
    "a client with frames that the reaper does not know is reaped": Scenario(
        Arena(1, 4, knows=frozenset({0, 2, 3})), [(A, drop_with_on_drop), (B, reap), (C, reap)], kills=2
    ),
    "a unique frame is reaped": Scenario(
        Arena(1, 4, knows=ALL), [(A, keep_unique), (B, reap), (C, reap)], kills=2
    ),
    "a client that sends is reaped": Scenario(
        Arena(1, 3, tickets=1), [(A, send), (B, reap)], first_holds, kills=2, weak_kills=1,
        weak_quick=True,
    ),
    "a client that loads is reaped": Scenario(
        Arena(2, 4, tickets=1), [(B, receive), (C, reap)], sent, kills=2, weak_kills=1,
        weak_quick=True,
    ),
    "a client is reaped, its frame used again": Scenario(
        Arena(1, 4), [(A, drop), (B, reap_and_alloc), (C, find)], first_holds, kills=2,
        quick=False,
    ),
    "one leaves while another drops": Scenario(
        Arena(2, 3, knows=ALL), [(A, alloc_and_leave), (B, clone_and_drop)], both_hold, kills=2, weak_kills=1
    ),
    "one leaves, and others reap": Scenario(
        Arena(1, 4), [(A, leave), (B, reap), (C, drop)], all_hold, kills=2
    ),
    "one forks": Scenario(
        Arena(1, 3), [(A, fork), (B, child)], first_holds_twice, kills=2, weak_kills=1,
        weak_quick=True,
    ),
    "one forks, and another reaps": Scenario(
        Arena(1, 4), [(A, fork), (B, child), (C, reap)], first_and_third_hold, kills=2
    ),
    "audit while two allocate and drop": Scenario(
        Arena(1, 4), [(A, alloc_and_drop), (B, alloc_and_drop), (C, audit_only)], kills=1,
        quick=False,
    ),
    "audit while two share a frame": Scenario(
        Arena(1, 4), [(A, clone_and_drop), (B, drop), (C, repair)], both_hold, kills=1,
        quick=False,
    ),
    "audit while a message is sent and loaded": Scenario(
        Arena(1, 4, tickets=1), [(A, send), (B, receive), (C, audit_only)], first_holds, kills=1,
        quick=False,
    ),
    "audit while a client is reaped": Scenario(
        Arena(1, 4), [(A, drop), (B, reap_and_alloc), (C, audit_only)], first_holds, kills=2,
        quick=False,
    ),
    "audit while one leaves": Scenario(
        Arena(1, 4), [(A, leave), (B, alloc_and_drop), (C, audit_only)], kills=1,
        quick=False,
    ),
    "two repair the same frame": Scenario(
        Arena(1, 3), [(A, audit_only), (B, audit_and_alloc)], lost_bit, kills=2
    ),
    "audit while one joins, leaves, and another allocates": Scenario(
        Arena(1, 4), [(A, join_and_leave), (B, drop_then_alloc), (C, audit_only)], kills=0,
        quick=False,
    ),
    "audit while one clones": Scenario(
        Arena(1, 3), [(A, clone_and_drop), (B, audit_only)], first_holds, kills=1, weak_kills=0,
        weak_quick=True,
    ),
    "audit while one allocates": Scenario(
        Arena(1, 3), [(A, alloc_twice), (B, audit_only)], kills=1, weak_kills=1
    ),
    "audit while one finds a frame": Scenario(
        Arena(1, 3), [(A, find_twice), (B, audit_only)], leaked, kills=2, weak_kills=1
    ),
    "audit while one makes an orphan and another adopts it": Scenario(
        Arena(1, 4, knows=frozenset({1, 3})),
        [(A, drop_with_on_drop), (B, adopt), (C, audit_only)],
        kills=0,
        quick=False,
    ),
    "audit of a count that is too high": Scenario(
        Arena(1, 3), [(A, drop), (B, audit_only)], counted_twice, kills=2, weak_kills=2,
        weak_quick=True
    ),
    "audit while one sends": Scenario(
        Arena(1, 3, tickets=1), [(A, send), (B, audit_only)], first_holds, kills=1, weak_kills=0,
        weak_quick=True,
    ),
}  # fmt: skip

FAULTS = {
    # name: scenario that shows it, weak memory
    "ledger before count": ("two drop the same frame", False),
    "count before ledger": ("a client that shares a frame is reaped", False),
    "missing generation": ("borrowed, released and used again", False),
    "reaper clears last": ("a client that shares a frame is reaped", False),
    # What the model found in the core.
    "operation numbered first": ("audit while one allocates", False),
    "two repair": ("two repair the same frame", False),
    "joining not counted": ("audit while one joins, leaves, and another allocates", False),
    "count not ordered": ("audit while one clones", True),
}
