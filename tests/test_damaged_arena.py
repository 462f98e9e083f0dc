# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Files that are no arena, or a damaged one: a clear error, never a crash."""

import errno
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import pageframe
import types_for_tests
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
            with suppress(pageframe.OutOfFramesError):  # what should be slots shows no frame that is free
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
        assert all(issubclass(mem.types[i], OpaqueMeta) for i in range(7, 65))
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


def fuzz(*options):
    """Damage arenas at random: damage/fuzz.py."""
    return subprocess.run(
        [sys.executable, "-m", "damage.fuzz", *map(str, options)],
        cwd=Path(__file__).parent,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_thousands_of_damages_in_all_tables_crash_nobody_and_give_errors_or_sound_results():
    ran = fuzz("--inputs", 4000, "--seed", 6)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 findings" in ran.stdout


@pytest.mark.parametrize(
    ("fault", "told"),
    [("crash", "ended with -11"), ("hang", "took too long"), ("unsound", "AssertionError: planted")],
)
def test_a_crash_a_hang_and_an_unsound_result_that_are_planted_are_found(fault, told):
    ran = fuzz("--inputs", 40, "--seed", 6, "--workers", 1, "--plant", fault)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "input 20 of seed 6" in ran.stdout
    assert told in ran.stdout


@pytest.fixture
def shared(name):
    """Return an arena of 256 frames and its file, for damage behind its back."""
    mem = PhysicalMemory.create(MIB, name, clients=4, tickets=64)
    with ArenaFile(mem, file_of(name)) as file:
        yield mem, file
    file_of(name).unlink(missing_ok=True)


def test_bits_past_the_last_frame_give_no_frames_whatever_they_say(shared):
    mem, file = shared
    at, size = file.tables["bits"]
    free = mem.free_frames
    file.map[at + 32 : at + size] = bytes(size - 32)  # 256 frames, 512 bits
    assert mem.free_frames == free
    frames = [mem.alloc_frame() for _ in range(free - 9)]
    vec = mem.alloc_frames(8)
    frames.append(mem.alloc_frame())
    assert max(frame.start_paddr for frame in frames) < mem.size
    assert int(vec.paddrs.max()) < mem.size
    for take in (mem.alloc_frame, lambda: mem.alloc_frames(1), lambda: mem.alloc_segment(1)):
        with pytest.raises(pageframe.OutOfFramesError):
            take()
    vec.drop()
    frames.clear()
    mem.close()


@pytest.mark.parametrize("kept", [True, False])
def test_a_frame_in_use_that_the_tables_call_free_is_given_to_nobody(shared, kept):
    mem, file = shared
    frame = mem.alloc_frame()
    memoryview(frame)[:5] = b"bytes"
    if kept:
        file.set_lane(0, 0, "kept", frame.start_paddr // 4096 + 1)
    else:
        file.set_lane(0, 0, "kept", 0)
        file.set_lane(0, 0, "hint", frame.start_paddr // 4096)
        file.set_bit(frame.start_paddr, False)
    others = [mem.alloc_frame() for _ in range(5)]
    assert frame.start_paddr not in [other.start_paddr for other in others]
    file.set_bit(frame.start_paddr, False)
    vec, segment = mem.alloc_frames(9), mem.alloc_segment(4)
    assert frame.start_paddr not in vec.paddrs
    assert not segment.start_paddr <= frame.start_paddr < segment.end_paddr
    file.set_bit(frame.start_paddr, False)
    with pytest.raises(pageframe.FrameInUseError):
        pageframe.Frame.from_unused(mem, frame.start_paddr)
    assert frame.reference_count == 1
    assert bytes(memoryview(frame)[:5]) == b"bytes"
    for handle in (frame, vec, segment, *others):
        handle.drop()
    assert mem.audit(repair=True).repaired
    assert mem.audit().clean
    mem.close()


def test_a_ledger_that_claims_the_frames_of_the_arena_itself_makes_no_reaper_end_them(name, monkeypatch):
    monkeypatch.setenv("PAGEFRAME_DEBUG", "poison")
    mem = PhysicalMemory.create(MIB, name, clients=4)
    with (
        ArenaFile(mem, file_of(name)) as file,
        Child(
            "mem = PhysicalMemory.attach(NAME)\nheld = Frame.from_in_use(mem, 0)\ntell('on')\nwait()",
            name,
        ) as child,
    ):
        assert child.hear() == "on"
        own = [paddr for paddr in range(0, MIB, 4096) if file.slot_field(paddr, ArenaFile.TYPE) == 2]
        assert len(own) == mem.reserved_frames
        for i, paddr in enumerate(own[1:]):
            file.set_ledger(1, paddr, (1, 2, 2**32 - 1)[i % 3])
        child.kill()
        before = file_of(name).read_bytes()[: own[1]]
        report = mem.reap()
        assert (len(report.clients), report.frames) == (1, 0)
        assert file_of(name).read_bytes()[: own[1]] == before
        assert [file.slot_field(paddr, ArenaFile.COUNT) for paddr in own] == [1] * len(own)
        assert mem.audit().clean
    mem.close()


@pytest.mark.parametrize("count", [0, 2**64 - 1, 2**64 - 2, 2**64 - 3, 7, 2**63])
def test_an_audit_gives_the_frames_of_the_arena_itself_back_to_it_and_to_nobody_else(shared, count):
    mem, file = shared
    file.set_slot(4096, ArenaFile.COUNT, count)
    found = mem.audit(repair=True)
    assert 4096 in found.damaged + found.miscounted
    assert not found.leaked
    assert file.slot_field(4096, ArenaFile.COUNT) == 1
    assert mem.audit().clean
    mem.close()


def test_a_type_that_no_slot_can_have_is_looked_up_nowhere(shared):
    mem, file = shared
    frames = [mem.alloc_frame() for _ in range(3)]
    for frame, wrong in zip(frames, (127, 2**31, 2**32 - 1), strict=True):
        file.set_slot(frame.start_paddr, ArenaFile.TYPE, wrong)
        with pytest.raises((ArenaDamagedError, pageframe.FrameTypeError)):
            pageframe.USegment.from_frame(frame)
        paddr = frame.start_paddr
        frame.into_raw()
        with pytest.raises((ArenaDamagedError, pageframe.FrameTypeError)):
            pageframe.USegment.from_raw(mem, paddr, paddr + 4096)
        file.set_slot(paddr, ArenaFile.TYPE, 1)
        pageframe.USegment.from_raw(mem, paddr, paddr + 4096).drop()
    mem.close()


def test_the_types_that_every_arena_has_are_what_they_are_whatever_the_registry_says(shared):
    mem, file = shared
    at, _ = file.tables["types"]
    file.map[at : at + 6 * 256] = b"\xff" * 6 * 256
    with pageframe.ArenaView(path=file_of(mem.name)) as view:
        assert [view.types[i].__name__ for i in (1, 2, 6)] == [
            "UntypedFrameMeta",
            "MetaPageMeta",
            "PageTableMeta",
        ]
    run(
        """
        mem = PhysicalMemory.attach(NAME)
        for handle in (mem.alloc_frame(), mem.alloc_segment(3), mem.alloc_frames(3)[0]):
            assert len(memoryview(handle)) == handle.size
            assert handle.meta_type is UntypedFrameMeta
        """,
        mem.name,
    )
    mem.close()


def test_a_class_that_is_too_large_for_the_slots_is_none_that_the_registry_can_mean(shared):
    mem, file = shared

    class Large(pageframe.FrameMeta):
        content: pageframe.bytes_[200]

    class Small(pageframe.FrameMeta):
        number: pageframe.u64

    with (
        PhysicalMemory.create(MIB) as other,
        pytest.raises(pageframe.FrameTypeError, match="takes 200 bytes"),
    ):
        other.alloc_frame(Large)
    mem.alloc_frame(Small).drop()
    at = file.tables["types"][0] + 6 * 256
    layout = Large.__layout__
    file.write(at, "Q", layout.fingerprint)
    file.write(at + 8, "I", layout.size)
    file.map[at + 32 : at + 33 + len(layout.name)] = layout.name.encode() + b"\0"
    with PhysicalMemory.attach(mem.name) as second:
        assert issubclass(second.types[7], pageframe.OpaqueMeta)
        with pytest.raises(pageframe.FrameTypeError, match="takes 200 bytes"):
            second.alloc_frame(Large)
    mem.close()


def test_a_page_table_that_shows_more_than_is_mapped_lets_nobody_touch_what_is_not(shared):
    """The table is shared, what the kernel maps is not: a view must not rest on the one for the other."""
    mem, file = shared
    space = pageframe.VmSpace(mem, 16 * 4096)
    read_only = mem.alloc_frame()
    with space.cursor(0, 16 * 4096) as cursor:
        cursor.map(mem.alloc_segment(2))
        cursor.map(read_only, pageframe.PageProperty(write=False))
    level_1 = [
        paddr for paddr in range(0, MIB, 4096)
        if file.slot_field(paddr, ArenaFile.TYPE) == 6 and file.slot_field(paddr, (24, "I")) == 1
    ]  # fmt: skip
    assert len(level_1) == 1
    entry = file.read(level_1[0], "Q")
    for page in range(2, 16):
        file.write(level_1[0] + 8 * page, "Q", entry)
    view = space.view(0, 16 * 4096)
    assert not view.readonly
    view[:] = b"x" * len(view)
    assert bytes(view) == b"x" * len(view)
    view.release()
    space.close()


def test_counts_and_ledgers_of_billions_don_t_hold_up_a_fork(shared):
    mem, file = shared
    frame = mem.alloc_frame()
    file.set_ledger(0, frame.start_paddr, 2**32 - 1)
    file.set_slot(frame.start_paddr, ArenaFile.COUNT, 2**40)
    began = time.process_time()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert time.process_time() - began < 2
    assert file.slot_field(frame.start_paddr, ArenaFile.COUNT) == 2**40 + 2**32 - 1


def test_an_array_whose_frames_became_typed_is_refused_when_it_is_loaded(shared):
    mem, file = shared
    message = pickle.dumps(mem.asarray([1, 2, 3]))
    node = mem.alloc_frame(types_for_tests.Node)
    file.set_slot(node.start_paddr + 0, ArenaFile.TYPE, 2)
    ticket = file.live_ticket()
    file.set_slot(file.ticket_field(ticket, "first") * 4096, ArenaFile.TYPE, 2)
    with pytest.raises(pageframe.FrameTypeError, match="no bytes for an array"):
        pickle.loads(message)


def test_memory_that_was_set_aside_stays_so_whatever_the_header_says_later(shared):
    mem, file = shared
    frames = mem.alloc_frames(100)
    memoryview(mem.alloc_frame())[:] = b"x" * 4096
    blocks = file_of(mem.name).stat().st_blocks
    frames.drop()
    file.write(212, "I", 0)  # flags
    assert mem.trim() == 0
    assert file_of(mem.name).stat().st_blocks == blocks
    mem.close()


def test_more_own_frames_than_there_are_is_refused(left):
    change(left, 192, "Q", 257)
    seal(left)
    refused(left, ArenaDamagedError, "contradict each other")


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
