# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Programs that use shared arenas as nobody should: no crash, and nobody else is harmed."""

import pytest

from other_processes import Child, run, unique_name
from pageframe import PhysicalMemory

MIB = 1 << 20


@pytest.fixture
def name():
    with unique_name() as name:
        yield name


@pytest.fixture
def mem(name):
    """Return a named arena that must be whole and empty at the end."""
    mem = PhysicalMemory.create(MIB, name, clients=8)
    yield mem
    mem.reap()
    report = mem.audit()
    assert report.clean, report
    assert mem.used_frames == 0, mem.stats()
    mem.close()


TELLING = """
held = {}
class Telling(UntypedFrameMeta):
    number: u64
    def on_drop(self, reader):
        act(self.number)
mem = PhysicalMemory.attach(NAME)
"""


def test_on_drop_that_attaches_while_the_process_leaves(mem, name):
    told = run(
        TELLING
        + """
def act(number):
    with PhysicalMemory.attach(NAME) as again:
        tell("attached", len(again.clients))
held["telling"] = mem.alloc_frame(Telling(number=1))
""",
        name,
    )
    assert told == "attached 3"


def test_on_drop_that_attaches_while_the_place_of_the_dead_is_taken(name):
    with PhysicalMemory.create(MIB, name, clients=2, unlink_on_last=False) as mem:
        script = TELLING + 'held["telling"] = mem.alloc_frame(Telling(number=1)); tell("there"); wait()'
        with Child(script, name) as dead:
            assert dead.hear() == "there"
        told = run(
            """
def act(number):
    try:
        PhysicalMemory.attach(NAME)
    except ClientsFullError:
        tell("full", number)
"""
            + TELLING,
            name,
        )
        assert told == "full 1"
        assert mem.used_frames == 0
    PhysicalMemory.unlink(name)


def test_on_drop_that_drops_another_handle_while_the_process_leaves(mem, name):
    told = run(
        TELLING
        + """
def act(number):
    tell("dropped", number)
    try:
        assert number == 1
        held.pop("plain").drop()
        held.pop("clone").drop()
        held["new"] = mem.alloc_frame()
    except PageFrameError as error:
        tell("closed")
held["plain"] = mem.alloc_frame()
held["clone"] = held["plain"].clone()
held["telling"] = mem.alloc_frame(Telling(number=1))
""",
        name,
    )
    assert told.startswith("dropped 1")


def test_on_drop_that_forks(mem, name):
    told = run(
        TELLING
        + """
import warnings
warnings.simplefilter("ignore")
def act(number):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    else:
        held["child"] = True
frame = mem.alloc_frame(Telling(number=1))
frame.drop()
if held:
    mem.close()
    os._exit(0)
report = mem.audit()
tell(report.clean, len(report.clients), mem.used_frames)
mem.close()
""",
        name,
    )
    assert told == "True 2 0"


def test_on_drop_that_forks_while_it_reaps(mem, name):
    told = run(
        TELLING
        + """
import subprocess, warnings
warnings.simplefilter("ignore")
code = '''
import os
from pageframe import *
class Telling(UntypedFrameMeta):
    number: u64
    def on_drop(self, reader):
        pass
mem = PhysicalMemory.attach(%r)
held = mem.alloc_frames(3, Telling)
os.kill(os.getpid(), 9)
''' % NAME
subprocess.run([sys.executable, "-c", code])
def act(number):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    else:
        held["child"] = True
        os._exit(0)
report = mem.reap()
tell(report.frames, mem.audit(repair=True).clean, mem.used_frames)
mem.close()
""",
        name,
    )
    assert told == "3 True 0"


def test_on_drop_that_attaches_reaps_audits_and_closes(mem, name):
    told = run(
        TELLING
        + """
def act(number):
    other = PhysicalMemory.attach(NAME)
    other.alloc_frame().drop()
    mem.reap()
    mem.audit(repair=True)
    other.close()
    PhysicalMemory.list()
    PhysicalMemory.create("1 MiB").close()
    try:
        mem.close()
    except ArenaInUseError:
        tell("in use")
mem.alloc_frame(Telling).drop()
tell(mem.audit().clean, mem.used_frames)
mem.close()
""",
        name,
    )
    assert told.split("\n") == ["in use", "True 0"]


def test_threads_that_reap_audit_register_and_close(mem, name):
    assert (
        run(
            """
def work(i):
    for k in range(25):
        mem = PhysicalMemory.attach(NAME)
        def use():
            try:
                for _ in range(5):
                    mem.reap()
                    mem.audit()
                    mem.clients
                    mem.holders(0)
                    mem.types
                    mem.alloc_frame().drop()
            except (ArenaClosedError, OSError) as error:
                failed.append(error)
        helpers = [threading.Thread(target=use) for _ in range(2)]
        for helper in helpers:
            helper.start()
        while not mem.closed:
            try:
                mem.close()
            except ArenaInUseError:
                pass
        for helper in helpers:
            helper.join()
failed = []
sys.setswitchinterval(1e-5)
threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
tell(sorted({type(error).__name__ for error in failed} - {"ArenaClosedError"}))
""",
            name,
        )
        == "[]"
    )


def test_threads_that_learn_of_new_types_at_once(mem, name):
    for i in range(40):
        cls = type(_base())(f"Learnt{i}", (_base(),), {"__module__": "nowhere"})
        mem.alloc_frame(cls).drop()
    assert (
        run(
            """
sys.setswitchinterval(1e-6)
for _ in range(10):
    mem = PhysicalMemory.attach(NAME)
    mem.close()
mem = PhysicalMemory.attach(NAME)
tell(sum(c.__module__ == "nowhere" for c in mem.types.values()))
mem.close()
""",
            name,
        )
        == "40"
    )


def _base():
    from pageframe import UntypedFrameMeta

    return UntypedFrameMeta


def test_an_index_that_closes_the_arena(mem, name):
    assert run(
        """
class Closing:
    def __index__(self):
        mem.close()
        return 4096
told = []
for use in (lambda x: mem.holders(x), lambda x: mem.alloc_frames(x), lambda x: Frame.from_in_use(mem, x),
            lambda x: mem.array(x), lambda x: mem.alloc_segment(x), lambda x: mem.inc_frame_ref_count(x)):
    mem = PhysicalMemory.attach(NAME)
    try:
        use(Closing())
    except ArenaClosedError:
        told.append("closed")
tell(*told)
""",
        name,
    ) == " ".join(["closed"] * 6)
