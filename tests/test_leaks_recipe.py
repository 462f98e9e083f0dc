# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The recipe of docs/leaks.md: its commands, typed as they stand there, find a leak that was planted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from other_processes import Child, unique_name
from pageframe import PhysicalMemory, UntypedFrameMeta

PAGE = Path(__file__).parents[1] / "docs" / "leaks.md"
ARENA, LEAKED = "crawler", 300
COMMANDS = re.findall(r"^\$ (pageframe .+)$", PAGE.read_text(), re.M)

# A worker that keeps what it works on in a global and never lets go, beside what it may keep.
LEAKY = """
class IndexMeta(UntypedFrameMeta):
    pass

class PageMeta(UntypedFrameMeta):
    url: u64

SEEN = []
import tracemalloc
tracemalloc.start()

def fetch(mem, url):
    page = mem.alloc_frame(PageMeta(url=url))
    SEEN.append(page)

with PhysicalMemory.attach(NAME) as mem:
    index = mem.alloc_frames(20, IndexMeta())
    tell("ready")
    for half in range(2):
        wait()
        for url in range(int(ARGS[0]) // 2):
            fetch(mem, url)
        tell("fetched")
    wait()
    frames = tracemalloc.DomainFilter(True, pageframe.TRACEMALLOC_DOMAIN)
    top = tracemalloc.take_snapshot().filter_traces([frames]).statistics("lineno")[0]
    tell(top.traceback[0].lineno - fetch.__code__.co_firstlineno, top.count)
    SEEN.clear()
    index.drop()
"""
HONEST = """
with PhysicalMemory.attach(NAME) as mem:
    index = mem.alloc_frames(400)
    tell("ready")
    for half in range(2):
        wait()
        for url in range(100):
            mem.alloc_frame().drop()
        tell("fetched")
    wait()
    index.drop()
"""


@pytest.fixture
def name():
    with unique_name() as name:
        yield name


def test_the_recipe_has_the_commands_that_the_test_types():
    assert [command.split()[1] for command in COMMANDS] == ["ls", "stat", "stat", "frames", "holders"]


def test_the_three_steps_find_process_type_and_number_of_leaked_frames(name):
    def typed(command, **words):
        """Run a command of the document, with the names and numbers of this test."""
        command = command.replace(ARENA, name)
        for pattern, word in words.values():
            command = re.sub(pattern, word, command)
        result = subprocess.run(
            [sys.executable, "-m", "pageframe.cli", *command.split()[1:]],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "COLUMNS": "80"},
        )
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
        return result.stdout

    def frames_of_clients(output):
        """Return the frames of each client: pid -> frames, as the table shows them."""
        return {
            int(pid): int(frames.replace(",", ""))
            for pid, frames in re.findall(r"^ +(\d+) .+ alive +([\d,]+)", output, re.M)
        }

    ls, stat, again, frames, holders = COMMANDS
    with (
        PhysicalMemory.create("8 MiB", name) as mem,
        mem.alloc_frames(100, UntypedFrameMeta()),
        Child(HONEST, name) as honest,
        Child(LEAKY, name, LEAKED) as leaky,
    ):

        def work():
            for child in (honest, leaky):
                child.go_on()
                assert child.hear() == "fetched"

        assert honest.hear() == leaky.hear() == "ready"
        work()
        # 1. Which arena, and whose frames grow?
        (used,) = re.findall(rf"^ {name} .*? MiB +([\d,]+) ", typed(ls), re.M)
        assert int(used) == mem.used_frames
        before = frames_of_clients(typed(stat))
        assert before.keys() == {os.getpid(), honest.pid, leaky.pid}
        work()
        after = frames_of_clients(typed(again))
        (pid,) = [pid for pid in after if after[pid] > before[pid]]
        # 2. Of which type?
        output = typed(frames, pid=(r"--held-by \d+", f"--held-by {pid}"))
        (found, kind) = re.search(r"frames: .*\n  ([\d,]+) (\S+)$", output, re.M).groups()
        # 3. Who holds one of them, and how?
        paddr = re.findall(rf"^ *(0x[0-9a-f]+) .*{kind}", output, re.M)[0]
        output = typed(holders, paddr=(r"0x[0-9a-f]+", paddr))
        assert re.findall(r"^ +(\d+) .+ alive +(\d+) +(\d+) +(\d+) ", output, re.M) == [
            (str(pid), "1", "0", "0")
        ]
        assert (pid, int(found), kind) == (leaky.pid, LEAKED, "__main__.PageMeta")
        # And which line allocated them? The process itself knows.
        leaky.go_on()
        assert leaky.hear() == f"1 {LEAKED}"  # the first line of fetch()
        leaky.finish()
        honest.go_on()
        honest.finish()
