# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The live view, driven by textual's pilot; pictures of what it showed are left in build/top."""

import asyncio
import os
import pickle
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.events import Key
from typer.testing import CliRunner

from other_processes import TIMEOUT, Child, file_of, unique_name
from pageframe import ArenaGoneError, ArenaTruncatedError, ArenaView, Frame, PhysicalMemory
from pageframe.cli import app as command
from pageframe.observe.live import BLOCKS, LiveApp, change_text, short, spark
from pageframe.observe.rates import Sampler, rates
from pageframe.observe.words import age_text
from types_for_tests import Node, Page, Raw

PICTURES = Path(__file__).parents[1] / "build" / "top"
SMALL, LARGE = (80, 24), (140, 45)
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "140x45"])
NEVER = 3600.0  # an interval: a test looks when it wants to
HOPS = 10  # messages from widget to widget that a key takes, at most

# A client that holds 40 frames of one type and a segment of 8, with one frame more than once.
HOLDER = """
    class Held(UntypedFrameMeta):
        number: u64

    mem = PhysicalMemory.attach(NAME)
    held = [mem.alloc_frame(Held(number=i)) for i in range(40)]
    more = [held[7].clone() for _ in range(5)]
    segment = mem.alloc_segment(8)
    tell(held[7].start_paddr)
    wait()
"""

# A client that allocates, releases and sends so much each time that it is told to.
WORKER = """
    import pickle
    mem = PhysicalMemory.attach(NAME)
    kept, sent, often = [], [], mem.alloc_frame()
    while True:
        allocated, released, messages = map(int, sys.stdin.readline().split())
        frames = [mem.alloc_frame() for _ in range(allocated)]
        kept += frames
        del frames
        kept = kept[released:]
        sent += [pickle.dumps(often) for _ in range(messages)]
        tell("done")
"""


class Watched:
    """A live view in a terminal that is not there, and a test's words for using it."""

    def __init__(self, app):
        self.app, self.pilot = app, None
        self.begun = 0  # looks at the arena
        self.ask, app.ask = app.ask, self.counted

    async def counted(self, work):
        """Ask the thread that looks, and count its looks at the arena as a whole."""
        self.begun += work == self.app.look
        return await self.ask(work)

    def rests(self):
        """Return whether all has been shown, and no look is to come."""
        app = self.app
        return (
            app.looks == self.begun > 0
            and not app.wake.is_set()
            and app.main.map_size() in ((0, 0), app.map_size)
        )

    async def until(self, condition):
        """Wait until something is true, and still is when what is under way has been done."""
        end = time.monotonic() + TIMEOUT
        while True:
            if condition():
                await self.settle()
                if condition():
                    return
            assert self.app._exception is None
            assert time.monotonic() < end, f"it never came true; the screen shows\n{self.text()}"
            await self.pilot.pause(0.01)

    async def shows(self, words):
        """Wait until the screen shows some words."""
        await self.until(lambda: words in self.text())

    async def settle(self):
        """Wait until a key has gone from the application to a widget, back up to it, and done its work."""
        for _ in range(HOPS):
            await self.pilot.pause(0)

    async def look(self):
        """Have the view look again, and wait until that is shown; not what an older look has seen."""
        begun = self.begun
        await self.pilot.press("r")
        await self.until(lambda: self.app.looks > begun or self.app.problem)

    async def press(self, *keys):
        """Press keys, each when the one before has done its work."""
        for key in keys:
            await self.pilot.press(key)
            await self.settle()

    def type_ahead(self, *keys):
        """Press keys faster than the view can follow."""
        for key in keys:
            event = Key(key, key if len(key) == 1 else None)
            event.set_sender(self.app)
            self.app._driver.send_message(event)

    def text(self):
        """Return what the screen shows, line by line."""
        lines = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in line) for line in lines)

    def rows(self, name):
        """Return the rows of a table as they are shown: lists of words."""
        table = self.app.screen.query_one(f"#{name}")
        return [[cell.plain.strip() for cell in table.get_row_at(i)] for i in range(table.row_count)]

    def heads(self, name):
        """Return the headings of a table."""
        return [
            column.label.plain.strip() for column in self.app.screen.query_one(f"#{name}").ordered_columns
        ]

    def picture(self, name):
        """Leave a picture of the screen."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        columns, lines = self.app.size
        (PICTURES / f"{name}-{columns}x{lines}.svg").write_text(self.app.export_screenshot())


@asynccontextmanager
async def watched(name, size=SMALL, interval=NEVER):
    """Watch an arena; it has been looked at in the size of the screen."""
    with ArenaView(name) as view:
        app = LiveApp(view, name, interval)
        watch = Watched(app)
        async with app.run_test(size=size) as watch.pilot:
            await watch.until(lambda: watch.rests() or interval < NEVER)
            yield watch


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    """Let textual's pilot take no process for idle that only gets little of a busy processor."""

    async def turn(*_):
        await asyncio.sleep(0)

    monkeypatch.setattr("textual.app.wait_for_idle", turn)
    monkeypatch.setattr("textual.pilot.wait_for_idle", turn)


@pytest.fixture
def name():
    with unique_name() as name:
        yield name


@pytest.fixture
def mem(name):
    with PhysicalMemory.create("4 MiB", name) as mem:
        yield mem


# -- rates ---------------------------------------------------------------------------------------


def test_rates_are_what_a_process_did(name, mem):
    with ArenaView(name) as view, Child(WORKER, name) as child:

        def work(*numbers):
            child.process.stdin.write(" ".join(map(str, numbers)) + "\n")
            child.process.stdin.flush()
            assert child.hear() == "done"

        sampler = Sampler(view)
        work(10, 0, 0)
        before = sampler.sample()
        for allocated, released, messages in [(30, 0, 0), (0, 25, 0), (100, 90, 7), (0, 0, 0), (700, 700, 3)]:
            work(allocated, released, messages)
            after = sampler.sample()
            found = rates(before, after)
            assert (found.allocated, found.released, found.messages) == (allocated, released, messages)
            assert found.per_second(found.released) == pytest.approx(released / found.seconds)
            assert found.seconds > 0
            before = after
        assert before.stats.messages == len(before.stats.tickets) == 10


def test_another_life_of_a_frame_is_an_end_and_a_beginning(name, mem):
    with ArenaView(name) as view:
        sampler = Sampler(view)
        unique = mem.alloc_frame(Node()).try_unique()
        before = sampler.sample()
        unique = unique.repurpose(Raw())
        found = rates(before, sampler.sample())
        assert (found.allocated, found.released) == (1, 1)
        unique.drop()


def test_messages_count_all_that_were_made(name, mem):
    with ArenaView(name) as view, mem.alloc_frame() as frame:
        assert view.stats().messages == mem.stats().messages == 0
        pickle.loads(pickle.dumps(frame)).drop()
        waiting = pickle.dumps(frame)
        assert view.stats().messages == mem.stats().messages == 2
        assert len(view.stats().tickets) == 1
        pickle.loads(waiting).drop()
    with PhysicalMemory("1 MiB") as private:
        assert private.stats().messages == 0


def test_a_sampler_notices_that_its_arena_is_gone_replaced_or_cut(name):
    with PhysicalMemory.create("1 MiB", name):
        view = ArenaView(name)
        sampler = Sampler(view)
        sampler.check()
    with pytest.raises(ArenaGoneError, match="there is no"):
        sampler.check()
    with PhysicalMemory.create("1 MiB", name), pytest.raises(ArenaGoneError, match="another one"):
        sampler.check()
    view.close()
    with PhysicalMemory.create("1 MiB", name, unlink_on_last=False):
        pass
    with ArenaView(name) as view:
        sampler = Sampler(view)
        os.truncate(file_of(name), 1 << 20)
        with pytest.raises(ArenaTruncatedError, match="was truncated"):
            sampler.check()


def test_a_sampler_notices_that_an_arena_without_a_name_has_no_process(name):
    with PhysicalMemory.create("1 MiB") as mem:
        view = ArenaView(id=mem.id)
        sampler = Sampler(view)
        sampler.check()
    with view, pytest.raises(ArenaGoneError, match="its last process has left"):
        sampler.check()


# -- the screen ----------------------------------------------------------------------------------


@SIZES
def test_numbers_on_the_screen_are_those_of_the_arena(name, mem, size):
    async def use():
        async with watched(name, size) as watch:
            stats = mem.stats()
            await watch.shows(f"used {stats.used_frames:,} (")
            await watch.shows(f"free {stats.free_frames:,} ")
            await watch.shows(f"fragmentation {stats.fragmentation:.1%}")
            await watch.shows(f"4 MiB, {stats.total_frames:,} frames of 4 KiB")
            await watch.shows(f"{len(stats.tickets)} in transit")
            for pane, key in (("clients", "2"), ("types", "3"), ("messages", "4"), ("map", "1")):
                await watch.press(key)
                if pane == "map":
                    await watch.shows("cell ")
                    await watch.press("m")
                    await watch.shows("by holder")
                    watch.picture("map-by-holder")
                    await watch.shows(f"pid {os.getpid()} 23")
                    await watch.press("m")
                    await watch.shows("by state")
                watch.picture(pane)
                for row in [] if pane == "map" else watch.rows(pane):
                    for word in row:
                        await watch.shows(word)
            for label, frames in (("shared", stats.shared_frames), ("unique", stats.unique_frames)):
                await watch.shows(f"{label} {frames:,}")
            clients = {row[0]: row[1:3] + row[4:8] for row in watch.rows("clients")}
            assert clients == {
                str(c.pid): [
                    "alive", f"{c.frames:,}", f"{c.bytes // 1024} KiB", f"{c.handles:,}", f"{c.mappings:,}",
                    f"{c.tickets:,}",
                ]
                for c in stats.clients
            }  # fmt: skip
            types = {row[-1]: row[0] for row in watch.rows("types")}
            assert types == {kind: f"{frames:,}" for kind, frames in stats.frames_by_type.items()}
            shown = {row[-1]: row[2:7] for row in watch.rows("types")}
            for kind, states in shown.items():
                assert states == [
                    str(stats.frames_by_state.get(state, {}).get(kind, 0))
                    for state in ("shared", "unique", "in a list", "busy", "orphan")
                ]
            assert [row[0] for row in watch.rows("messages")] == [str(t.serial) for t in stats.tickets]

    pages = [mem.alloc_frame(Page()) for _ in range(20)]
    unique = [mem.alloc_frame(Node()).try_unique() for _ in range(3)]
    sent = [pickle.dumps(pages[0]), pickle.dumps(pages[1])]
    with Child(HOLDER, name) as child:
        child.hear()
        asyncio.run(use())
    for message in sent:
        pickle.loads(message)
    del pages, unique


def test_all_panes_are_there_at_once_if_there_is_room_and_take_turns_if_not(name, mem):
    async def use():
        async with watched(name, LARGE) as watch:
            panes = ("map", "clients", "types", "messages")

            def there():
                return [pane for pane in panes if watch.app.screen.query_one(f"#{pane}").region.area]

            assert there() == list(panes)
            await watch.pilot.resize_terminal(*SMALL)
            await watch.until(lambda: there() == ["clients"])
            for _ in range(4):
                await watch.press("tab")
                await watch.until(lambda: len(there()) == 1)
                await watch.shows(f"▶ {1 + panes.index(there()[0])} {there()[0].title()}")
            await watch.press("shift+tab", "shift+tab")
            await watch.until(lambda: there() == ["messages"])
            await watch.pilot.resize_terminal(*LARGE)
            await watch.until(lambda: there() == list(panes))

    asyncio.run(use())


@SIZES
def test_keys_are_at_the_bottom_and_explained(name, mem, size):
    async def use():
        async with watched(name, size) as watch:
            words = ("quit", "sort", "open", "pause", "interval", "help", "1-4 pane")
            await watch.until(lambda: all(word in watch.text().splitlines()[-1] for word in words))
            await watch.press("question_mark")
            await watch.shows("turn the order")
            watch.picture("help")
            await watch.press("escape")
            await watch.until(lambda: "turn the order" not in watch.text())
            await watch.press("d")
            assert watch.app.theme == "textual-light"
            watch.picture("light")
            await watch.press("q")
        assert not watch.app.is_running

    asyncio.run(use())


def test_any_column_can_give_the_order(name, mem):
    frames = [mem.alloc_frame(kind()) for kind in (Page, Page, Page, Node, Raw, Raw)]

    async def use():
        async with watched(name) as watch:
            await watch.press("3")
            assert watch.heads("types")[0] == "frames▼"
            numbers = [int(row[0]) for row in watch.rows("types")]
            assert numbers == sorted(numbers, reverse=True)
            await watch.press("S")
            assert watch.heads("types")[0] == "frames▲"
            assert [int(row[0]) for row in watch.rows("types")] == numbers[::-1]
            for place in range(1, 8):
                await watch.press("s")
                await watch.until(lambda place=place: watch.heads("types")[place][-1] in "▲▼")
            assert watch.heads("types")[-1] == "type▲"
            names = [row[-1] for row in watch.rows("types")]
            assert names == sorted(names)
            assert len(names) == 4
            await watch.press("S")
            assert [row[-1] for row in watch.rows("types")] == names[::-1]
            await watch.look()
            assert [row[-1] for row in watch.rows("types")] == names[::-1]

    asyncio.run(use())
    del frames


def test_the_cursor_stays_on_its_row_when_others_come(name, mem):
    frames = [mem.alloc_frame(Page()) for _ in range(4)] + [mem.alloc_frame(Node()) for _ in range(2)]

    async def use():
        async with watched(name) as watch:
            await watch.press("3", "down", "down")
            table = watch.app.screen.query_one("#types")
            assert table.shown[table.cursor_row].name.endswith("Node")
            frames.extend(mem.alloc_frame(Raw()) for _ in range(3))
            await watch.look()
            assert [row[-1].rpartition(".")[2] for row in watch.rows("types")][1:] == ["Page", "Raw", "Node"]
            assert table.shown[table.cursor_row].name.endswith("Node")
            frames.extend(mem.alloc_frame(Node()) for _ in range(50))
            await watch.look()
            assert table.shown[table.cursor_row].name.endswith("Node")
            assert {row[-1].rpartition(".")[2]: row[1] for row in watch.rows("types")}["Node"] == "+50"

    asyncio.run(use())
    frames.clear()


@SIZES
def test_keys_typed_ahead_go_to_the_pane_that_was_turned_to(name, mem, size):
    frames = [mem.alloc_frame(Page()) for _ in range(2)] + [mem.alloc_frame(Node())]

    async def use():
        async with watched(name, size) as watch:
            types = watch.app.screen.query_one("#types")
            watch.type_ahead("3", "down", "down")
            await watch.until(lambda: types.cursor_row == 2)
            watch.type_ahead("1", "tab", "tab", "up")
            await watch.until(lambda: types.cursor_row == 1)
            watch.type_ahead("4", "shift+tab", "up", "2", "down")
            await watch.until(lambda: types.cursor_row == 0)
            assert watch.app.screen.active == "clients"

    asyncio.run(use())
    frames.clear()


@pytest.mark.parametrize("keys", ["2", "3 down", "4"])
def test_enter_typed_twice_opens_what_a_row_has_once(name, mem, keys):
    frame = mem.alloc_frame(Page())
    message = pickle.dumps(frame)

    async def use():
        async with watched(name) as watch:
            await watch.press(*keys.split())
            watch.type_ahead("enter", "enter")
            await watch.until(lambda: len(watch.app.screen_stack) > 1 and watch.app.screen.table.shown)
            assert len(watch.app.screen_stack) == 2
            if watch.app.screen.query("#frames"):
                watch.type_ahead("enter", "enter")
                await watch.until(lambda: watch.app.screen.query("#holders"))
                assert len(watch.app.screen_stack) == 3

    asyncio.run(use())
    pickle.loads(message).drop()
    frame.drop()


@SIZES
def test_one_can_go_down_from_a_client_to_its_frames_and_their_holders_and_back(name, mem, size):
    async def use(paddr, pid):
        async with watched(name, size) as watch:
            assert watch.rows("clients")[0][0] == str(pid)
            await watch.press("enter")
            await watch.until(lambda: watch.app.screen.query("#frames") and watch.rows("frames"))
            rows = watch.rows("frames")
            assert len(rows) == 48
            assert rows[0] == [f"{paddr:#x}", "7", "0", "6", "shared", "__main__.Held"]
            assert {row[1] for row in rows[1:]} == {"1"}
            await watch.shows(f"Frames that {pid} (")
            await watch.shows("holds: 48")
            watch.picture("frames")
            await watch.press("enter")
            await watch.until(lambda: watch.app.screen.query("#holders") and watch.rows("holders"))
            await watch.shows(f"Holders of frame {paddr:#x}: shared, 7 references, __main__.Held")
            assert [row[:4] for row in watch.rows("holders")] == [
                [str(pid), "6", "0", "0"],
                [str(os.getpid()), "1", "0", "0"],
            ]
            watch.picture("holders")
            await watch.press("escape")
            await watch.until(lambda: watch.app.screen.query("#frames"))
            await watch.press("escape")
            await watch.until(lambda: watch.app.screen.query("#clients"))

    with Child(HOLDER, name) as child:
        paddr = int(child.hear())
        with Frame.from_in_use(mem, paddr):
            asyncio.run(use(paddr, child.pid))


def test_one_can_go_down_from_a_type_and_from_a_message(name, mem):
    frames = [mem.alloc_frame(Page()) for _ in range(300)]
    held = frames[5].clone()
    message = pickle.dumps(frames[9])

    async def use():
        async with watched(name) as watch:
            await watch.press("3")
            types = [row[-1] for row in watch.rows("types")]
            await watch.press(*["down"] * types.index("types_for_tests.Page"), "enter")
            await watch.until(lambda: watch.app.screen.query("#frames") and watch.rows("frames"))
            await watch.shows("Frames of types_for_tests.Page: the first 256 of 300")
            assert [row[:2] for row in watch.rows("frames")][:3] == [
                [f"{frames[5].start_paddr:#x}", "2"],
                [f"{frames[9].start_paddr:#x}", "2"],
                [f"{frames[0].start_paddr:#x}", "1"],
            ]
            await watch.press("s", "s", "s")  # generation, type, paddr
            assert watch.heads("frames")[0] == "paddr▼"
            last = max(frame.start_paddr for frame in frames)
            await watch.until(lambda: watch.rows("frames")[0][0] == f"{last:#x}")
            await watch.press("escape", "4", "enter")
            await watch.until(lambda: watch.app.screen.query("#holders") and watch.rows("holders"))
            await watch.shows(f"Holders of frame {frames[9].start_paddr:#x}: shared, 2 references")
            assert watch.rows("holders")[0][1:4] == ["1", "0", "1"]

    asyncio.run(use())
    pickle.loads(message)
    held.drop()
    frames.clear()


def test_rates_are_shown_with_what_was_before(name, mem):
    async def use():
        async with watched(name) as watch:
            frames = [mem.alloc_frame() for _ in range(500)]
            del frames[100:]
            await watch.look()
            seen = watch.app.history[-1]
            assert (seen.allocated, seen.released) == (500, 400)
            most = (
                f"{seen.per_second(500):,.1f}"
                if seen.per_second(500) < 100
                else f"{seen.per_second(500):,.0f}"
            )
            line = next(line for line in watch.text().splitlines() if "allocated" in line)
            assert most in line
            assert BLOCKS[-1] in line
            await watch.look()
            assert watch.app.history[-1].released == 0
            line = next(line for line in watch.text().splitlines() if "released" in line)
            assert BLOCKS[-1] + BLOCKS[0] in line
            watch.picture("rates")
            frames.clear()

    asyncio.run(use())


def test_pause_interval_and_going_on(name, mem):
    async def use():
        async with watched(name, interval=0.1) as watch:
            await watch.until(lambda: watch.app.looks > 2)
            await watch.press("space")
            await watch.shows("PAUSED")
            await watch.look()
            looks = watch.app.looks
            await watch.pilot.pause(0.5)
            assert watch.app.looks == looks
            await watch.look()
            assert watch.app.looks == looks + 1
            await watch.press("space")
            await watch.until(lambda: "PAUSED" not in watch.text())
            await watch.until(lambda: watch.app.looks > looks + 2)
            await watch.press("plus")
            assert watch.app.every == 0.2
            await watch.press("minus", "minus", "minus")
            assert watch.app.every == 0.1

    asyncio.run(use())


# -- what goes wrong meanwhile -------------------------------------------------------------------


@SIZES
def test_a_client_that_is_killed_is_shown_as_dead_until_it_is_reaped(name, mem, size):
    async def use(child):
        async with watched(name, size) as watch:
            await watch.press("enter")
            await watch.until(lambda: watch.app.screen.query("#frames") and watch.rows("frames"))
            child.kill()
            await watch.look()
            await watch.shows("1 DEAD, not reaped")
            await watch.press("escape")
            assert {row[0]: row[1] for row in watch.rows("clients")} == {
                str(child.pid): "DEAD",
                str(os.getpid()): "alive",
            }
            watch.picture("dead-client")
            await watch.press("enter")
            await watch.until(lambda: watch.app.screen.query("#frames") and watch.rows("frames"))
            mem.reap()
            await watch.look()
            await watch.shows("it has left")
            assert watch.rows("frames") == []
            await watch.press("escape")
            await watch.until(lambda: "DEAD" not in watch.text())
            assert [row[0] for row in watch.rows("clients")] == [str(os.getpid())]

    with Child(HOLDER, name) as child:
        child.hear()
        asyncio.run(use(child))


@SIZES
def test_an_arena_that_goes_away_is_said_to_be_gone(name, size):
    async def use(child):
        async with watched(name, size) as watch:
            await watch.press("enter")
            await watch.until(lambda: watch.app.screen.query("#frames"))
            child.go_on()
            child.finish()
            await watch.look()
            await watch.shows("STOPPED: the arena is gone: there is no")
            await watch.press("escape")
            await watch.shows("STOPPED: the arena is gone")
            assert watch.rows("clients")[0][0] == str(child.pid)
            watch.picture("gone")
            await watch.press("r", "1", "enter", "2", "enter", "enter")
            await watch.shows("STOPPED: the arena is gone")
            await watch.press("q")

    script = """
        mem = PhysicalMemory.create("1 MiB", NAME)
        frame = mem.alloc_frame()
        tell()
        wait()
        frame.drop()
        mem.close()
    """
    with Child(script, name) as child:
        child.hear()
        asyncio.run(use(child))


def test_an_arena_that_is_damaged_or_cut_is_said_to_be(name):
    async def use():
        async with watched(name) as watch:
            with file_of(name).open("r+b") as file:
                file.seek(256)  # how many types there are
                file.write((1000).to_bytes(4, "little"))
            await watch.look()
            await watch.shows("STOPPED: the arena says that it has 1000 types")
        with file_of(name).open("r+b") as file:
            file.seek(256)
            file.write((6).to_bytes(4, "little"))
        async with watched(name) as watch:
            os.truncate(file_of(name), 4096)
            await watch.look()
            await watch.shows("STOPPED: ")
            assert "was truncated" in watch.app.problem

    with PhysicalMemory.create("1 MiB", name, unlink_on_last=False):
        pass
    asyncio.run(use())


def test_a_full_arena_says_so(name, mem):
    frames = mem.alloc_frames(mem.free_frames)

    async def use():
        async with watched(name) as watch:
            await watch.shows("FULL: no frame is free")
            await watch.shows(f"({mem.used_frames / mem.total_frames:.1%})")

    asyncio.run(use())
    frames.drop()


def test_looking_takes_no_place_and_changes_no_count(name, mem):
    frames = [mem.alloc_frame() for _ in range(10)]
    counts = mem.slots["count"].copy()

    async def use():
        async with watched(name) as watch:
            await watch.press("enter")
            await watch.look()
            assert len(mem.clients) == 1

    asyncio.run(use())
    assert (mem.slots["count"] == counts).all()
    del counts, frames


# -- the command ---------------------------------------------------------------------------------


def test_without_a_terminal_the_command_says_so(name, mem):
    result = subprocess.run(
        [sys.executable, "-m", "pageframe.cli", "top", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr == "pageframe: error: top needs a terminal: 'pageframe stat' prints the figures once\n"
    )


def test_without_textual_the_command_says_what_to_install(name, mem, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(command, ["top", name])
    assert result.exit_code == 2
    assert "pip install 'pageframe[top]'" in result.output


# -- words ---------------------------------------------------------------------------------------


def test_times_changes_names_and_bars_are_short():
    assert [age_text(s) for s in (-1, 0, 9.96, 10, 61, 3600, 90061)] == [
        "0.0 s", "0.0 s", "10.0 s", "10 s", "1 min 1 s", "1 h 0 min", "1 d 1 h",
    ]  # fmt: skip
    assert [change_text(n) for n in (None, 0, 5, -1234)] == ["", "0", "+5", "-1,234"]
    assert spark([0, 1, 7, 0, 3.5], 5) == "▁▃█▁▅"
    assert spark([5], 3) == "  █"
    assert spark([], 2) == "  "
    assert spark([1], 0) == ""
    assert (short("abc", 3), short("abcd", 3), short("a\n", 9)) == ("abc", "ab…", r"'a\n'")
