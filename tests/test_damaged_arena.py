# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Files that are no arena, or a damaged one: a clear error, never a crash."""

import errno
import os
import random
import socket
import struct
from pathlib import Path

import pytest

import pageframe
from other_processes import ArenaFile, Child, file_of, run, unique_name
from pageframe import (
    ArenaByteOrderError,
    ArenaDamagedError,
    ArenaForeignError,
    ArenaNotFoundError,
    ArenaPermissionError,
    ArenaTruncatedError,
    ArenaVersionError,
    BadArenaError,
    PhysicalMemory,
)
from pageframe._core import backing

MIB = 1 << 20


@pytest.fixture
def name():
    with unique_name() as name:
        yield name


@pytest.fixture
def left(name):
    """Return the path of an arena whose clients have left."""
    mem = PhysicalMemory.create(MIB, name, clients=4, unlink_on_last=False)
    mem.alloc_frame().drop()
    mem.close()
    return file_of(name)


def change(path, offset, form, *values):
    """Change some bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack("=" + form, *values))


def seal(path):
    """Make the checksum of a header right again."""
    with path.open("r+b") as file:
        data = file.read(backing.CHECKED)
        file.write(struct.pack("=Q", backing.fnv1a(data)))


def refused(path, error, match):
    with pytest.raises(error, match=match) as caught:
        PhysicalMemory.attach(path=path)
    assert str(path) in str(caught.value)
    return caught.value


# -- no arena ----------------------------------------------------------------------------------


def test_a_file_that_is_missing(tmp_path):
    error = refused(tmp_path / "none", ArenaNotFoundError, "no such arena")
    assert error.errno == errno.ENOENT
    assert isinstance(error, FileNotFoundError)


def test_an_empty_file(tmp_path):
    (tmp_path / "empty").touch()
    refused(tmp_path / "empty", ArenaForeignError, "is empty: no arena")


@pytest.mark.parametrize("content", [b"short", b"x" * 575, bytes(MIB), b"\x7fELF" + bytes(10000)])
def test_a_file_of_something_else(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    refused(path, ArenaForeignError, "is no arena: it (has|begins with)")


def test_what_is_no_regular_file(tmp_path):
    refused(tmp_path, ArenaForeignError, "is a directory: no arena")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", ArenaForeignError, "is no regular file: no arena")
    refused("/dev/zero", ArenaForeignError, "is no regular file: no arena")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        refused(tmp_path / "socket", ArenaForeignError, "is no regular file: no arena")


def test_a_refusal_leaves_the_file_as_it_was(left):
    change(left, 100, "B", 0xFF)
    before = left.read_bytes()
    refused(left, ArenaDamagedError, "checksum")
    assert left.read_bytes() == before


# -- truncated ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 8, 9, 100, 575])
def test_a_header_that_is_cut(left, length):
    os.truncate(left, length)
    refused(left, ArenaTruncatedError, f"has {length} bytes, less than the header")


@pytest.mark.parametrize("length", [576, 4096, MIB // 2, MIB - 1, MIB, -1])
def test_a_body_that_is_cut(left, length):
    size = left.stat().st_size
    length %= size
    os.truncate(left, length)
    refused(left, ArenaTruncatedError, f"has {length} bytes of {size}: it was truncated")


def test_a_file_that_has_grown_is_the_same_arena(left):
    os.truncate(left, left.stat().st_size + 12345)
    PhysicalMemory.attach(path=left).close()


# -- another version, another byte order -------------------------------------------------------


def test_another_version_of_the_format(left):
    change(left, 8, "I", 999)
    seal(left)
    refused(left, ArenaVersionError, "has version 999 of the format, this is version 3")


def test_an_arena_of_a_machine_with_the_other_byte_order(left):
    with left.open("r+b") as file:
        words = [word[::-1] for word in struct.unpack("8s4s4s", file.read(16))]
        file.seek(0)
        file.write(b"".join(words))
    refused(left, ArenaByteOrderError, "another byte order")


def test_the_word_of_the_byte_order_alone_is_enough_to_tell(left):
    change(left, 12, "I", 0x04030201)
    refused(left, ArenaByteOrderError, "another byte order")
    change(left, 12, "I", 0x02010403)
    refused(left, ArenaDamagedError, "its byte order is 0x2010403")


# -- bits --------------------------------------------------------------------------------------


def test_every_single_bit_of_the_checked_header_is_noticed_when_it_is_wrong(left):
    with left.open("r+b", buffering=0) as file:
        header = bytearray(file.read(backing.CHECKED + 8))
        kinds = {}
        for bit in range(8 * len(header)):
            header[bit // 8] ^= 1 << bit % 8
            os.pwrite(file.fileno(), header, 0)
            with pytest.raises(BadArenaError) as caught:
                PhysicalMemory.attach(path=left)
            kinds[type(caught.value)] = kinds.get(type(caught.value), 0) + 1
            assert str(left) in str(caught.value)
            header[bit // 8] ^= 1 << bit % 8
        os.pwrite(file.fileno(), header, 0)
    assert kinds == {
        ArenaForeignError: 64,  # the magic number
        ArenaVersionError: 32,
        ArenaDamagedError: 8 * (backing.CHECKED + 8 - 12),
    }
    PhysicalMemory.attach(path=left).close()


FIELDS = {  # name: (offset, form), of what the checksum covers
    "size": (16, "Q"),
    "frames": (24, "Q"),
    "page_size": (32, "I"),
    "slot_size": (36, "I"),
    "type_capacity": (40, "I"),
    "client_capacity": (44, "I"),
    **{f"offset of {table}": (48 + 16 * i, "Q") for i, table in enumerate(backing.TABLES)},
    **{f"size of {table}": (56 + 16 * i, "Q") for i, table in enumerate(backing.TABLES)},
    "area_size": (200, "Q"),
    "ticket_capacity": (208, "I"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_header_with_a_right_checksum_that_contradicts_itself_is_refused_or_harmless(left, field):
    offset, form = FIELDS[field]
    original = left.read_bytes()[: backing.HEADER_SIZE]
    right = struct.unpack_from("=" + form, original, offset)[0]
    top = 2 ** (8 * struct.calcsize(form))
    attached = 0
    for value in {0, 1, 3, right - 1, right + 1, right + 4096, right // 2, right * 2, 4095, 2**31, 2**32 - 1,
                  top - 1, top // 2, top - 4096} - {right}:  # fmt: skip
        if not 0 <= value < top:
            continue
        with left.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), original, 0)
        change(left, offset, form, value)
        seal(left)
        try:
            mem = PhysicalMemory.attach(path=left)
        except (ArenaDamagedError, ArenaTruncatedError) as error:
            assert str(left) in str(error) or "room for" in str(error)  # noqa: PT017
        else:  # less room in a table, for instance
            attached += 1
            mem.alloc_frame().drop()
            mem.close()
    # Most of what is not true can't be true; what can be makes a table smaller.
    assert attached <= 5, attached


@pytest.mark.parametrize("value", [65, 2**31, 2**32 - 1])
def test_more_types_than_there_is_room_for(left, value):
    change(left, 256, "I", value)
    with pytest.raises(ArenaDamagedError, match=f"has {value} types, there is room for 64"):
        PhysicalMemory.attach(path=left)


def test_fewer_types_than_frames_carry(left):
    change(left, 256, "I", 0)
    run(
        """
        mem = PhysicalMemory.attach(path=ARGS[0])
        for use in (lambda: mem.alloc_frame(), mem.stats, mem.audit, lambda: Frame.from_in_use(mem, 0).meta,
                    lambda: repr(Frame.from_in_use(mem, 0)), lambda: mem.types):
            try:
                use()
            except (ArenaDamagedError, GetFrameError) as error:
                assert str(error)  # noqa: PT017
        """,
        "",
        left,
    )


@pytest.mark.parametrize("junk", [b"\xff", b"\0", b"\x01", b"."])
def test_names_and_sizes_of_types_that_are_nonsense(name, junk):
    mem = PhysicalMemory.create(MIB, name)
    types = {table: at for table, at, _ in mem.layout}["types"]
    with ArenaFile(mem, file_of(name)) as file:
        for i in range(5, 64):
            file.map[types + 256 * i : types + 256 * (i + 1)] = junk * 256
        file.write(256, "I", 64)
    run(
        """
        mem = PhysicalMemory.attach(NAME)
        assert len(mem.types) == 64, mem.types
        assert all(issubclass(mem.types[i], OpaqueMeta) for i in range(6, 65))
        frame = mem.alloc_frame()
        for number, opaque in mem.types.items():
            for use in (lambda: mem.alloc_frame(opaque), lambda: mem.meta(opaque),
                        lambda: LinkedList(mem, opaque)):
                try:
                    use()
                except (FrameTypeError, ArenaDamagedError):
                    pass
        mem.stats()
        mem.audit()
        """.replace("                    pass\n", "                    number = None\n"),
        name,
    )
    mem.close()


# -- another user's ----------------------------------------------------------------------------

AS_NOBODY = """
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
"""
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@root
def test_another_user_is_refused_and_told_why(name):
    with PhysicalMemory.create(MIB, name):
        told = run(
            AS_NOBODY
            + """
for use in (PhysicalMemory.attach, PhysicalMemory.unlink):
    try:
        use(NAME)
    except ArenaPermissionError as error:
        tell(error.errno, "another user" in str(error), error.filename.endswith(NAME))
try:
    PhysicalMemory.create("1 MiB", NAME)
except ArenaExistsError:
    tell("exists")
tell([info for info in PhysicalMemory.list() if info.name == NAME])
            """,
            name,
        )
        assert told.split("\n") == ["13 True True", "13 True True", "exists", "[]"]


@root
def test_root_attaches_to_no_arena_of_another_user_nor_lists_it(name):
    with Child(
        AS_NOBODY
        + "mem = PhysicalMemory.create('1 MiB', NAME)\nother = PhysicalMemory.create('7 MiB')\n"
        + "tell('on')\nwait()",
        name,
    ) as child:
        assert child.hear() == "on"
        with pytest.raises(ArenaPermissionError, match="belongs to another user") as caught:
            PhysicalMemory.attach(name)
        assert caught.value.filename == str(file_of(name))
        listed = PhysicalMemory.list()
        assert name not in [info.name for info in listed]
        assert 7 * MIB not in [info.size for info in listed]
        child.kill()
    # What killed processes of another user have left is that user's to sweep.
    PhysicalMemory.list()
    assert file_of(name).exists()


@root
def test_an_arena_that_is_given_to_another_user_is_refused(left):
    os.chown(left, 65534, 65534)
    with pytest.raises(ArenaPermissionError, match="belongs to another user"):
        PhysicalMemory.attach(path=left)


# -- damage after attaching --------------------------------------------------------------------

NONSENSE = {"Q": [1, 2, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1],
            "I": [1, 2, 3, 65, 127, 128, 200, 2**16, 2**31, 2**32 - 2, 2**32 - 1],
            "i": [-1, 1, 2**31 - 1, -(2**31)]}  # fmt: skip

# What a client does: every kind of use, each of which may fail, but with an error of pageframe's own.
USE_ALL = """
import pickle
from types_for_tests import Dropped, Page

mem = PhysicalMemory.attach(NAME)
frame = mem.alloc_frame(Page(inode=1))
segment = mem.alloc_segment(5)
vec = mem.alloc_frames(6)
unique = mem.alloc_frame(Page).try_unique()
pages = LinkedList(mem, Page)
for i in range(4):
    pages.push_back(mem.alloc_frame(Page(inode=i)).try_unique())
messages = [pickle.dumps(frame), pickle.dumps(segment), pickle.dumps(vec)]
mem.alloc_frame(Dropped).drop()
place = [client.pid for client in mem.clients].index(os.getpid())
tell(place, frame.start_paddr, unique.start_paddr, *pages)
wait()
# Kept and hint lie in the lane, which comes into use when single frames are freed and allocated.
failed = 0
one_more = []
def many():
    one_more.extend(mem.alloc_frame() for _ in range(40))
    one_more.append(mem.alloc_segment(3))
    one_more.append(mem.alloc_frames(50))
for use in (
    lambda: mem.alloc_frame(Page),
    many,
    mem.stats,
    mem.reap,
    mem.audit,
    lambda: mem.audit(repair=True),
    lambda: mem.holders(frame),
    lambda: mem.types,
    lambda: mem.trim(),
    lambda: repr(frame),
    lambda: frame.meta.inode,
    lambda: frame.meta_type,
    lambda: frame.cast(Page),
    lambda: frame.clone(),
    lambda: memoryview(frame)[0],
    lambda: unique.meta.inode,
    lambda: unique.share(),
    lambda: mem.meta(Page)["inode"].sum(),
    lambda: mem.free_frames,
    lambda: Frame.from_in_use(mem, frame.start_paddr),
    lambda: list(pages),
    lambda: pages.pop_front(),
    lambda: pages.cursor_at(next(iter(pages))).move_to_front(),
    lambda: pages.push_back(mem.alloc_frame(Page).try_unique()),
    lambda: pages.pop_back(),
    lambda: pages.drop(),
    lambda: pickle.loads(messages[0]),
    lambda: pickle.loads(messages[1]),
    lambda: pickle.loads(messages[2]),
    lambda: pickle.dumps(segment),
    lambda: segment.meta,
    lambda: vec.meta,
    lambda: segment.slice(0, 4096),
    lambda: vec.drop(),
    lambda: segment.drop(),
    one_more.clear,
    lambda: frame.drop(),
    lambda: mem.clients,
    lambda: mem.ticket_ttl,
    lambda: mem.alloc_frames(mem.free_frames + 1),
):
    try:
        use()
    except (PageFrameError, MemoryError, OverflowError, StopIteration, AttributeError) as error:
        failed += 1
        assert str(error) or isinstance(error, StopIteration), repr(error)
tell("failed", failed)
try:
    mem.close()
except PageFrameError as error:
    tell(error)
os._exit(0)
"""


def used(name, damage):
    """Let a client work in an arena that is damaged under its hands; it must not crash."""
    with Child(USE_ALL, name, cwd=Path(__file__).parent) as child:
        place, *paddrs = map(int, child.hear().split())
        damage(place, paddrs)
        child.go_on()
        out, errors = child.process.communicate(timeout=10)
        assert child.process.returncode == 0, f"{child.process.returncode}: {out}{errors}"
        assert out.startswith("failed ")


def campaign(name, form, damage):
    for value in NONSENSE[form]:
        mem = PhysicalMemory.create(MIB, name, clients=4, tickets=64)
        with ArenaFile(mem, file_of(name)) as file:
            used(name, lambda place, paddrs, v=value, f=file: damage(f, place, paddrs, v))
        file_of(name).unlink()
        mem.close()


def test_an_arena_that_is_not_damaged_passes_all_uses(name):
    with PhysicalMemory.create(MIB, name, clients=4) as mem:
        used(name, lambda place, paddrs: None)
        mem.reap()
        report = mem.audit()
        assert report.clean
        assert (report.tickets, mem.used_frames) == (1, 5)  # a segment that was sent and not loaded


def test_more_types_than_the_table_has_crash_nobody_even_if_the_header_has_room_for_them(name):
    def damage(file, place, paddrs, value):
        file.write(40, "I", value)  # type_capacity
        file.write(256, "I", value)  # type_count

    campaign(name, "I", damage)


@pytest.mark.parametrize("field", ArenaFile.LANE)
def test_lanes_that_are_nonsense_crash_nobody(name, field):
    def damage(file, place, paddrs, value):
        for client in (0, place):
            for lane in range(64):
                file.set_lane(client, lane, field, value)

    campaign(name, ArenaFile.LANE[field][1], damage)


@pytest.mark.parametrize("field", ArenaFile.TICKET)
def test_tickets_that_are_nonsense_crash_nobody_and_end(name, field):
    def damage(file, place, paddrs, value):
        for ticket in range(64):
            if file.ticket_field(ticket, "word"):
                file.set_ticket(ticket, field, value)

    campaign(name, ArenaFile.TICKET[field][1], damage)


@pytest.mark.parametrize("state", [1, 2, 3, 4, 5, 255])
def test_tickets_of_no_owner_and_in_any_state_crash_nobody_and_end(name, state):
    mem = PhysicalMemory.create(MIB, name, clients=4, tickets=64)
    with ArenaFile(mem, file_of(name)) as file:

        def damage(place, paddrs):
            for ticket in range(64):
                owner = (0, place + 1, 4, 77, 0xFFFF)[ticket % 5]
                file.set_ticket(ticket, "word", 1 << 24 | owner << 8 | state)
                file.set_ticket(ticket, "first", 2**60)
                file.set_ticket(ticket, "count", 2**62)
                file.set_ticket(ticket, "done", 2**61)
                file.set_ticket(ticket, "listed", ticket % 3)

        used(name, damage)
    file_of(name).unlink()
    mem.close()


@pytest.mark.parametrize("field", ["prev", "next"])
def test_links_that_are_nonsense_crash_nobody(name, field):
    def damage(file, place, paddrs, value):
        for paddr in paddrs[2:]:
            file.set_slot(paddr, (24 + 4 * (field == "next"), "I"), value)

    campaign(name, "I", damage)


def test_links_in_a_circle_end(name):
    mem = PhysicalMemory.create(MIB, name, clients=4)
    with ArenaFile(mem, file_of(name)) as file:

        def damage(place, paddrs):
            for paddr in paddrs[2:]:
                for offset in (24, 28):
                    file.set_slot(paddr, (offset, "I"), paddrs[3] // 4096)

        used(name, damage)
    file_of(name).unlink()
    mem.close()


SLOT_FIELDS = {"count": ArenaFile.COUNT, "generation": ArenaFile.GENERATION, "type": ArenaFile.TYPE,
               "list": ArenaFile.LIST}  # fmt: skip


@pytest.mark.parametrize("field", SLOT_FIELDS)
@pytest.mark.parametrize("frames", ["held", "all"])
def test_slots_that_are_nonsense_crash_nobody(name, field, frames):
    def damage(file, place, paddrs, value):
        for paddr in paddrs if frames == "held" else range(0, MIB, 4096):
            file.set_slot(paddr, SLOT_FIELDS[field], value)

    campaign(name, SLOT_FIELDS[field][1], damage)


def test_a_type_that_no_slot_can_have_is_an_error_that_shows_it(name):
    with PhysicalMemory.create(MIB, name) as mem, ArenaFile(mem, file_of(name)) as file:
        frame = mem.alloc_frame()
        right = file.slot_field(frame.start_paddr, ArenaFile.TYPE)
        for wrong in (0, len(mem.types) + 1, 127, 128, 2**31, 2**32 - 1):
            file.set_slot(frame.start_paddr, ArenaFile.TYPE, wrong)
            with pytest.raises(ArenaDamagedError, match=f"has type {wrong}, the arena has {len(mem.types)}"):
                frame.meta
            with pytest.raises(ArenaDamagedError, match=f"has type {wrong}, "):
                repr(frame)
            stats = mem.stats()
            assert stats.frames_by_type["none"] == 1
            assert sum(stats.frames_by_type.values()) == mem.reserved_frames + 1
        file.set_slot(frame.start_paddr, ArenaFile.TYPE, right)
        frame.drop()


@pytest.mark.parametrize("value", NONSENSE["I"])
def test_ledgers_that_are_nonsense_crash_nobody(name, value):
    mem = PhysicalMemory.create(MIB, name, clients=4)
    with ArenaFile(mem, file_of(name)) as file:

        def damage(place, paddrs):
            for paddr in range(0, MIB, 4096):
                file.set_ledger(place, paddr, value)

        used(name, damage)
    file_of(name).unlink()


@pytest.mark.parametrize("offset", [256, 320, 384, 448, 512, 520])
@pytest.mark.parametrize("value", [2**31, 2**32 - 1])
def test_the_words_of_the_header_that_change_crash_nobody_when_they_are_nonsense(name, offset, value):
    mem = PhysicalMemory.create(MIB, name, clients=4)
    with ArenaFile(mem, file_of(name)) as file:
        used(name, lambda place, paddrs: file.write(offset, "I", value))
    file_of(name).unlink()


def test_bytes_that_are_noise_crash_nobody(name):
    """All tables but the header, bitfield and slots of the arena's own frames, a few at a time."""
    for seed in range(12):
        random_ = random.Random(seed)
        mem = PhysicalMemory.create(MIB, name, clients=4, tickets=64)
        with ArenaFile(mem, file_of(name)) as file:

            def damage(place, paddrs, file=file, random_=random_):
                for table in ("types", "tickets", "chunks", "slots", "areas"):
                    at, size = file.tables[table]
                    for _ in range(200):
                        file.map[at + random_.randrange(size)] = random_.randrange(256)

            used(name, damage)
        file_of(name).unlink(missing_ok=True)
        try:
            mem.close()
        except pageframe.PageFrameError as error:
            assert str(error)  # noqa: PT017


# -- a header that changes while it is looked at -----------------------------------------------


def test_a_header_written_over_after_it_was_checked_is_not_believed(left, monkeypatch):
    def write_over(fd, where, check=backing.check_owner):
        check(fd, where)
        change(left, 48 + 16 * 6, "Q", 1 << 45)  # where the slots are
        change(left, 40, "I", 2**32 - 1)  # types there is room for

    monkeypatch.setattr(backing, "check_owner", write_over)
    with pageframe.ArenaView(path=left) as view:
        assert view.stats().total_frames == 256
        assert int(view.slots["count"].max()) == pageframe.REF_COUNT_UNUSED
