# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Pickled handles: exactly one reference however a message fares."""

import contextlib
import copy
import copyreg
import gc
import multiprocessing as mp
import os
import pickle
import random
import signal
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import pageframe as pf
from processes import LIMIT, Forked, run_program, shared_arena, unique_name
from types_for_tests import Node, Page, Raw

PAGE = 4096
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
KINDS = {
    "frame": lambda mem: mem.alloc_frame(Raw(number=5)),
    "typed": lambda mem: mem.alloc_frame(Node(level=5)),
    "segment": lambda mem: mem.alloc_segment(4, Node(level=5)),
    "usegment": lambda mem: mem.alloc_segment(4, Raw(number=5)),
    "vec": lambda mem: mem.alloc_frames(4, Raw(number=5)),
}


@pytest.fixture
def shared():
    """Return a shared arena without a name; at the end nothing may be held, and nobody else be there."""
    with shared_arena() as mem:
        yield mem


def paddrs_of(handle):
    if isinstance(handle, pf.FrameVec):
        return handle.paddrs.tolist()
    return list(range(handle.start_paddr, handle.start_paddr + handle.size, PAGE))


def count_of(mem, paddr):
    return int(mem.slots["count"][paddr // PAGE])


def drop_all(handles):
    for handle in handles:
        handle.drop()


# -- what a pickle is ------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_handle_arrives_as_one_of_its_kind_and_has_the_tickets_references(shared, kind, protocol):
    handle = KINDS[kind](shared)
    paddrs = paddrs_of(handle)
    data = pickle.dumps(handle, protocol)
    assert {count_of(shared, paddr) for paddr in paddrs} == {2}
    assert shared.audit().tickets == 1
    handle.drop()
    assert {count_of(shared, paddr) for paddr in paddrs} == {1}
    (holder,) = shared.holders(paddrs[-1])
    assert (holder.pid, holder.handles, holder.tickets) == (os.getpid(), 0, 1)
    loaded = pickle.loads(data)
    assert type(loaded) is type(handle)
    assert paddrs_of(loaded) == paddrs
    assert {count_of(shared, paddr) for paddr in paddrs} == {1}
    assert shared.audit().tickets == 0
    (holder,) = shared.holders(paddrs[0])
    assert (holder.handles, holder.tickets) == (1, 0)
    assert loaded.meta_type is handle.__class__ or loaded.meta_type in (Raw, Node)
    loaded.drop()
    assert shared.used_frames == 0


@pytest.mark.parametrize("kind", ["segment", "vec", "array"])
def test_the_size_of_a_pickle_does_not_grow_with_its_content(kind):
    make = {
        "segment": lambda mem, n: mem.alloc_segment(n),
        "vec": lambda mem, n: mem.alloc_frames(n),
        "array": lambda mem, n: mem.empty(n * PAGE, np.uint8),
    }[kind]
    with shared_arena("32 MiB") as mem:
        sizes = []
        for frames in (1, 3000):
            handle = make(mem, frames)
            data = pickle.dumps(handle)
            sizes.append(len(data))
            del handle
            pickle.loads(data)
        assert max(sizes) <= min(sizes) + 8
        assert max(sizes) < 400


def test_a_vector_longer_than_one_page_of_numbers_arrives_in_its_order():
    with shared_arena("32 MiB") as mem:
        vec = mem.alloc_frames(2500)
        order = [vec[i] for i in random.Random(1).sample(range(2500), 2100)]
        order[7] = order[3]  # the same frame twice
        mixed = pf.FrameVec.from_frames(order)
        paddrs = mixed.paddrs.tolist()
        loaded = pickle.loads(pickle.dumps(mixed))
        assert loaded.paddrs.tolist() == paddrs
        del order
        drop_all((vec, mixed))
        gc.collect()
        assert mem.used_frames == 2099
        assert count_of(mem, paddrs[3]) == 2
        loaded.drop()


def test_an_arena_pickles_as_itself_where_it_is_attached(shared):
    for protocol in PROTOCOLS:
        assert pickle.loads(pickle.dumps(shared, protocol)) is shared
    assert len(pickle.dumps(shared)) < 200


def test_copies_in_the_same_process_hold_references_of_their_own(shared):
    for make in KINDS.values():
        handle = make(shared)
        paddr = paddrs_of(handle)[0]
        copies = [copy.copy(handle), copy.deepcopy(handle), copy.deepcopy([handle])[0]]
        assert count_of(shared, paddr) == 4
        assert [paddrs_of(other) for other in copies] == [paddrs_of(handle)] * 3
        drop_all((handle, *copies))
    assert copy.deepcopy(shared) is shared
    array = shared.zeros(3)
    copied = copy.deepcopy(array)
    copied += 1
    assert array.tolist() == [0, 0, 0]
    del array, copied


@pytest.mark.parametrize(
    "make",
    [
        lambda mem: pf.UniqueFrame.from_unused(mem, mem.size - PAGE),
        lambda mem: pf.LinkedList(mem, Page),
        lambda mem: pf.LinkedList(mem, Page).cursor_front(),
        lambda mem: mem.alloc_frame().borrow(),
        lambda mem: mem.alloc_frame().reader(),
        lambda mem: mem.alloc_frame().writer(),
        lambda mem: memoryview(mem.alloc_frame()),
    ],
)
def test_what_cannot_be_shared_refuses_to_be_pickled_or_copied(shared, make):
    thing = make(shared)
    for protocol in PROTOCOLS:
        with pytest.raises(TypeError):
            pickle.dumps(thing, protocol)
    with pytest.raises(TypeError):
        copy.deepcopy(thing)
    assert shared.audit().tickets == 0
    del thing


def test_handles_of_private_arenas_refuse_to_be_pickled(mem):
    with mem.alloc_frame() as frame, mem.alloc_segment(2) as segment, mem.alloc_frames(2) as vec:
        for handle in (frame, segment, vec, mem):
            with pytest.raises(TypeError, match="private arena"):
                pickle.dumps(handle)


def test_moved_handles_and_closed_arenas_refuse_to_be_pickled():
    mem = pf.PhysicalMemory.create("1 MiB")
    for make in KINDS.values():
        handle = make(mem)
        handle.drop()
        with pytest.raises(pf.MovedError):
            pickle.dumps(handle)
    mem.close()
    with pytest.raises(pf.ArenaClosedError):
        pickle.dumps(mem)


# -- how a message fares ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_never_delivered_lets_go_when_it_has_expired(kind):
    with shared_arena(ticket_ttl=3600) as mem:
        handle = KINDS[kind](mem)
        data = [pickle.dumps(handle)]
        mem.ticket_ttl = 0
        data.append(pickle.dumps(handle))
        handle.drop()
        used = mem.used_frames
        report = mem.reap()
        assert report.tickets == 1  # the other one was sent with more time
        assert mem.audit().tickets == 1
        assert used - mem.used_frames == (kind == "vec")  # the list of the frames
        drop_all([pickle.loads(data[0])])
        assert mem.used_frames == 0
        with pytest.raises(pf.FrameGoneError):
            pickle.loads(data[1])


@pytest.mark.parametrize("how", ["frame", "run", "frames"])
def test_expired_messages_let_go_when_frames_run_out(shared, how):
    shared.ticket_ttl = 0
    wanted = shared.free_frames
    lost = pickle.dumps(shared.alloc_segment(wanted))
    assert shared.free_frames == 0
    if how == "frame":
        shared.alloc_frame().drop()
    elif how == "run":
        shared.alloc_segment(wanted).drop()
    else:
        shared.alloc_frames(wanted).drop()
    with pytest.raises(pf.FrameGoneError):
        pickle.loads(lost)


def test_messages_in_time_keep_their_frames_when_frames_run_out(shared):
    data = pickle.dumps(shared.alloc_segment(shared.free_frames))
    with pytest.raises(pf.OutOfFramesError):
        shared.alloc_frame()
    pickle.loads(data).drop()


def test_messages_beyond_the_table_are_refused_and_expired_ones_make_room():
    with shared_arena(tickets=3) as mem:
        frame, vec = mem.alloc_frame(), mem.alloc_frames(2)
        data = [pickle.dumps(frame) for _ in range(3)]
        for handle in (frame, vec):
            with pytest.raises(pf.TicketsFullError, match="3 messages are in transit"):
                pickle.dumps(handle)
        assert frame.reference_count == 4
        assert mem.used_frames == 3
        drop_all([pickle.loads(data.pop())])
        mem.ticket_ttl = 0
        data.append(pickle.dumps(frame))  # there is room again
        data.append(pickle.dumps(frame))  # and now one has expired
        assert mem.audit().tickets == 3
        drop_all([pickle.loads(message) for message in data])  # the frame lives
        mem.reap()
        assert frame.reference_count == 1
        drop_all((frame, vec))


def test_a_vector_of_frames_that_lie_far_apart_is_loaded_once(shared):
    frames = shared.alloc_frames(18)
    apart = frames[::2]
    data = pickle.dumps(apart)
    assert len(data) < 110
    assert pickle.loads(data).paddrs.tolist() == apart.paddrs.tolist()
    with pytest.raises(pf.FrameGoneError, match=r"of 9 scattered frames .* list of them is gone"):
        pickle.loads(data)
    drop_all((apart, frames))


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_delivered_twice_takes_references_of_its_own_while_the_frames_live(shared, kind):
    handle = KINDS[kind](shared)
    paddr = paddrs_of(handle)[0]
    data = pickle.dumps(handle)
    first, second, third = (pickle.loads(data) for _ in range(3))
    assert count_of(shared, paddr) == 4
    drop_all((handle, first, second))
    with pickle.loads(data) as fourth:
        assert paddrs_of(fourth) == paddrs_of(third)
    third.drop()
    with pytest.raises(pf.FrameGoneError, match="its frames are gone"):
        pickle.loads(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_of_frames_that_live_another_life_is_refused(shared, kind):
    handle = KINDS[kind](shared)
    data, paddrs = pickle.dumps(handle), paddrs_of(handle)
    handle.drop()
    pickle.loads(data).drop()
    again = [pf.Frame.from_unused(shared, paddr, Raw()) for paddr in paddrs]
    with pytest.raises(pf.FrameGoneError):
        pickle.loads(data)
    assert {frame.reference_count for frame in again} == {1}
    drop_all(again)


def test_a_message_whose_last_frame_only_lives_another_life_is_refused_as_a_whole(shared):
    segment = shared.alloc_segment(3)
    data, paddrs = pickle.dumps(segment), paddrs_of(segment)
    frames = [segment[0], segment[1]]
    segment.drop()
    pickle.loads(data).drop()
    frames.append(pf.Frame.from_unused(shared, paddrs[2]))
    with pytest.raises(pf.FrameGoneError):
        pickle.loads(data)
    assert [frame.reference_count for frame in frames] == [1, 1, 1]
    drop_all(frames)


def test_a_message_whose_frame_is_unique_meanwhile_is_refused(shared):
    frame = shared.alloc_frame()
    data = pickle.dumps(frame)
    with pytest.raises(pf.FrameInUseError):
        frame.try_unique()  # the ticket holds it, too
    pickle.loads(data).drop()
    unique = frame.try_unique()
    with pytest.raises(pf.FrameGoneError):
        pickle.loads(data)
    unique.drop()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["drops", "exits", "killed"])
def test_a_message_outlives_its_sender(shared, kind, how):
    def work(conn):
        handle = KINDS[kind](shared)
        sent = paddrs_of(handle), pickle.dumps(handle)
        if how == "drops":
            handle.drop()
        conn.send(sent)
        if how == "exits":
            os._exit(0)
        signal.pause()

    with Forked(work) as sender:
        paddrs, data = sender.hear()
        if how == "killed":
            sender.kill()
        elif how == "exits":
            sender.wait()
        if how != "drops":
            assert len(shared.reap().clients) == 1
            (holder,) = shared.holders(paddrs[0])
            assert (holder.pid, holder.name, holder.tickets) == (sender.pid, "gone", 1)
        loaded = pickle.loads(data)
        assert paddrs_of(loaded) == paddrs
        assert {count_of(shared, paddr) for paddr in paddrs} == {1}
        loaded.drop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_receiver_that_is_killed_at_any_moment_around_loading_loses_nothing(shared, kind):
    rng = random.Random(5)
    outcomes = set()

    def work(conn, data, delay):
        conn.send(None)
        for _ in range(delay):
            pass
        for message in data:
            pickle.loads(message).drop()
        conn.send(None)
        signal.pause()

    for turn in range(25):
        handle = KINDS[kind](shared)
        data = [pickle.dumps(handle) for _ in range(30)]
        paddrs = paddrs_of(handle)
        delay = 0 if turn == 0 else 10**8 if turn == 1 else rng.randrange(20000)
        with Forked(work, data, delay) as receiver:
            receiver.hear()
            if turn == 0:
                receiver.hear()
            elif turn > 1:
                receiver.conn.poll(rng.random() * 0.001)
            os.kill(receiver.pid, signal.SIGSTOP)  # at whatever it does
            assert min(count_of(shared, paddr) for paddr in paddrs) >= 1
            receiver.kill()
        report = shared.reap()
        assert len(report.clients) == 1
        left = shared.audit().tickets
        if report.in_doubt:
            shared.audit(repair=True)
        assert shared.audit().clean
        assert {count_of(shared, paddr) for paddr in paddrs} == {1 + left}
        outcomes.add("none" if left == 30 else "all" if left == 0 else "some")
        shared.ticket_ttl = 0
        for message in data:
            try:
                pickle.loads(message).drop()
            except pf.FrameGoneError:
                assert kind == "vec"
        assert shared.audit().tickets == 0
        handle.drop()
        shared.ticket_ttl = 3600
        assert shared.used_frames == 0
    assert outcomes >= {"none", "all"}


def test_a_message_loaded_by_many_processes_at_once_is_moved_once(shared):
    handles = [make(shared) for make in KINDS.values()]
    with shared_arena() as gate:
        flag = gate.zeros(1, np.int64)

        def work(conn, data):
            conn.send(None)
            while not flag[0]:
                pass
            loaded, gone = [], 0
            for message in data:
                try:
                    loaded.append(pickle.loads(message))
                except pf.FrameGoneError:
                    gone += 1  # a list of frames goes with the first
            conn.send((len(loaded), gone))
            conn.recv()
            drop_all(loaded)

        data = [pickle.dumps(handle) for handle in handles for _ in range(8)]
        paddrs = [paddrs_of(handle)[0] for handle in handles]
        children = [Forked(work, data) for _ in range(3)]
        try:
            for child in children:
                child.hear()
            drop_all(handles)  # the children have handles of their own by the fork
            flag[0] = 1
            results = [child.hear() for child in children]
            assert all(loaded + gone == 40 for loaded, gone in results), results
            assert sum(loaded for loaded, _ in results) >= 3 * 32 + 8
            assert [count_of(shared, paddr) for paddr in paddrs[:4]] == [3 + 24] * 4
            assert shared.audit().tickets == 0
            for child in children:
                child.say()
                child.result()
        finally:
            for child in children:
                child.__exit__()
        flag = None


def test_a_message_loaded_by_many_threads_at_once_is_moved_once(shared):
    frame, segment = shared.alloc_frame(), shared.alloc_segment(3)
    loaded, errors = [], []
    for _ in range(20):
        data = [pickle.dumps(frame), pickle.dumps(segment)]
        barrier = threading.Barrier(4)

        def work(data=data, barrier=barrier):
            barrier.wait()
            try:
                loaded.extend(pickle.loads(message) for message in data)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert shared.audit().tickets == 0
    assert frame.reference_count == 81
    drop_all((*loaded, frame, segment))


# -- where it is loaded ----------------------------------------------------------------------------

LOADS = """
import pickle, sys
import pageframe as pf
try:
    loaded = pickle.load(sys.stdin.buffer)
    print(type(loaded).__name__)
except pf.PageFrameError as error:
    print(type(error).__name__)
"""


def loads_elsewhere(data, program=LOADS):
    return run_program(program, input=data).decode().strip()


@pytest.mark.parametrize("named", [True, False])
def test_a_process_that_was_not_attached_attaches_when_it_loads_a_message(named):
    with shared_arena(name=unique_name() if named else None) as mem:
        frame, array = mem.alloc_frame(), mem.zeros(5)
        data = pickle.dumps((frame, array, mem, mem.alloc_frames(2)))
        assert loads_elsewhere(data) == "tuple"
        assert len(mem.clients) == 1
        assert frame.reference_count == 1
        frame.drop()
        del array


def test_a_message_of_an_arena_that_is_gone_is_refused():
    for name in (unique_name(), None):
        mem = pf.PhysicalMemory.create("1 MiB", name)
        frame = mem.alloc_frame()
        messages = [pickle.dumps(frame), pickle.dumps(mem)]
        frame.drop()
        mem.close()
        for data in messages:
            with pytest.raises(pf.ArenaGoneError):
                pickle.loads(data)


def test_a_message_of_an_arena_whose_name_another_one_has_is_refused():
    name = unique_name()
    with pf.PhysicalMemory.create("1 MiB", name) as first:
        frame = first.alloc_frame()
        data = pickle.dumps(frame)
        frame.drop()
    with shared_arena(name=name) as second:
        with pytest.raises(pf.ArenaGoneError, match="another one has its name"):
            pickle.loads(data)
        assert loads_elsewhere(data) == "ArenaGoneError"
        assert len(second.clients) == 1


def test_a_message_loaded_where_no_such_arena_is_is_refused_there_and_kept_for_the_right_place():
    name = unique_name()
    with shared_arena(name=name) as mem:
        data = pickle.dumps(mem.alloc_frame(Raw(number=3)))
        elsewhere = data.replace(name.encode(), b"x" * len(name))
        assert loads_elsewhere(elsewhere) == "ArenaGoneError"
        pickle.loads(data).drop()


def test_a_message_is_refused_where_the_table_of_clients_is_full():
    name = unique_name()
    with shared_arena(name=name, clients=1) as mem:
        data = pickle.dumps(mem.alloc_frame())
        assert loads_elsewhere(data) == "ClientsFullError"
        pickle.loads(data).drop()


TYPES = """
import pickle, sys
import pageframe as pf
sys.path[:] = [*sys.argv[1:], *sys.path]
if sys.argv[1:]:
    import types_for_tests
frame, node = pickle.load(sys.stdin.buffer)
print(frame.meta_type.__qualname__, issubclass(frame.meta_type, pf.OpaqueMeta), node.meta_type.__qualname__)
if sys.argv[1:]:
    print(frame.meta.inode, frame.meta.tag, node.meta.level)
else:
    print(type(frame).__name__, type(node).__name__, bytes(memoryview(frame)[:2]))
"""


def test_metadata_arrives_as_itself_where_its_type_is_defined_and_opaque_elsewhere(shared):
    frame, node = shared.alloc_frame(Page(inode=3, tag=b"x")), shared.alloc_frame(Node(level=4))
    memoryview(frame)[:2] = b"hi"
    here = Path(__file__).parent
    known = run_program(TYPES, here, input=pickle.dumps((frame, node))).decode().splitlines()
    assert known[0].split() == ["Page", "False", "Node"]
    assert known[1].split()[0] == "3"
    assert known[1].endswith(" 4")
    unknown = run_program(TYPES, input=pickle.dumps((frame, node))).decode().splitlines()
    assert unknown[0].split()[1] == "True"
    assert unknown[1] == "UFrame Frame b'hi'"
    drop_all((frame, node))


# -- forged and damaged pickles --------------------------------------------------------------------

MESSAGE = struct.Struct("<16sQIIIIIBBH")  # as in message.pyx
FIELDS = (
    "id", "generations", "ticket", "first", "count", "pid", "serial", "serial_high", "kind", "shown",
)  # fmt: skip


def message_of(handle):
    """What a handle's pickle calls, and its message."""
    load, (message,) = copyreg.dispatch_table[type(handle)](handle)
    return load, message


def forged(message, **changes):
    fields = dict(zip(FIELDS, MESSAGE.unpack_from(message), strict=True))
    fields.update(changes)
    return MESSAGE.pack(*fields.values()) + message[MESSAGE.size :]


@pytest.mark.parametrize("kind", KINDS)
def test_a_forged_message_takes_nothing_and_loses_nothing(shared, kind):
    handle = KINDS[kind](shared)
    paddrs = paddrs_of(handle)
    load, message = message_of(handle)
    fields = dict(zip(FIELDS, MESSAGE.unpack_from(message), strict=True))
    one, run, many = 1, 2, 3
    swaps = {one: (many,), run: (one, many), many: (one, run)}[fields["kind"]]
    forgeries = [
        *(forged(message, kind=number) for number in (0, 9, *swaps)),
        forged(message, ticket=2**32 - 1),
        forged(message, ticket=fields["ticket"] + 1, generations=1),
        forged(message, serial=fields["serial"] + 1, generations=1),
        forged(message, first=2**32 - 1),
        *([] if fields["kind"] == many else [forged(message, first=1)]),  # where the list is, the ticket says
        forged(message, count=0),
        forged(message, count=2**32 - 1),
        forged(message, count=fields["count"] + 1),
        forged(message, id=bytes(16)),
        message[: MESSAGE.size - 1],
        b"",
    ]
    for forgery in forgeries:
        with pytest.raises(pf.PageFrameError):
            load(forgery)
        gc.collect()
        assert {count_of(shared, paddr) for paddr in paddrs} == {2}
        assert shared.audit().clean
        assert shared.audit().tickets == 1
    drop_all((handle, load(message)))


@pytest.mark.parametrize("what", [None, 5, "text", bytearray(60), []])
def test_a_message_that_is_no_bytes_is_a_type_error(shared, what):
    frame = shared.alloc_frame()
    load, message = message_of(frame)
    with pytest.raises(TypeError):
        load(what)
    drop_all((frame, load(message)))


def test_damaged_pickles_never_crash_and_what_they_take_comes_back(shared):
    rng = random.Random(3)
    array = shared.zeros((10, 10), np.int32)
    handles = [make(shared) for make in KINDS.values()]
    shared.ticket_ttl = 0
    errors = set()
    for _ in range(150):
        for thing in (*handles, array[::2]):
            data = bytearray(pickle.dumps(thing))
            # Of the message alone: other bytes of a pickle may call anything.
            start = data.index(shared_id(shared))
            for _ in range(rng.choice((1, 1, 2, 5))):
                place = start + rng.randrange(MESSAGE.size)
                data[place] ^= 1 << rng.randrange(8)
            try:
                pickle.loads(bytes(data))
            except (pf.PageFrameError, TypeError, ValueError) as error:
                errors.add(type(error).__name__)
            shared.reap()
    assert {"ArenaGoneError", "FrameGoneError", "ArenaDamagedError"} <= errors
    del thing, array
    drop_all(handles)


def shared_id(mem):
    """The id of an arena, as its pickles have it."""
    return copyreg.dispatch_table[type(mem)](mem)[1][0]


# -- what carries messages -------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["Pipe", "Queue", "SimpleQueue", "JoinableQueue"])
def test_multiprocessing_carries_handles_both_ways(shared, carrier):
    context = mp.get_context("fork")
    handles = [make(shared) for make in KINDS.values()]
    expected = [paddrs_of(handle) for handle in handles]
    if carrier == "Pipe":
        (ours, theirs), (back, send_back) = context.Pipe(), context.Pipe()
        put, get, answer, hear = theirs.send, ours.recv, send_back.send, back.recv
    else:
        queues = [getattr(context, carrier)() for _ in range(2)]
        put, get, answer, hear = queues[0].put, queues[0].get, queues[1].put, queues[1].get

    def work():
        for _ in expected:
            handle = get()
            answer((paddrs_of(handle), handle))

    process = context.Process(target=work)
    process.start()
    try:
        for handle, paddrs in zip(handles, expected, strict=True):
            put(handle)
            found, returned = hear()
            assert found == paddrs == paddrs_of(returned)
            drop_all((handle, returned))
    finally:
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            process.join()
    assert process.exitcode == 0
    process.close()
    if carrier == "Pipe":
        for end in (ours, theirs, back, send_back):
            end.close()
    else:
        for queue in queues:
            queue.close()
            if carrier != "SimpleQueue":
                queue.join_thread()


# -- messages that expire at once ---------------------------------------------------------------


def serial_of(mem, data):
    """The serial number of the ticket of a pickled frame."""
    low, high = struct.unpack_from("=IB", data, data.index(bytes.fromhex(mem.id)) + 40)
    return high << 32 | low


def send_on_and_on(conn, mem, frame):
    """Send until told to end; return the serial numbers."""
    serials = set()
    conn.send("begins")
    while not conn.poll():
        for _ in range(100):
            with contextlib.suppress(pf.TicketsFullError):
                serials.add(serial_of(mem, pickle.dumps(frame)))
    return serials


def test_a_message_names_its_own_ticket_though_that_expires_and_another_takes_its_place():
    with shared_arena(tickets=1, ticket_ttl=0) as mem, mem.alloc_frame() as frame:
        mine = []
        with Forked(send_on_and_on, mem, frame) as other:
            other.hear()
            for _ in range(1000):
                os.kill(other.pid, signal.SIGSTOP)
                os.waitpid(other.pid, os.WUNTRACED)
                with contextlib.suppress(pf.TicketsFullError):
                    mine.append(serial_of(mem, pickle.dumps(frame)))
                os.kill(other.pid, signal.SIGCONT)
                time.sleep(0.0003)
            other.say("enough")
            theirs = other.result()
        assert len(mine) > 100
        assert not theirs & set(mine)
