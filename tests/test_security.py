# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What docs/security.md says of who is trusted with what."""

import fcntl
import os
import pickle
import select
import signal
from pathlib import Path

import pytest

import pageframe
from other_processes import Child, file_of, run, unique_name
from pageframe import ArenaView, PhysicalMemory
from pageframe._core import backing, message

MIB = 1 << 20


@pytest.fixture
def name():
    with unique_name() as name:
        yield name


def test_an_arena_is_for_its_user_alone_and_descriptors_are_not_inherited(name, tmp_path):
    with PhysicalMemory.create(MIB, name) as mem, PhysicalMemory.create(MIB) as unnamed:
        assert file_of(name).stat().st_mode & 0o777 == 0o600
        found = 0
        for entry in Path("/proc/self/fd").iterdir():
            if entry.is_symlink() and ("pageframe-" + name) in (target := str(entry.readlink())):
                found += target.count(name)
                assert fcntl.fcntl(int(entry.name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            elif entry.is_symlink() and unnamed.id in str(entry.readlink()):
                found += 1
                assert fcntl.fcntl(int(entry.name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
                assert fcntl.fcntl(int(entry.name), fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        assert found >= 1
        assert mem.used_frames == 0


def test_a_view_maps_the_arena_so_that_it_can_not_be_written(name):
    with PhysicalMemory.create(MIB, name) as mem:
        run(
            """
            with ArenaView(NAME) as view:
                lines = [line for line in open("/proc/self/maps") if NAME in line]
                assert [line.split()[1] for line in lines] == ["r--s"], lines
                for array in (view.slots, view.bitfield):
                    assert not array.flags.writeable
                    try:
                        array.flags.writeable = True
                    except ValueError as error:
                        tell(error)
                    del array
            """,
            name,
        )
        assert mem.used_frames == 0


def test_a_name_that_is_taken_is_left_as_it_was(name):
    file_of(name).write_bytes(b"somebody else's")
    with pytest.raises(pageframe.ArenaExistsError):
        PhysicalMemory.create(MIB, name)
    for use in (PhysicalMemory.attach, ArenaView):
        with pytest.raises(pageframe.ArenaForeignError):
            use(name)
    assert file_of(name).read_bytes() == b"somebody else's"


def test_a_symbolic_link_in_the_place_of_a_name_is_not_followed(name, tmp_path):
    target = tmp_path / "target"
    with PhysicalMemory.create(MIB, path=target):
        before = target.stat().st_mtime_ns
        file_of(name).symlink_to(target)
        for use in (PhysicalMemory.attach, ArenaView, PhysicalMemory.unlink):
            with pytest.raises(pageframe.ArenaForeignError, match="no regular file"):
                use(name)
        with pytest.raises(pageframe.ArenaExistsError):
            PhysicalMemory.create(MIB, name)
        assert target.stat().st_mtime_ns == before


def test_a_name_is_not_removed_if_it_is_another_file_s_by_now(name):
    mem = PhysicalMemory.create(MIB, name)
    file_of(name).unlink()
    file_of(name).write_bytes(b"another")
    mem.close()
    assert file_of(name).read_bytes() == b"another"


def test_an_arena_of_the_same_name_is_another_one_to_a_pickle(name):
    with PhysicalMemory.create(MIB, name) as mem:
        sent = pickle.dumps(mem.alloc_frame())
    with (
        PhysicalMemory.create(MIB, name),
        pytest.raises(pageframe.ArenaGoneError, match="another one has its name"),
    ):
        pickle.loads(sent)


def test_who_holds_the_lock_of_membership_makes_others_wait_and_no_longer(name):
    with PhysicalMemory.create(MIB, name) as mem:
        fd = backing.open_file(file_of(name))
        assert backing.lock(fd, backing.MEMBERSHIP, wait=False)
        with Child(
            "tell('on')\nmem = PhysicalMemory.attach(NAME)\ntell('attached')\nmem.close()", name
        ) as child:
            assert child.hear() == "on"
            assert not select.select([child.process.stdout], [], [], 0.5)[0]
            assert len(mem.clients) == 1
            os.close(fd)
            assert child.hear() == "attached"
            child.finish()


@pytest.mark.parametrize("who", ["PhysicalMemory.attach(NAME)", "ArenaView(NAME)"])
def test_a_file_that_is_cut_under_the_hands_of_a_process_ends_it_and_no_new_one_begins(name, who):
    with PhysicalMemory.create(MIB, name, unlink_on_last=False):
        pass
    with Child(f"mem = {who}\ntell('on')\nwait()\nmem.stats()\ntell('looked')", name) as child:
        assert child.hear() == "on"
        os.truncate(file_of(name), 4096)
        child.go_on()
        out, _ = child.process.communicate(timeout=60)
        assert (child.process.returncode, out) == (-signal.SIGBUS, "")
    for use in (PhysicalMemory.attach, ArenaView):
        with pytest.raises(pageframe.ArenaTruncatedError):
            use(name)


def test_a_file_of_the_user_s_own_at_a_path_is_reached_through_a_link(tmp_path):
    link = tmp_path / "link"
    with PhysicalMemory.create(MIB, path=tmp_path / "arena"):
        link.symlink_to(tmp_path / "arena")
        PhysicalMemory.attach(path=link).close()


def test_a_message_that_was_cut_or_names_no_arena_raises_an_error_of_the_package():
    for wrong in (b"", b"x" * 10, bytes(64), b"\xff" * 100):
        with pytest.raises(pageframe.PageFrameError):
            message.load(wrong)
