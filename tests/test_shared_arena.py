# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Arenas that processes share: making, finding, attaching, leaving, removing them."""

import errno
import fcntl
import gc
import os
import pickle
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import pageframe
from other_processes import TIMEOUT, Child, file_of, run, unique_name
from pageframe import (
    ArenaClosedError,
    ArenaExistsError,
    ArenaInUseError,
    ArenaNameError,
    ArenaNotFoundError,
    ClientsFullError,
    Frame,
    FrameMeta,
    LinkedList,
    MovedError,
    PhysicalMemory,
    u64,
)
from pageframe._core import backing
from types_for_tests import Page

MIB = 1 << 20


@pytest.fixture
def name():
    with unique_name() as name:
        yield name


def open_files():
    """The descriptors of this process."""
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def memfd_of(mem):
    """The descriptor that this process has of an arena without a name."""
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink() and str(entry.readlink()).startswith(f"/memfd:pageframe-{mem.id}"):
            return int(entry.name)
    raise AssertionError("no memfd")


# -- without a name ----------------------------------------------------------------------------


def test_an_arena_without_a_name_lies_in_a_memfd_sealed_against_any_change_of_size():
    with PhysicalMemory.create(3 * MIB) as mem:
        assert mem.shared
        assert mem.name is None
        fd = memfd_of(mem)
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        for size in (0, 64 * MIB):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)


def test_an_arena_without_a_name_leaves_no_file_and_is_listed_while_it_lives():
    before = set(Path("/dev/shm").iterdir())
    with PhysicalMemory.create(5 * MIB) as mem:
        assert set(Path("/dev/shm").iterdir()) <= before
        [info] = [info for info in PhysicalMemory.list() if info.id == mem.id]
        assert (info.name, info.path, info.page_size, info.clients) == (None, None, 4096, 1)
        assert len(bytes.fromhex(info.id)) == 16
        assert mem.clients[0].pid == os.getpid()
    assert info.id not in [other.id for other in PhysicalMemory.list()]


def test_who_looks_for_arenas_takes_nothing_out_of_a_pipe_that_a_descriptor_has_become():
    told = run("""
        import tempfile
        from pathlib import Path
        file = tempfile.TemporaryFile()
        reader, writer = os.pipe()
        os.write(writer, b"mine")
        link = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
        stat = Path.stat

        def becomes_a_pipe(self, **options):
            status = stat(self, **options)
            if self == link:
                os.dup2(reader, file.fileno())
                tell("a pipe now")
            return status

        Path.stat = becomes_a_pipe
        PhysicalMemory.list()       # it would wait for more, besides
        tell(os.read(reader, 10))
        """, "")  # fmt: skip
    assert told == "a pipe now\nb'mine'"


def test_an_arena_without_a_name_is_not_mistaken_for_what_its_descriptors_have_become():
    told = run("""
        from pathlib import Path
        first, second, null = (os.open("/dev/null", os.O_RDONLY) for _ in range(3))     # looked at first
        mem, other = PhysicalMemory.create("1 MiB"), PhysicalMemory.create("1 MiB")
        files = {one: next(int(link.name) for link in Path("/proc/self/fd").iterdir()
                           if one.id in str(link.readlink())) for one in (mem, other)}
        become = {Path(f"/proc/{os.getpid()}/fd/{fd}"): (fd, new)
                  for fd, new in ((first, files[other]), (second, null))}
        readlink, seen = Path.readlink, []

        def becomes_another(self):
            if self not in become:
                return readlink(self)
            fd, new = become[self]
            os.dup2(files[mem], fd)
            target = readlink(self)
            os.dup2(new, fd)
            seen.append("first" if fd == first else "second")
            return target

        Path.readlink = becomes_another
        with PhysicalMemory.attach(id=mem.id) as again:
            assert again.id == mem.id
        tell(*seen)
        """, "")  # fmt: skip
    assert told.split() == ["first", "second"] * 2  # to find its id, and to open it


# -- with a name -------------------------------------------------------------------------------


def test_an_arena_with_a_name_lies_under_dev_shm_for_its_user_alone(name):
    with PhysicalMemory.create(MIB, name) as mem:
        assert mem.name == name
        status = file_of(name).stat()
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_uid == os.geteuid()
        [info] = [info for info in PhysicalMemory.list() if info.name == name]
        assert (info.path, info.size, info.clients) == (file_of(name), MIB, 1)


@pytest.mark.parametrize("mask", [0o000, 0o777])
def test_the_mode_of_a_named_arena_is_0600_whatever_the_umask_grants(name, mask):
    old = os.umask(mask)
    try:
        mem = PhysicalMemory.create(MIB, name)
    finally:
        os.umask(old)
    assert stat.S_IMODE(file_of(name).stat().st_mode) == 0o600
    mem.close()


def test_an_arena_at_a_path_lies_there_and_has_no_name(tmp_path):
    path = tmp_path / "an arena"
    with PhysicalMemory.create(MIB, path=path) as mem:
        assert mem.name is None
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        frame = mem.alloc_frame()
        memoryview(frame)[:5] = b"hello"
        with PhysicalMemory.attach(path=os.fsencode(path)) as again:  # noqa: SIM117
            with Frame.from_in_use(again, frame.start_paddr) as same:
                assert bytes(memoryview(same)[:5]) == b"hello"
        frame.drop()
    assert not path.exists()


def test_a_relative_path_stays_the_same_file_when_the_process_changes_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mem = PhysicalMemory.create(MIB, path="arena")
    monkeypatch.chdir("/")
    mem.close()
    assert not (tmp_path / "arena").exists()


@pytest.mark.parametrize("make", [PhysicalMemory.attach, PhysicalMemory.unlink], ids=["attach", "unlink"])
def test_a_name_or_a_path_is_needed_and_not_both(make, tmp_path):
    with pytest.raises(TypeError, match=r"name.* or the "):
        make()
    with pytest.raises(TypeError, match="not both"):
        make("a", path=tmp_path / "b")
    with pytest.raises(TypeError, match="not both"):
        PhysicalMemory.create(MIB, "a", path=tmp_path / "b")


BAD_NAMES = ["", "a/b", "/", "/a", "../x", "a\0b", "x" * 201, "é" * 101]


@pytest.mark.parametrize("bad", BAD_NAMES, ids=repr)
@pytest.mark.parametrize("use", ["create", "attach", "unlink"])
def test_what_can_not_be_a_name_is_refused_and_shown(bad, use):
    call = getattr(PhysicalMemory, use)
    with pytest.raises(ArenaNameError) as caught:
        call(MIB, bad) if use == "create" else call(bad)
    assert repr(bad) in str(caught.value)
    assert "1 to 200 bytes and no slash" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("bad", [5, b"bytes", Path("x"), ["a"]], ids=repr)
@pytest.mark.parametrize("use", ["create", "attach", "unlink"])
def test_a_name_that_is_no_string_is_refused_with_its_type(bad, use):
    call = getattr(PhysicalMemory, use)
    with pytest.raises(TypeError, match=type(bad).__name__):
        call(MIB, bad) if use == "create" else call(bad)


@pytest.mark.parametrize("use", ["create", "attach", "unlink"])
def test_a_path_with_a_nul_is_refused_as_one_that_no_arena_can_have(use):
    call = getattr(PhysicalMemory, use)
    with pytest.raises(ArenaNameError, match=r"a\\x00b"):
        call(MIB, path="/tmp/a\0b") if use == "create" else call(path="/tmp/a\0b")


@pytest.mark.parametrize("good", ["x" * 200, "é" * 100, ".", "..", "a b\n", "\udcff"], ids=ascii)
def test_any_other_name_of_200_bytes_at_most_can_be_used(good):
    mem = PhysicalMemory.create(MIB, good)
    try:
        assert mem.name == good
        assert good in [info.name for info in PhysicalMemory.list()]
        PhysicalMemory.attach(good).close()
    finally:
        mem.close()
    assert not file_of(good).exists()


def test_a_name_that_is_taken_is_refused_and_the_arena_stays_as_it_was(name):
    with PhysicalMemory.create(MIB, name) as mem:
        frame = mem.alloc_frame()
        with pytest.raises(ArenaExistsError) as caught:
            PhysicalMemory.create(2 * MIB, name)
        assert caught.value.errno == errno.EEXIST
        assert caught.value.filename == str(file_of(name))
        assert isinstance(caught.value, FileExistsError)
        assert mem.audit().clean
        PhysicalMemory.attach(name).close()
        frame.drop()


@pytest.mark.parametrize("exist_ok", [True, False])
def test_an_arena_that_another_gives_the_name_first_is_kept_and_the_own_one_is_given_up(
    name, monkeypatch, exist_ok
):
    firsts, publish = [], backing.publish

    def come_second(fd, path):
        if not firsts:
            firsts.append(None)
            firsts[0] = PhysicalMemory.create(4 * MIB, name)
        publish(fd, path)

    monkeypatch.setattr(backing, "publish", come_second)
    files = len(list(Path("/proc/self/fd").iterdir()))
    if exist_ok:
        with PhysicalMemory.create(MIB, name, exist_ok=True) as same:
            assert same.id == firsts[0].id
            assert same.size == 4 * MIB
    else:
        with pytest.raises(ArenaExistsError, match=name):
            PhysicalMemory.create(MIB, name)
    firsts[0].close()
    gc.collect()
    assert not file_of(name).exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_with_exist_ok_an_arena_that_is_there_is_attached_to_as_it_is(name):
    with PhysicalMemory.create(MIB, name, exist_ok=True) as mem:  # noqa: SIM117
        with PhysicalMemory.create(4 * MIB, name, exist_ok=True, slot_size=128) as same:
            assert same is not mem
            assert (same.size, same.slot_size) == (MIB, 64)
            assert len(mem.clients) == 2


def test_a_file_that_is_no_arena_is_not_overwritten(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with pytest.raises(ArenaExistsError):
        PhysicalMemory.create(MIB, path=path)
    with pytest.raises(pageframe.ArenaForeignError):
        PhysicalMemory.create(MIB, path=path, exist_ok=True)
    assert path.read_bytes() == b"precious"


def test_create_gives_up_on_a_link_to_nowhere(tmp_path):
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArenaExistsError):
        PhysicalMemory.create(MIB, path=path)
    with pytest.raises(ArenaNotFoundError):
        PhysicalMemory.create(MIB, path=path, exist_ok=True)


def test_a_size_that_makes_no_sense_leaves_no_file(name):
    for size, options in ((0, {}), (-4096, {}), (5000, {}), (4096, {}), (MIB, {"clients": 0}),
                          (MIB, {"clients": 4097}), (MIB, {"tickets": 0}), (MIB, {"ticket_ttl": -1}),
                          (MIB, {"ticket_ttl": float("nan")}), (MIB, {"slot_size": 32}),
                          (MIB, {"page_size": 1000})):  # fmt: skip
        with pytest.raises(ValueError, match=r"\d|nan"):
            PhysicalMemory.create(size, name, **options)
        assert not file_of(name).exists()


@pytest.mark.parametrize("options", [{"page_size": 65536}, {"slot_size": 256}, {"clients": 1}, {"tickets": 1},
                                     {"populate": True}, {"page_size": 2 * MIB}])  # fmt: skip
def test_every_shape_of_an_arena_is_found_again_by_who_attaches(name, options):
    with PhysicalMemory.create(16 * MIB, name, **{"clients": 2} | options) as mem:
        page_size, slot_size = mem.page_size, mem.slot_size
        if options.get("clients") == 1:
            with pytest.raises(ClientsFullError, match=r"^1 processes are attached"):
                PhysicalMemory.attach(name)
            return
        with PhysicalMemory.attach(name) as other:
            assert (other.page_size, other.slot_size, other.size) == (page_size, slot_size, 16 * MIB)
            assert other.layout == mem.layout
            with mem.alloc_frame(zeroed=False) as frame:
                assert Frame.from_in_use(other, frame.start_paddr).reference_count == 2


# -- attaching ---------------------------------------------------------------------------------


def test_what_one_process_writes_another_that_attaches_by_name_reads(name):
    with PhysicalMemory.create(MIB, name) as mem, mem.alloc_frame(Page(inode=77)) as frame:
        memoryview(frame)[:4] = b"ping"
        told = run(
            """
            mem = PhysicalMemory.attach(NAME)
            with Frame.from_in_use(mem, int(ARGS[0])) as frame:
                tell(frame.meta_type.__qualname__, frame.reference_count, bytes(memoryview(frame)[:4]))
                memoryview(frame)[:4] = b"pong"
            mem.close()
            """,
            name,
            frame.start_paddr,
        )
        assert told == "Page 2 b'ping'"
        assert bytes(memoryview(frame)[:4]) == b"pong"
        assert frame.reference_count == 1
        assert mem.audit().clean


def test_attaching_twice_gives_two_clients_whose_handles_count_apart(name):
    with PhysicalMemory.create(MIB, name) as one, PhysicalMemory.attach(name) as two:
        assert [client.pid for client in one.clients] == [os.getpid()] * 2
        frame = one.alloc_frame()
        same = Frame.from_in_use(two, frame.start_paddr)
        assert frame.reference_count == 2
        assert frame != same  # handles of one frame, in two arenas of this process
        [holder] = {(holder.pid, holder.handles) for holder in one.holders(frame)} - {(0, 0)}
        assert holder[0] == os.getpid()
        with pytest.raises(ArenaInUseError, match="1 frames by 1 references"):
            two.close()
        same.drop()
        assert frame.reference_count == 1
        frame.drop()
        assert one.audit().clean


def test_a_full_table_of_clients_refuses_one_more_and_says_how_many(name):
    with PhysicalMemory.create(MIB, name, clients=3) as mem:
        others = [PhysicalMemory.attach(name) for _ in range(2)]
        for _ in range(3):
            with pytest.raises(
                ClientsFullError, match=r"^3 processes are attached to the arena, the maximum"
            ):
                PhysicalMemory.attach(name)
        assert len(mem.clients) == 3
        others.pop().close()
        PhysicalMemory.attach(name).close()
        others.pop().close()


def test_a_place_of_a_killed_client_is_used_when_the_table_is_full(name):
    with PhysicalMemory.create(MIB, name, clients=2) as mem:
        with Child(
            "mem = PhysicalMemory.attach(NAME); f = mem.alloc_frames(9); tell('on'); wait()", name
        ) as child:
            assert child.hear() == "on"
            with pytest.raises(ClientsFullError):
                PhysicalMemory.attach(name)
            child.kill()
        other = PhysicalMemory.attach(name)
        assert mem.used_frames == 0
        assert [client.pid for client in mem.clients] == [os.getpid()] * 2
        assert mem.audit().clean
        other.close()


def test_a_process_whose_name_no_text_can_hold_attaches_all_the_same(name):
    with PhysicalMemory.create(MIB, name):
        told = run(
            """
            sys.argv = ["/bin/\\udcff" + "é" * 200]
            mem = PhysicalMemory.attach(NAME)
            [client] = [client for client in mem.clients if client.pid == os.getpid()]
            tell(ascii(client.name[:3]), len(client.name.encode()) <= 115)
            mem.close()
            """,
            name,
        )
        assert told == "'?\\xe9\\xe9' True"


# -- leaving -----------------------------------------------------------------------------------


def test_the_last_client_takes_the_arena_along(name):
    one = PhysicalMemory.create(MIB, name)
    two = PhysicalMemory.attach(name)
    one.close()
    assert file_of(name).exists()
    two.close()
    assert not file_of(name).exists()
    with pytest.raises(ArenaNotFoundError) as caught:
        PhysicalMemory.attach(name)
    assert caught.value.filename == str(file_of(name))
    assert caught.value.errno == errno.ENOENT


def test_an_arena_that_is_to_stay_stays_and_keeps_what_its_name_says(name):
    PhysicalMemory.create(MIB, name, unlink_on_last=False).close()
    assert name in [info.name for info in PhysicalMemory.list()]
    with PhysicalMemory.attach(name) as mem:
        assert mem.used_frames == 0
        assert mem.audit().clean
    assert file_of(name).exists()
    PhysicalMemory.unlink(name)
    assert not file_of(name).exists()


@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "mem = frame = None", "raise SystemExit"])
def test_a_process_that_ends_gives_back_what_it_held_and_removes_the_name(name, end):
    run(f"mem = PhysicalMemory.create('1 MiB', NAME); frame = mem.alloc_frame(); {end}", name)
    assert not file_of(name).exists()


def test_what_a_process_held_is_free_when_it_has_ended_without_a_reaper(name):
    with PhysicalMemory.create(MIB, name) as mem:
        run("mem = PhysicalMemory.attach(NAME); held = [mem.alloc_segment(8), mem.alloc_frames(5)]", name)
        assert mem.used_frames == 0
        assert len(mem.clients) == 1


def test_an_arena_in_a_reference_cycle_is_removed_by_the_collector(name):
    run(
        """
        import gc
        mem = PhysicalMemory.create("1 MiB", NAME)
        class Owner(UntypedFrameMeta):
            pass
        mem.alloc_frame(Owner).drop()
        Owner.arena = mem       # arena -> its types -> Owner -> arena
        del Owner, mem
        gc.collect()
        tell(os.path.exists("/dev/shm/pageframe-" + NAME))
        """,
        name,
    )
    assert not file_of(name).exists()


def test_closing_is_refused_while_anything_lives_and_changes_nothing(name):
    mem = PhysicalMemory.create(MIB, name)
    keep = {
        "frame": mem.alloc_frame(),
        "segment": mem.alloc_segment(3),
        "vector": mem.alloc_frames(4),
        "array": mem.zeros(10),
        "unique": mem.alloc_frame().try_unique(),
        "list": LinkedList(mem, Page),
    }
    keep["list"].push_back(mem.alloc_frame(Page).try_unique())
    keep["view"] = memoryview(keep["frame"])
    raw = mem.alloc_frame().into_raw()
    slots = mem.slots
    with pytest.raises(
        ArenaInUseError,
        match=r"this process holds 12 frames by 12 references, and 1 arrays over its tables live",
    ):
        mem.close()
    assert not mem.closed
    assert mem.audit().clean
    while keep:
        keep.popitem()
        with pytest.raises(ArenaInUseError):
            mem.close()
    Frame.from_raw(mem, raw).drop()
    with pytest.raises(ArenaInUseError, match="holds 0 frames by 0 references, and 1 arrays"):
        mem.close()
    del slots
    mem.close()
    assert mem.closed
    mem.close()  # once more does nothing


def test_closing_is_not_hindered_by_what_others_hold_and_hinders_nobody(name):
    one = PhysicalMemory.create(MIB, name)
    two = PhysicalMemory.attach(name)
    frame = two.alloc_frame()
    memoryview(frame)[:2] = b"ok"
    one.close()
    assert bytes(memoryview(frame)[:2]) == b"ok"
    assert two.audit().clean
    clone = frame.clone()
    assert clone.reference_count == 2
    del clone
    frame.drop()
    two.close()


def test_everything_that_is_used_after_close_says_that_the_arena_is_closed(name):
    mem = PhysicalMemory.create(MIB, name)
    gone = mem.alloc_frame()
    gone.drop()
    mem.close()
    for use in (mem.reap, mem.audit, lambda: mem.holders(0), lambda: mem.clients, lambda: mem.ticket_ttl,
                mem.alloc_frame, lambda: mem.alloc_frames(2), lambda: mem.alloc_segment(2), mem.stats,
                lambda: mem.slots, lambda: mem.meta(Page), lambda: mem.array(3), mem.trim,
                lambda: pickle.dumps(mem), lambda: Frame.from_in_use(mem, 0),
                lambda: LinkedList(mem, Page), lambda: mem.inc_frame_ref_count(0)):  # fmt: skip
        with pytest.raises(ArenaClosedError, match="closed"):
            use()
    with pytest.raises(MovedError):
        gone.start_paddr
    assert "closed" in repr(mem)


def test_an_arena_that_was_never_made_is_a_closed_one():
    mem = PhysicalMemory.__new__(PhysicalMemory)
    assert mem.closed
    for use in (mem.reap, mem.audit, lambda: mem.holders(0), lambda: mem.clients, mem.alloc_frame, mem.stats,
                lambda: mem.ticket_ttl, lambda: setattr(mem, "ticket_ttl", 1),
                lambda: pickle.dumps(mem)):  # fmt: skip
        with pytest.raises(ArenaClosedError):
            use()
    assert (mem.name, mem.shared, mem.layout, mem.total_frames) == (None, False, (), 0)
    mem.close()


def test_a_shared_arena_can_not_be_initialised_again(name):
    with PhysicalMemory.create(MIB, name) as mem:
        with pytest.raises(TypeError, match="initialised already"):
            mem.__init__(MIB)
        assert mem.audit().clean


# -- unlinking ---------------------------------------------------------------------------------


def test_unlink_removes_the_name_and_the_clients_go_on(name):
    with PhysicalMemory.create(MIB, name) as mem:
        frame = mem.alloc_frame()
        PhysicalMemory.unlink(name)
        with pytest.raises(ArenaNotFoundError):
            PhysicalMemory.unlink(name)
        with pytest.raises(ArenaNotFoundError):
            PhysicalMemory.attach(name)
        with PhysicalMemory.create(2 * MIB, name) as another:
            assert another.size == 2 * MIB
            frame.drop()
            mem.close()  # the last client of the first arena leaves the second its name
            assert file_of(name).exists()
    assert not file_of(name).exists()


def test_unlink_leaves_what_is_no_arena(tmp_path):
    path = tmp_path / "letters"
    path.write_text("dear all, " * 100)
    with pytest.raises(pageframe.ArenaForeignError, match="no arena"):
        PhysicalMemory.unlink(path=path)
    assert path.exists()


# -- killed processes --------------------------------------------------------------------------

LEAVE = """
mem = PhysicalMemory.create("1 MiB", NAME)
held = mem.alloc_segment(9)
tell("made")
wait()
"""


@pytest.mark.parametrize("sweeper", ["list", "create", "the same name"])
def test_an_arena_that_killed_processes_left_is_swept(name, sweeper):
    with Child(LEAVE, name) as creator:
        creator.hear()
        with Child("mem = PhysicalMemory.attach(NAME); tell('on'); wait()", name) as other:
            other.hear()
            creator.kill()
            assert name in [info.name for info in PhysicalMemory.list()]  # one of them lives
            other.kill()
    assert file_of(name).exists()
    if sweeper == "list":
        assert name not in [info.name for info in PhysicalMemory.list()]
    elif sweeper == "create":
        PhysicalMemory.create(MIB).close()
    else:
        with PhysicalMemory.create(2 * MIB, name) as mem:
            assert mem.size == 2 * MIB
            assert mem.used_frames == 0
    assert not file_of(name).exists()


def test_an_arena_that_killed_processes_left_can_still_be_attached_to_before_it_is_swept(name):
    with Child(LEAVE, name) as creator:
        creator.hear()
        creator.kill()
    with PhysicalMemory.attach(name) as mem:
        assert mem.used_frames == 0
        assert name in [info.name for info in PhysicalMemory.list()]
    assert not file_of(name).exists()


def test_an_arena_that_is_to_stay_is_not_swept(name):
    with Child(LEAVE.replace("NAME)", "NAME, unlink_on_last=False)"), name) as creator:
        creator.hear()
        creator.kill()
    assert name in [info.name for info in PhysicalMemory.list()]
    with PhysicalMemory.attach(name) as mem:
        assert mem.used_frames == 0
    PhysicalMemory.unlink(name)


def test_a_process_that_is_only_stopped_keeps_its_arena(name):
    with Child(LEAVE, name) as creator:
        creator.hear()
        os.kill(creator.pid, signal.SIGSTOP)
        try:
            assert name in [info.name for info in PhysicalMemory.list()]
            with PhysicalMemory.attach(name) as mem:
                assert mem.used_frames == 9
                assert mem.reap().clients == ()
        finally:
            os.kill(creator.pid, signal.SIGCONT)


@pytest.mark.parametrize("content", [b"", b"PGFRAME\0", b"x" * 8192, b"EMARFGP\0" + bytes(9000)],
                         ids=["empty", "cut", "foreign", "swapped"])  # fmt: skip
def test_a_file_that_only_looks_like_an_arena_by_its_name_stays_and_hinders_nobody(name, content):
    file_of(name).write_bytes(content)
    assert name not in [info.name for info in PhysicalMemory.list()]
    PhysicalMemory.create(MIB).close()
    with pytest.raises(pageframe.ArenaExistsError):
        PhysicalMemory.create(MIB, name)
    assert file_of(name).read_bytes() == content


def test_a_truncated_arena_hinders_neither_list_nor_create(name):
    with PhysicalMemory.create(MIB, name):
        content = file_of(name).read_bytes()[: MIB // 2]
        with unique_name() as damaged:
            file_of(damaged).write_bytes(content)
            names = [info.name for info in PhysicalMemory.list()]
            assert name in names
            assert damaged not in names
            PhysicalMemory.create(MIB).close()


def test_things_under_dev_shm_that_are_no_files_hinder_nobody(name):
    file_of(name).mkdir()
    try:
        with unique_name() as pipe, unique_name() as link:
            os.mkfifo(file_of(pipe))
            file_of(link).symlink_to("/nowhere/at/all")
            assert not {name, pipe, link} & {info.name for info in PhysicalMemory.list()}
            PhysicalMemory.create(MIB).close()
    finally:
        file_of(name).rmdir()


STEPS = ["create_file", "reserve", "publish", "path_of", "lock"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_creator_that_is_killed_at_any_step_leaves_nothing_that_is_not_swept(name, step, when):
    with Child(
        """
        from pageframe._core import backing
        step, when = ARGS
        real = getattr(backing, step)
        def killed(*args, **options):
            if when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            real(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        setattr(backing, step, killed)
        PhysicalMemory.create("1 MiB", NAME)
        """,
        name,
        step,
        when,
    ) as child:
        assert child.process.wait(TIMEOUT) == -signal.SIGKILL
    if (step, when) != ("publish", "after"):
        assert not file_of(name).exists()
    assert name not in [info.name for info in PhysicalMemory.list()]
    assert not file_of(name).exists()
    with PhysicalMemory.create(MIB, name):
        pass


# -- races -------------------------------------------------------------------------------------

RACE = """
tell("ready")
wait()
wins = 0
for i in range(40):
    try:
        mem = PhysicalMemory.create("256 KiB", f"{NAME}-{i}", clients=8,
                                    exist_ok=ARGS == ["ok"], unlink_on_last=False)
    except ArenaExistsError:
        continue
    wins += 1
tell(wins)
wait()
"""


@pytest.mark.parametrize(("word", "total"), [("", 40), ("ok", 80)])
def test_of_two_processes_that_create_one_name_one_wins_or_with_exist_ok_both_share_it(name, word, total):
    args = [word] if word else []
    try:
        with Child(RACE, name, *args) as one, Child(RACE, name, *args) as two:
            for child in (one, two):
                assert child.hear() == "ready"
            for child in (one, two):
                child.go_on()
            wins = [int(one.hear()), int(two.hear())]
            assert sum(wins) == total
            for i in range(40):
                with PhysicalMemory.attach(f"{name}-{i}") as mem:
                    assert mem.audit().clean
    finally:
        for i in range(40):
            file_of(f"{name}-{i}").unlink(missing_ok=True)


COME_AND_GO = """
tell("ready")
wait()
for _ in range(150):
    with PhysicalMemory.create("256 KiB", NAME, clients=8, exist_ok=True) as mem:
        with mem.alloc_frame() as frame:
            pass
tell("done")
"""


def test_processes_that_come_and_go_with_exist_ok_never_miss_each_other(name):
    with Child(COME_AND_GO, name) as one, Child(COME_AND_GO, name) as two:
        for child in (one, two):
            assert child.hear() == "ready"
        for child in (one, two):
            child.go_on()
        assert (one.finish(), two.finish()) == ("done", "done")
    assert not file_of(name).exists()


# -- room --------------------------------------------------------------------------------------


def small_file_system(body):
    """Run a script in a mount namespace of its own where /dev/shm has 8 MiB."""
    script = 'set -e; mount -t tmpfs -o size=8m,mode=1777 none /dev/shm; exec "$@"'
    prefix = ["unshare", "--mount", "--propagation", "private"]
    if os.geteuid() != 0:
        prefix = ["unshare", "--user", "--map-root-user", "--mount"]
    command = [*prefix, "sh", "-c", script, "sh"]
    try:
        probe = subprocess.run([*command, "true"], capture_output=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare(1)")
    if probe.returncode != 0:
        pytest.skip(f"no mount namespace can be had here: {probe.stderr.decode().strip()}")
    done = subprocess.run(
        [*command, sys.executable, "-c", "import os\nfrom pageframe import *\n" + body],
        capture_output=True, text=True, timeout=TIMEOUT, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_dev_shm_that_can_not_hold_the_arena_refuses_at_once_and_nothing_fails_later():
    told = small_file_system(
        """
try:
    PhysicalMemory.create("16 MiB", "large")
except ArenaFullError as error:
    print(error.errno, isinstance(error, OSError), "16777216 bytes" in str(error), error.filename)
print(os.listdir("/dev/shm"))
mem = PhysicalMemory.create("6 MiB", "fits", clients=4)
open("/dev/shm/filler", "wb")
try:
    with open("/dev/shm/filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
except OSError as error:
    print(error.errno)
vec = mem.alloc_frames(mem.free_frames)      # every frame is written, and no SIGBUS
for frame in vec:
    memoryview(frame)[:] = b"x" * 4096
try:
    PhysicalMemory.attach("fits")            # its area finds no room
except ArenaFullError as error:
    print(error.errno)
del frame
print(mem.audit().clean, len(mem.clients))
vec.drop()
os.unlink("/dev/shm/filler")
PhysicalMemory.attach("fits").close()
mem.close()
print(os.listdir("/dev/shm"))
"""
    )
    assert told == ["28", "True", "True", "/dev/shm/pageframe-large", "[]", "28", "28", "True", "1", "[]"]


def test_an_arena_without_a_name_is_not_limited_by_dev_shm():
    assert small_file_system(
        """
mem = PhysicalMemory.create("16 MiB")
vec = mem.alloc_frames(mem.free_frames)
print(len(vec) > 3900)
"""
    ) == ["True"]


@pytest.mark.parametrize("where", ["name", "path", "memfd"])
def test_a_limit_of_file_sizes_is_no_room_either(name, tmp_path, where):
    code = {"name": "NAME", "path": "path=ARGS[0]", "memfd": "None"}[where]
    told = run(
        f"""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            PhysicalMemory.create("16 MiB", {code})
        except ArenaFullError as error:
            tell(error.errno, int(str(error).split("hold ")[1].split()[0]) >= 16 << 20)
        """,
        name,
        tmp_path / "arena",
    )
    assert told == f"{errno.EFBIG} True"
    assert not (tmp_path / "arena").exists()


@pytest.mark.skipif("PAGEFRAME_SANITIZE" in os.environ, reason="AddressSanitizer takes more than that")
def test_the_limit_of_address_space_is_an_error_of_its_own(name):
    told = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        try:
            PhysicalMemory.create("2 GiB")
        except MemoryError as error:
            tell(error)
        """,
        name,
    )
    assert told.startswith("can't map ")


# -- private arenas ----------------------------------------------------------------------------


def test_a_private_arena_has_nothing_of_all_this():
    mem = PhysicalMemory(MIB)
    frame = mem.alloc_frame()
    assert not mem.shared
    assert (mem.name, mem.clients) == (None, ())
    for use, what in ((mem.reap, "reap"), (mem.audit, "audit"), (lambda: mem.holders(frame), "holders"),
                      (lambda: mem.ticket_ttl, "ticket_ttl")):  # fmt: skip
        with pytest.raises(TypeError, match=f"{what}.* is for shared arenas"):
            use()
    with pytest.raises(TypeError, match="private arena can't be pickled"):
        pickle.dumps(mem)
    with pytest.raises(TypeError, match="private arena can't be pickled"):
        pickle.dumps(frame)
    sizes = {name: size for name, _, size in mem.layout}
    assert sizes["clients"] == sizes["tickets"] == sizes["areas"] == 0
    frame.drop()
    mem.close()


def test_a_private_arena_that_cannot_be_mapped_opens_no_file():
    before = open_files()
    mem = PhysicalMemory(MIB, mappable=False)
    assert open_files() == before
    mem.close()


def test_a_private_arena_that_can_be_mapped_opens_one_file_and_closes_it():
    before = open_files()
    mem = PhysicalMemory(MIB)
    assert len(open_files()) == len(before) + 1
    mem.close()
    assert open_files() == before


def test_closing_gives_the_files_back(name):
    before = open_files()
    with PhysicalMemory.create(MIB, name), PhysicalMemory.attach(name), PhysicalMemory.create(MIB):
        assert len(open_files()) > len(before)
    assert open_files() == before


@pytest.mark.parametrize("fails", ["exists", "geometry", "full table"])
def test_a_refusal_leaves_no_file_open(name, fails):
    with PhysicalMemory.create(MIB, name, clients=1):
        before = open_files()
        for _ in range(3):
            with pytest.raises((pageframe.PageFrameError, ValueError)):
                if fails == "exists":
                    PhysicalMemory.create(MIB, name)
                elif fails == "geometry":
                    PhysicalMemory.create(8192)
                else:
                    PhysicalMemory.attach(name)
        assert open_files() == before


# -- types -------------------------------------------------------------------------------------


def test_processes_that_register_types_at_once_agree_on_one_number_each(name):
    script = """
        mem = PhysicalMemory.attach(NAME)
        tell("ready")
        wait()
        order = range(40) if ARGS == ["up"] else range(39, -1, -1)
        made = {}
        for i in order:
            made[i] = type(UntypedFrameMeta)(f"Type{i}", (UntypedFrameMeta,), {"__module__": "shared"})
            mem.alloc_frame(made[i]).drop()
        names = {number: f"{c.__module__}.{c.__qualname__}" for number, c in mem.types.items()}
        tell(len([n for n in names.values() if n.startswith("shared.")]), sorted(names.items()))
    """
    with PhysicalMemory.create(MIB, name) as mem:
        with Child(script, name, "up") as one, Child(script, name, "down") as two:
            for child in (one, two):
                assert child.hear() == "ready"
            for child in (one, two):
                child.go_on()
            first, second = one.hear(), two.hear()
        assert first.split(" ", 1)[0] == second.split(" ", 1)[0] == "40"
        assert first == second
        shown = sorted((number, f"{c.__module__}.{c.__qualname__}") for number, c in mem.types.items())
        assert first.split(" ", 1)[1] == str(shown)


def test_a_class_that_is_defined_after_attaching_is_used_from_then_on(name):
    with PhysicalMemory.create(MIB, name) as mem, mem.alloc_frame(Page(inode=41)) as frame:
        told = run(
            """
            mem = PhysicalMemory.attach(NAME)
            frame = Frame.from_in_use(mem, int(ARGS[0]))
            tell(issubclass(frame.meta_type, OpaqueMeta), frame.meta_type.__qualname__)
            try:
                frame.meta.inode
            except AttributeError as error:
                tell("no field")
            class Page(Link, UntypedFrameMeta):
                __module__ = "types_for_tests"
                inode: u64
                dirty: bool_ = True
                tag: bytes_[16]
                hits: atomic_u32
            tell(frame.meta_type is Page, frame.meta.inode, frame.meta.hits.fetch_add(5))
            """,
            name,
            frame.start_paddr,
        )
        assert told.split("\n") == ["True Page", "no field", "True 41 0"]
        assert frame.meta.hits.load() == 5


def test_a_class_of_the_same_name_with_other_fields_is_another_type(name):
    with PhysicalMemory.create(MIB, name) as mem, mem.alloc_frame(Page(inode=41)) as frame:
        told = run(
            """
            class Page(Link, UntypedFrameMeta):
                __module__ = "types_for_tests"
                inode: u32
            mem = PhysicalMemory.attach(NAME)
            frame = Frame.from_in_use(mem, int(ARGS[0]))
            tell(frame.meta_type is Page, issubclass(frame.meta_type, OpaqueMeta))
            mem.alloc_frame(Page).drop()
            tell(len(mem.types))
            """,
            name,
            frame.start_paddr,
        )
        assert told.split("\n") == ["False True", str(len(mem.types))]


def test_a_class_of_the_main_module_is_the_same_in_a_spawned_process(tmp_path, name):
    script = tmp_path / "program.py"
    script.write_text(
        """
import multiprocessing, sys
from pageframe import PhysicalMemory, UntypedFrameMeta, u64, Frame

class Mine(UntypedFrameMeta):
    number: u64

def work(mem, paddr, queue):
    with Frame.from_in_use(mem, paddr) as frame:
        queue.put((frame.meta_type is Mine, frame.meta.number, len(mem.types)))
    mem.alloc_frame(Mine(number=1)).drop()
    queue.put(len(mem.types))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with PhysicalMemory.create("1 MiB") as mem, mem.alloc_frame(Mine(number=9)) as frame:
        queue = context.SimpleQueue()
        child = context.Process(target=work, args=(mem, frame.start_paddr, queue))
        child.start()
        child.join(50)
        print(child.exitcode, *queue.get(), queue.get() - len(mem.types))
"""
    )
    for method in ("spawn", "forkserver"):
        done = subprocess.run(
            [sys.executable, script, method], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split()[:3] == ["0", "True", "9"]
        assert done.stdout.split()[-1] == "0"


class Large(FrameMeta):
    a: u64
    b: u64
    c: u64
    d: u64
    e: u64
    f: u64


def test_a_type_that_fits_no_slot_of_the_arena_is_refused_and_not_registered(name):
    with PhysicalMemory.create(MIB, name) as mem:
        before = mem.types
        with pytest.raises(pageframe.FrameTypeError, match="takes 48 bytes, a slot of this arena has 40"):
            mem.alloc_frame(Large)
        assert mem.types == before


def test_the_registry_refuses_more_types_than_it_has_room_for_in_every_process(name):
    script = """
        mem = PhysicalMemory.attach(NAME)
        kinds = []
        try:
            for i in range(100):
                kinds.append(type(UntypedFrameMeta)(f"T{i}", (UntypedFrameMeta,), {}))
                mem.alloc_frame(kinds[-1]).drop()
        except FrameTypeError as error:
            tell(len(mem.types), error)
    """
    with PhysicalMemory.create(MIB, name) as mem:
        told = run(script, name)
        assert told.startswith("64 no room to register __main__.T58: the arena has its 64 types already")
        assert len(mem.types) == 64
        with pytest.raises(pageframe.FrameTypeError, match="its 64 types already"):
            mem.alloc_frame(Page)
        assert mem.audit().clean


def test_memory_that_was_set_aside_for_a_client_stays_when_it_leaves(name):
    """Somebody who has seen it there a moment ago may be about to read it, and there may be no other."""
    with PhysicalMemory.create(64 * MIB, name) as mem:
        PhysicalMemory.attach(name).close()
        there = file_of(name).stat().st_blocks
        for _ in range(3):
            with PhysicalMemory.attach(name) as other:
                other.alloc_frames(1000).drop()
            assert file_of(name).stat().st_blocks >= there
        assert mem.audit().clean
