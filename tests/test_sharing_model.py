# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Several clients of one arena and messages between them, beside a plain-Python model.

The model knows which client has which handles, and which messages are in transit. After
every step each frame's count must be the sum of these, `holders` must name them, and an
audit must find nothing.

Which client of this process gets a message that is loaded is not certain, so no rule has
a precondition: what is drawn must not depend on it.
"""

import os
import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

import pageframe as pf
from amount import LONG, chosen_seed
from processes import unique_name
from types_for_tests import Node, Raw

PAGE = 4096
REACHED: Counter[str] = Counter()
STATES = {
    "loaded by a client that did not send it",
    "loaded again",
    "loaded again though the sender has left",
    "gone",
    "gone for another life",
    "vector loaded again",
    "expired",
    "expired to make room",
    "tickets full",
    "frames run out",
    "client left with frames in transit",
    "client left with handles",
    "frame held by two clients",
    "frame in two messages",
}
number = st.integers(0, 2**16)


def runs(frames):
    """How many runs frames lie in, given as pairs with their generations."""
    numbers = [frame for frame, _ in frames]
    return sum(b != a + 1 for a, b in pairwise(numbers)) + 1


class Message:
    """What was sent: frames with their generations."""

    def __init__(self, data, kind, frames, sender):
        self.data, self.kind, self.frames, self.sender = data, kind, frames, sender
        self.live, self.expired, self.lists = True, False, kind == "vec"


class Machine(RuleBasedStateMachine):
    """An arena of few frames with up to four clients of this process."""

    def __init__(self):
        super().__init__()
        self.name = unique_name()
        first = pf.PhysicalMemory.create("128 KiB", self.name, clients=6, tickets=4)
        self.clients = [first]
        self.handles = []  # [client, kind, handle, frames]
        self.messages = []
        self.left = set()
        self.total = first.free_frames

    # -- the model -----------------------------------------------------------------------------

    def held(self):
        """References of each frame, by client."""
        counts = {}
        for client, _, _, frames in self.handles:
            for frame in frames:
                counts.setdefault(frame, Counter())[id(client)] += 1
        return counts

    def in_transit(self):
        """References of each frame that messages have."""
        return Counter(f for m in self.messages if m.live for f, _ in m.frames)

    def generation(self, frame):
        return int(self.clients[0].slots["generation"][frame])

    def take(self, client, kind, handle):
        if kind == "vec":
            frames = [int(paddr) // PAGE for paddr in handle.paddrs]
        else:
            frames = list(range(handle.start_paddr // PAGE, (handle.start_paddr + handle.size) // PAGE))
        self.handles.append([client, kind, handle, frames])

    def lists(self):
        return sum(m.live and m.lists for m in self.messages)

    def pick(self, things, n):
        return things[n % len(things)]

    # -- rules ---------------------------------------------------------------------------------

    @rule()
    def attach(self):
        if not (len(self.clients) < 4):
            return
        self.clients.append(pf.PhysicalMemory.attach(self.name))
        self.expire()

    @rule(n=number)
    def leave(self, n):
        """A client drops what it has and leaves; its messages stay."""
        if not (len(self.clients) > 1):
            return
        client = self.clients.pop(n % len(self.clients))
        mine = [entry for entry in self.handles if entry[0] is client]
        REACHED["client left with handles"] += bool(mine)
        REACHED["client left with frames in transit"] += any(
            m.live and m.sender is client for m in self.messages
        )
        for entry in mine:
            entry[2].drop()
        self.handles = [entry for entry in self.handles if entry[0] is not client]
        self.left.add(client)
        client.close()
        for number, message in enumerate(self.messages):
            if message.sender is client and not message.live:
                self.load(n=number, at=0)
                break

    @rule(
        n=number,
        kind=st.sampled_from(("frame", "segment", "vec")),
        count=st.integers(1, 4),
        typed=st.booleans(),
    )
    def allocate(self, n, kind, count, typed):
        client = self.pick(self.clients, n)
        meta = Node() if typed else Raw(number=n)
        try:
            if kind == "frame":
                handle = client.alloc_frame(meta)
            elif kind == "segment":
                handle = client.alloc_segment(count, meta)
            else:
                handle = client.alloc_frames(count, meta)
        except pf.OutOfFramesError:
            REACHED["frames run out"] += 1
            self.expire()
            return
        self.expire(certain=False)
        self.take(client, kind, handle)

    def expire(self, certain=True):
        """What has expired went, if somebody looked for room."""
        if certain or self.tickets_of_arena() < sum(m.live for m in self.messages):
            for message in self.messages:
                message.live = message.live and not message.expired

    def tickets_of_arena(self):
        return self.clients[0].audit().tickets

    @rule(n=number)
    def clone(self, n):
        if not (self.handles):
            return
        client, kind, handle, _ = self.pick(self.handles, n)
        self.take(client, kind, handle.clone())

    @rule(n=number)
    def drop(self, n):
        if not (self.handles):
            return
        entry = self.handles.pop(n % len(self.handles))
        entry[2].drop()

    @rule(n=number)
    def drop_many(self, n):
        """Drop all handles, but a few."""
        for entry in self.handles[n % 4 :]:
            entry[2].drop()
        del self.handles[n % 4 :]

    @rule(n=number, late=st.integers(0, 3))
    def send(self, n, late):
        if not (self.handles):
            return
        client, kind, handle, frames = self.pick(self.handles, n)
        room = sum(m.live for m in self.messages) < 4
        dead = sum(m.live and m.expired for m in self.messages)
        client.ticket_ttl = 3600 if late else 0
        try:
            data = pickle.dumps(handle)
        except pf.TicketsFullError:
            REACHED["tickets full"] += 1
            assert not room
            assert not dead
            return
        except pf.OutOfFramesError:
            assert kind == "vec"
            self.expire()
            return
        assert room or dead
        message = Message(data, kind, [(f, self.generation(f)) for f in frames], client)
        message.expired = not late
        if not room:
            REACHED["expired to make room"] += 1
            self.expire()
        else:  # a list may have needed a frame
            after = self.tickets_of_arena()
            if after < sum(m.live for m in self.messages) + 1:
                self.expire()
        self.messages.append(message)

    @rule(n=number)
    def live_again(self, n):
        """Give the frames of an old message another life, and load it."""
        busy = self.held().keys() | self.in_transit().keys()
        old = [m for m in self.messages if not m.live and not any(f in busy for f, _ in m.frames)]
        if not old:
            return
        message, client = self.pick(old, n), self.pick(self.clients, n)
        for frame in dict(message.frames):
            try:
                handle = pf.Frame.from_unused(client, frame * PAGE, Raw(number=n))
            except pf.GetFrameError:  # the list of another message
                continue
            self.take(client, "frame", handle)
        self.load(n=self.messages.index(message), at=0)

    @rule(n=number, at=number)
    def load(self, n, at):
        """Load a message, whatever became of it; any client of this process may get it."""
        if not (self.messages):
            return
        message = self.pick(self.messages, n)
        used = {frame for frame, _ in message.frames if self.held().get(frame) or self.in_transit()[frame]}
        alive = all(f in used and self.generation(f) == g for f, g in message.frames)
        try:
            handle = pickle.loads(message.data)
        except pf.FrameGoneError:
            assert not message.live
            # Of a vector the message has the frames only if they lie in a few runs.
            assert not alive or (message.kind == "vec" and runs(message.frames) > 8)
            REACHED["gone for another life" if len(used) == len(message.frames) else "gone"] += 1
            return
        assert message.live or alive
        REACHED["vector loaded again"] += message.kind == "vec" and not message.live
        client = handle_client(handle, self.clients)
        if message.live:
            REACHED["loaded by a client that did not send it"] += client is not message.sender
        else:
            REACHED["loaded again"] += 1
            REACHED["loaded again though the sender has left"] += message.sender in self.left
        message.live = False
        self.take(client, message.kind, handle)
        assert self.handles[-1][3] == [f for f, _ in message.frames]

    @rule(n=number)
    def reap(self, n):
        old = sum(m.live and m.expired for m in self.messages)
        report = self.pick(self.clients, n).reap()
        assert report.tickets == old
        assert not report.clients
        REACHED["expired"] += old > 0
        self.expire()

    # -- what must hold ------------------------------------------------------------------------

    @invariant()
    def counts_are_handles_and_tickets(self):
        mem = self.clients[0]
        held, transit = self.held(), self.in_transit()
        report = mem.audit()
        assert report.clean, report
        assert report.quiet
        live = sum(m.live for m in self.messages)
        assert report.tickets == live
        assert len(mem.clients) == len(self.clients)
        counts = mem.slots["count"].copy()  # a view would keep the client from leaving
        for frame in held.keys() | transit.keys():
            theirs = held.get(frame, Counter())
            assert int(counts[frame]) == sum(theirs.values()) + transit[frame]
            REACHED["frame held by two clients"] += len(theirs) >= 2
            REACHED["frame in two messages"] += transit[frame] >= 2
            (holder,) = mem.holders(frame * PAGE)  # all clients are of this process
            assert holder.pid == os.getpid()
            assert holder.tickets == transit[frame]
        frames = sum(1 for frame in held.keys() | transit.keys())
        assert mem.used_frames == frames + self.lists()
        assert (
            int(np.count_nonzero(counts < pf.REF_COUNT_UNIQUE)) == frames + self.lists() + mem.reserved_frames
        )

    def teardown(self):
        for _, _, handle, _ in self.handles:
            handle.drop()
        self.clients[0].ticket_ttl = 0
        for message in self.messages:
            if message.live:
                pickle.loads(message.data).drop()
        assert self.clients[0].used_frames == 0
        for client in self.clients:
            client.close()


def handle_client(handle, clients):
    """Which client a handle is of."""
    if isinstance(handle, pf.FrameVec):
        handle = handle[0]
    return next(client for client in clients if handle.mem is client)


def test_clients_and_messages_agree_with_the_model_and_rare_states_are_reached():
    number = chosen_seed()
    # What is drawn depends on which modules are there, too; so there are more rounds if need be.
    for more in range(10):
        run_state_machine_as_test(
            seed(number + more)(Machine),
            settings=settings(
                max_examples=150 * LONG,
                stateful_step_count=50,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
        missing = STATES - {name for name in STATES if REACHED[name]}
        if not missing:
            break
    assert not missing, f"never reached: {sorted(missing)}"
