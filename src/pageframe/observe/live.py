# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The live view: a full-screen picture of an arena that goes on meanwhile.

All looking is done by one thread, which the terminal never waits for.  After each look it rests
for the interval that was asked for, or as long as keeps the whole view below `SHARE` of a core,
whichever is longer; the screen says which.  On a large terminal all panes are there at once, on
a small one they take turns; columns of numbers come before names, so that what a narrow terminal
cuts off is the end of a name.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from rich.console import Group
from rich.text import Text
from textual.app import App
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, Static

from pageframe import BadArenaError, PageFrameError, TicketInfo
from pageframe.observe.arena_map import take_map
from pageframe.observe.frames import RESERVED, STATES, find_frames, frame_row, type_names
from pageframe.observe.rates import Rates, Sample, Sampler, rates
from pageframe.observe.terminal import MapText, row_cells
from pageframe.observe.words import age_text, counted, shown, size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual import events
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from pageframe import ArenaStats, ArenaView, ClientStats, FrameHolder
    from pageframe.observe.arena_map import By

T = TypeVar("T")
R = TypeVar("R")

SHARE = 0.1  # of a core that the view may take
INTERVALS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
KEPT = 200  # samples whose rates are remembered
ROWS = 256  # frames that a table shows
WIDE, HIGH = 120, 34  # columns and lines from which on all panes are shown at once
BLOCKS = "▁▂▃▄▅▆▇█"


# -- words ---------------------------------------------------------------------------------------


def change_text(change: int | None) -> str:
    """Return by how much a number has changed; nothing if that is not known."""
    return "" if change is None else f"{change:+,}" if change else "0"


def spark(values: Sequence[float], width: int) -> str:
    """Return the last values as a row of bars; the lowest bar is nothing at all."""
    shown = list(values)[-width:] if width > 0 else []
    most = max(shown, default=0)
    bars = (BLOCKS[1 + min(6, int(7 * value / most))] if value else BLOCKS[0] for value in shown)
    return "".join(bars).rjust(max(width, 0))


def short(name: str, width: int) -> str:
    """Return a name that takes no more than some columns."""
    name = shown(name)
    return name if len(name) <= width else name[: width - 1] + "…"


# -- tables --------------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column of a table: what it sorts by, what it shows.

    Attributes
    ----------
    title
        Heading.
    value
        What rows are sorted by; None if they can't be by this column.
    text
        What is shown of a row; the value itself if this is None.
    right
        Whether it is a number.
    """

    title: str
    value: Callable[[Any], Any] | None
    text: Callable[[Any], str] | None = None
    right: bool = True

    def cell(self, row: Any) -> Text:
        """Return what is shown of a row, one space from what is on its left."""
        value = row if self.value is None else self.value(row)
        text = self.text(row) if self.text else f"{value:,}" if isinstance(value, int) else str(value)
        return Text(f" {shown(text)}", justify="right" if self.right else "left", no_wrap=True)


class Table(DataTable[Text], Generic[T]):
    """Rows that are shown again and again, sorted by a column that can be chosen.

    Parameters
    ----------
    columns
        What is shown of a row.
    key
        What tells a row from the others.
    order
        Number of the column by which it is sorted at first, the largest on top.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "open", key_display="⏎"),
        Binding("s", "sort", "sort", key_display="s/S"),
        Binding("S", "turn", "turn", show=False),
    ]

    class Sorted(Message):
        """Another order is wanted."""

    def __init__(
        self,
        columns: Sequence[Column],
        key: Callable[[T], str],
        order: int,
        descending: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(cursor_type="row", cell_padding=0, **options)
        self.spec = tuple(columns)
        self.key_of = key
        self.order = order
        self.descending = descending
        self.shown: list[T] = []  # in the order of the screen
        self.heads: list[str] = []

    def show(self, rows: Sequence[T]) -> None:
        """Show these rows and no others; the cursor stays on its row if that is still there."""
        value = self.spec[self.order].value
        assert value is not None
        ordered = sorted(rows, key=value, reverse=self.descending)
        heads = [self.heading(number) for number in range(len(self.spec))]
        keys = [self.key_of(row) for row in ordered]
        if heads == self.heads and keys == [self.key_of(row) for row in self.shown]:
            for line, row in enumerate(ordered):
                for place, column in enumerate(self.spec):
                    cell = column.cell(row)
                    if cell != self.get_cell_at((line, place)):  # type: ignore[arg-type]
                        self.update_cell_at((line, place), cell, update_width=True)  # type: ignore[arg-type]
            self.shown = ordered
            return
        at = self.key_of(self.shown[self.cursor_row]) if self.cursor_row < len(self.shown) else None
        top = self.scroll_offset.y
        self.clear(columns=True)
        for column, head in zip(self.spec, heads, strict=True):
            self.add_column(Text(f" {head}", justify="right" if column.right else "left"))
        for row, key in zip(ordered, keys, strict=True):
            self.add_row(*(column.cell(row) for column in self.spec), key=key)
        self.shown, self.heads = ordered, heads
        if at in keys:
            self.scroll_to(y=top, animate=False)
            self.move_cursor(row=keys.index(at), animate=False)

    def heading(self, number: int) -> str:
        """Return the title of a column, with an arrow if it gives the order."""
        mark = "" if number != self.order else "▼" if self.descending else "▲"
        return self.spec[number].title + mark

    def action_sort(self) -> None:
        """Sort by the next column: numbers with the largest on top, names from A to Z."""
        places = [number for number, column in enumerate(self.spec) if column.value is not None]
        self.order = places[(places.index(self.order) + 1) % len(places)]
        self.descending = self.spec[self.order].right
        self.action_shown()

    def action_turn(self) -> None:
        """Sort the other way round."""
        self.descending = not self.descending
        self.action_shown()

    def action_shown(self) -> None:
        """Show the rows in the order that was chosen, and tell those who fetch them."""
        self.show(self.shown)
        self.post_message(self.Sorted())


class ClientRow(NamedTuple):
    """A client, and by how many frames its holding has changed."""

    key: str
    client: ClientStats
    change: int | None


class TypeRow(NamedTuple):
    """A metadata type: how many frames carry it, by state."""

    name: str
    frames: int
    change: int | None
    states: dict[str, int]


def client_rows(stats: ArenaStats, before: ArenaStats | None) -> list[ClientRow]:
    """Return the rows of the table of clients."""
    old = {} if before is None else {key: client.frames for key, client in keyed(before.clients)}
    return [
        ClientRow(key, client, client.frames - old[key] if key in old else None)
        for key, client in keyed(stats.clients)
    ]


def keyed(clients: Sequence[ClientStats]) -> list[tuple[str, ClientStats]]:
    """Return clients with what tells them apart; a process may be more than one."""
    seen: dict[tuple[int, float], int] = {}
    found = []
    for client in clients:
        process = client.pid, client.started
        seen[process] = seen.get(process, 0) + 1
        found.append((f"{client.pid} {client.started} {seen[process]}", client))
    return found


def type_rows(stats: ArenaStats, before: ArenaStats | None) -> list[TypeRow]:
    """Return the rows of the table of types."""

    def totals(stats: ArenaStats) -> dict[str, int]:
        found = dict(stats.frames_by_type)  # those of the arena itself, too
        for state in ("busy", "orphan"):
            for name, frames in stats.frames_by_state.get(state, {}).items():
                found[name] = found.get(name, 0) + frames
        return found

    now = totals(stats)
    old = {} if before is None else totals(before)
    return [
        TypeRow(
            name,
            now.get(name, 0),
            None if before is None else now.get(name, 0) - old.get(name, 0),
            {state: by_type.get(name, 0) for state, by_type in stats.frames_by_state.items()},
        )
        for name in now
    ]


CLIENTS = (
    Column("pid", lambda row: row.client.pid, lambda row: str(row.client.pid)),
    Column("is", lambda row: row.client.alive, lambda row: "alive" if row.client.alive else "DEAD", False),
    Column("frames", lambda row: row.client.frames),
    Column("change", lambda row: row.change or 0, lambda row: change_text(row.change)),
    Column("size", lambda row: row.client.bytes, lambda row: size_text(row.client.bytes)),
    Column("handles", lambda row: row.client.handles),
    Column("mapped", lambda row: row.client.mappings),
    Column("sent", lambda row: row.client.tickets),
    Column("program", lambda row: row.client.name, right=False),
)


def state_column(state: str) -> Column:
    """Return the column of the frames in a state."""
    return Column(state, lambda row: row.states.get(state, 0))


TYPES = (
    Column("frames", lambda row: row.frames),
    Column("change", lambda row: row.change or 0, lambda row: change_text(row.change)),
    *(state_column(state) for state in STATES[:RESERVED]),
    Column("type", lambda row: row.name, right=False),
)

MESSAGES = (
    Column("number", lambda row: row.serial, lambda row: str(row.serial)),
    Column("age", lambda row: row.age, lambda row: age_text(row.age)),
    Column(
        "expires", lambda row: row.expires, lambda row: age_text(row.expires) if row.expires > 0 else "due"
    ),
    Column("frames", lambda row: row.frames),
    Column("size", lambda row: row.bytes, lambda row: size_text(row.bytes)),
    Column("is", lambda row: row.state, right=False),
    Column("first", lambda row: row.paddr, lambda row: f"{row.paddr:#x}"),
    Column("pid", lambda row: row.pid, lambda row: str(row.pid)),
    Column("sender", lambda row: row.name, right=False),
)


@dataclass(frozen=True)
class FrameRow:
    """A frame."""

    paddr: int
    state: str
    type: str
    count: int
    generation: int
    references: int


FRAMES = (
    Column("paddr", lambda row: row.paddr, lambda row: f"{row.paddr:#x}"),
    Column("count", lambda row: row.count),
    Column("generation", lambda row: row.generation),
    Column("its references", None, lambda row: f"{row.references:,}" if row.references else ""),
    Column("is", None, lambda row: row.state, False),
    Column("type", lambda row: row.type, right=False),
)

HOLDERS = (
    Column("pid", lambda row: row.pid, lambda row: str(row.pid)),
    Column("handles", lambda row: row.handles),
    Column("mapped", lambda row: row.mappings),
    Column("sent", lambda row: row.tickets),
    Column(
        "started",
        lambda row: row.started,
        lambda row: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.started)),
    ),
    Column("program", lambda row: row.name, right=False),
)


# -- screens -------------------------------------------------------------------------------------


class MapPane(Static, can_focus=True):
    """The frames of the arena as a map."""


class Keys(Footer):
    """The keys at the bottom, also where the screen has told of them before this could hear it."""

    def on_mount(self) -> None:
        """Ask for them, as soon as it can be heard."""
        self.call_next(self.screen.refresh_bindings)


class LiveScreen(Screen[None]):
    """What all screens of the view have: the arena's state on top, keys at the bottom."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "app.quit", "quit"),
        Binding("space", "app.pause", "pause", key_display="space"),
        Binding("plus,equals_sign", "app.interval(1)", "interval", key_display="+/-"),
        Binding("minus", "app.interval(-1)", "interval", show=False),
        Binding("r", "app.look", "look now", show=False),
        Binding("m", "app.map_by", "map by", show=False),
        Binding("d", "app.toggle_dark", "dark or light", show=False),
        Binding("question_mark", "app.help", "help", key_display="?"),
    ]
    app: LiveApp

    def status(self) -> None:
        """Say what the view is doing."""
        self.query_one("#status", Static).update(self.app.status_text())

    def open(self, screen: DetailScreen) -> None:
        """Show a screen above this one, unless another has come first: Enter may be typed twice."""
        if self.app.screen is self:
            self.app.push_screen(screen)

    def fresh(self) -> None:
        """Show what was seen last."""
        raise NotImplementedError


class MainScreen(LiveScreen):
    """The arena as a whole."""

    PANES = ("map", "clients", "types", "messages")
    TITLES: ClassVar = {"map": "Map", "clients": "Clients", "types": "Types", "messages": "Messages"}

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "pane('map')", "pane", key_display="1-4"),
        Binding("2", "pane('clients')", "clients", show=False),
        Binding("3", "pane('types')", "types", show=False),
        Binding("4", "pane('messages')", "messages", show=False),
        Binding("tab", "turn_to(1)", "next pane", show=False),
        Binding("shift+tab", "turn_to(-1)", "pane before", show=False),
    ]

    active = "clients"

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static(id="head")
        yield Static(id="status")
        yield Static(id="rates")
        yield Static(id="tabs")
        with Horizontal(id="panes"):
            yield MapPane(id="map", classes="pane")
            with Vertical(id="tables"):
                yield Table[ClientRow](CLIENTS, lambda row: row.key, 2, id="clients", classes="pane")
                yield Table[TypeRow](TYPES, lambda row: row.name, 0, id="types", classes="pane")
                yield Table[TicketInfo](
                    MESSAGES, lambda row: str(row.serial), 1, id="messages", classes="pane"
                )
        yield Keys()

    def on_mount(self) -> None:
        """Begin to look, with the clients."""
        self.action_pane(self.active)
        self.status()
        self.run_worker(self.app.keep_looking())

    def on_resize(self, event: events.Resize) -> None:
        """Choose between all panes and one."""
        self.set_class(event.size.width < WIDE or event.size.height < HIGH, "narrow")
        self.call_after_refresh(self.resized)

    def resized(self) -> None:
        """Show what there is in the new size."""
        self.fresh()
        self.redraw_map()

    def redraw_map(self) -> None:
        """Have a map made if there is room for one of another size."""
        if self.map_size() not in ((0, 0), self.app.map_size):
            self.app.look_soon()

    def map_size(self) -> tuple[int, int]:
        """Return the columns and lines that there are for the map."""
        pane = self.query_one(MapPane)
        return (pane.content_size.width, pane.content_size.height) if pane.display else (0, 0)

    def action_pane(self, name: str) -> None:
        """Turn to a pane."""
        self.active = name
        for pane in self.PANES:
            self.query_one(f"#{pane}").set_class(pane == name, "active")
        self.set_class(name == "map", "map-active")
        self.set_focus(self.query_one(f"#{name}"))  # at once: a key typed already is for it
        self.titles()
        self.call_after_refresh(self.redraw_map)

    def action_turn_to(self, step: int) -> None:
        """Turn to the next pane, or the one before."""
        place = self.PANES.index(self.active) + step
        self.action_pane(self.PANES[place % len(self.PANES)])

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Make a pane that is clicked on the active one, unless another has been turned to since."""
        name = event.widget.id
        if event.widget is self.focused and name in self.PANES and name != self.active:
            self.action_pane(name)

    def titles(self) -> None:
        """Give the panes titles: a number, and how much there is in each."""
        seen = self.app.seen
        counts: dict[str, int] = {}
        if seen is not None:
            stats = seen.sample.stats
            counts = {
                "clients": len(stats.clients),
                "types": len(stats.frames_by_type),
                "messages": len(stats.tickets),
            }
        line = Text(no_wrap=True, overflow="ellipsis")
        for number, name in enumerate(self.PANES, 1):
            title = f"{number} {self.TITLES[name]}" + (f" {counts[name]:,}" if name in counts else "")
            pane = self.query_one(f"#{name}")
            pane.border_title = f"▶ {title}" if name == self.active else title
            line.append(
                f" ▶ {title} " if name == self.active else f"   {title} ",
                "reverse" if name == self.active else "",
            )
        self.query_one("#tabs", Static).update(line)

    def fresh(self) -> None:
        """Show what was seen last."""
        seen = self.app.seen
        if seen is None or not self.is_mounted:
            return
        stats, before = seen.sample.stats, seen.before
        self.query_one("#head", Static).update(self.app.head_text(stats))
        self.query_one("#rates", Static).update(self.rates_text(stats))
        self.query_one("#clients", Table).show(client_rows(stats, before))
        self.query_one("#types", Table).show(type_rows(stats, before))
        self.query_one("#messages", Table).show(stats.tickets)
        if seen.map is not None:
            self.query_one(MapPane).update(seen.map)
        self.titles()

    def rates_text(self, stats: ArenaStats) -> Text:
        """Return the rates, each with what it was before."""
        history = self.app.history
        text = Text(no_wrap=True, overflow="crop")
        lines = (
            ("allocated", "frames/s", [r.per_second(r.allocated) for r in history]),
            ("released", "frames/s", [r.per_second(r.released) for r in history]),
            (
                "messages",
                f"a second, {len(stats.tickets):,} in transit",
                [r.per_second(r.messages) for r in history],
            ),
        )
        width = self.size.width
        for number, (name, unit, values) in enumerate(lines):
            now = (
                f"{values[-1]:,.1f}"
                if values and values[-1] < 100
                else f"{values[-1]:,.0f}"
                if values
                else "…"
            )
            start = f" {name:10}{now:>13} {unit:26}"
            most = f" most {max(values):,.0f}" if values else ""
            text.append(start)
            text.append(spark(values, width - len(start) - 18), "bold")
            text.append(most + ("\n" if number < 2 else ""))
        return text

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Drill down."""
        table = event.data_table
        assert isinstance(table, Table)
        if event.cursor_row >= len(table.shown):
            return
        row = table.shown[event.cursor_row]
        if table.id == "clients":
            client = row.client
            self.open(
                FramesScreen(f"Frames that {client.pid} ({short(client.name, 30)}) holds", held_by=client.pid)
            )
        elif table.id == "types":
            self.open(FramesScreen(f"Frames of {short(row.name, 40)}", type=row.name))
        else:
            self.open(HoldersScreen(row.paddr))


class DetailScreen(LiveScreen):
    """A table that one can come back from."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace", "app.pop_screen", "back", key_display="esc")
    ]

    def __init__(self, title: str, table: Table[Any]) -> None:
        super().__init__()
        self.heading = title
        self.table = table

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static(Text(f" {self.heading}"), id="title")
        yield Static(id="status")
        yield self.table
        yield Keys()

    def on_mount(self) -> None:
        """Begin to look."""
        self.table.focus()
        self.status()
        self.fresh()

    def on_table_sorted(self) -> None:
        """Fetch the rows that come first now."""
        self.fresh()

    def fresh(self) -> None:
        """Fetch the rows anew."""
        self.run_worker(self.fetch(), exclusive=True)

    async def fetch(self) -> None:
        """Fetch the rows in the thread that looks, and show them."""
        found = await self.app.ask(self.rows)
        if found is not None and self.is_attached and self.app.is_running:
            title, rows = found
            self.query_one("#title", Static).update(Text(f" {title}", no_wrap=True, overflow="ellipsis"))
            self.table.show(rows)

    def rows(self) -> tuple[str, list[Any]]:
        """Return the title, and the rows."""
        raise NotImplementedError


class FramesScreen(DetailScreen):
    """The frames of a client or of a type."""

    table: Table[FrameRow]

    def __init__(self, title: str, **which: Any) -> None:
        super().__init__(title, Table[FrameRow](FRAMES, lambda row: f"{row.paddr:x}", 1, id="frames"))
        self.which = which

    def rows(self) -> tuple[str, list[FrameRow]]:
        """Return the frames that come first in the order of the table."""
        view = self.app.view
        names = type_names(view)
        try:
            found, by_type = find_frames(
                view,
                **self.which,
                sort=FRAMES[self.table.order].title,
                reverse=self.table.descending,
                limit=ROWS,
            )
        except BadArenaError:
            raise
        except ValueError:
            return f"{self.heading}: it has left", []
        total = sum(by_type.values())
        shown = f"{total:,}" if total <= ROWS else f"the first {ROWS} of {total:,}"
        return f"{self.heading}: {shown}", [
            FrameRow(paddr, STATES[state], names.get(number, "none"), count, generation, references)
            for paddr, state, number, count, generation, _, references in found.tolist()
        ]

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Show who holds a frame."""
        if event.cursor_row < len(self.table.shown):
            self.open(HoldersScreen(self.table.shown[event.cursor_row].paddr))


class HoldersScreen(DetailScreen):
    """Who holds a frame."""

    def __init__(self, paddr: int) -> None:
        table = Table[Any](HOLDERS, lambda row: f"{row.pid} {row.started}", 1, id="holders")
        super().__init__(f"Holders of frame {paddr:#x}", table)
        self.paddr = paddr

    def rows(self) -> tuple[str, list[FrameHolder]]:
        """Return the holders, and in the title what the frame is."""
        view = self.app.view
        _, state, number, count, generation, _, _ = frame_row(view, self.paddr)[0].tolist()
        name = type_names(view).get(number, "none")
        references = "1 reference" if count == 1 else f"{count:,} references"
        return (
            f"{self.heading}: {STATES[state]}, {references}, {name}, generation {generation:,}",
            view.holders(self.paddr),
        )


class HelpScreen(ModalScreen[None]):
    """What the keys do."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter,space", "app.pop_screen", "back", key_display="esc")
    ]
    TEXT = """\
1 2 3 4     map, clients, types, messages
tab         the next of them
↑ ↓         choose a row
enter       what it has: a client's or a type's frames,
            a frame's holders, a message's first frame
escape      back
s  S        sort by the next column; turn the order
← →         scroll a table that is too wide
space       pause, go on
+  -        longer or shorter interval
m           map by type, holder or state
r           look now
d           dark or light
q           quit

Allocated: lives of frames that began. Released: that ended.
▁ is nothing at all, █ the most that is shown in its row."""

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        box = Static(Text(self.TEXT), id="help")
        box.border_title = "Keys"
        yield box


# -- the application -----------------------------------------------------------------------------


class Seen(NamedTuple):
    """What a look at the arena has shown."""

    sample: Sample
    before: ArenaStats | None
    map: Group | None


class LiveApp(App[None]):
    """The live view of an arena.

    Parameters
    ----------
    view
        The arena.
    label
        What the user calls it.
    interval
        Seconds between two looks, at least.
    """

    TITLE = "pageframe top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head, #title { height: auto; text-style: bold; }
    #status { height: 1; }
    #rates { height: 3; }
    #tabs { height: 1; display: none; }
    #panes { height: 1fr; }
    #map { width: 1fr; height: 1fr; }
    #tables { width: 80; height: 1fr; }
    .pane { border: round $primary; }
    .pane:focus { border: heavy $accent; }
    Table { height: 1fr; scrollbar-size-vertical: 1; }
    .narrow #tabs { display: block; }
    .narrow .pane, .narrow .pane:focus { display: none; border: none; }
    .narrow .pane.active { display: block; }
    .narrow #tables { width: 1fr; }
    .narrow.map-active #tables { display: none; }
    HelpScreen { align: center middle; }
    #help { width: 66; height: auto; max-height: 100%; border: round $primary; padding: 0 1; }
    """

    def __init__(self, view: ArenaView, label: str, interval: float = 1.0) -> None:
        super().__init__()
        self.view = view
        self.label = label
        self.every = interval
        self.rest = interval  # until the next look, as it is now
        self.paused = False
        self.problem: str | None = None
        self.sampler = Sampler(view)
        self.thread = ThreadPoolExecutor(1, "look")
        self.seen: Seen | None = None
        self.looks = 0
        self.legend_lines = 1
        self.by: By = "type"
        self.map_size = (0, 0)
        self.history: deque[Rates] = deque(maxlen=KEPT)
        self.wake = asyncio.Event()
        self.main = MainScreen()

    def get_default_screen(self) -> MainScreen:
        """Return the first screen."""
        return self.main

    def on_unmount(self) -> None:
        """Wait for the thread, so that nobody looks at a view that is closed."""
        self.thread.shutdown(wait=True, cancel_futures=True)

    # -- looking ---------------------------------------------------------------------------------

    async def ask(self, work: Callable[[], R]) -> R | None:
        """Have the thread that looks do something; None if the arena can't be looked at any more."""

        def checked() -> R:
            self.sampler.check()
            return work()

        if self.problem is not None:
            return None
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, checked)
        except (PageFrameError, OSError) as error:
            self.lost(str(error))
            return None

    async def keep_looking(self) -> None:
        """Look, show it, rest; until the arena is gone."""
        while self.is_running:
            self.wake.clear()
            start, busy = time.monotonic(), time.process_time()
            self.map_size = self.main.map_size()
            looked = await self.ask(self.look)
            if looked is None or not self.is_running:
                return
            sample, drawn = looked
            before = self.seen
            if before is not None:
                self.history.append(rates(before.sample, sample))
            self.seen = Seen(sample, None if before is None else before.sample.stats, drawn)
            self.show()
            await self.shown()
            self.looks += 1
            cost = time.process_time() - busy
            self.rest = max(self.every, cost / SHARE)
            while not self.wake.is_set():
                left = start + self.rest - time.monotonic()
                try:
                    await asyncio.wait_for(self.wake.wait(), None if self.paused else max(left, 0.001))
                except TimeoutError:
                    break

    async def shown(self) -> None:
        """Wait until the screen has been drawn."""
        drawn = asyncio.Event()
        self.screen.call_after_refresh(drawn.set)
        await drawn.wait()

    def look(self) -> tuple[Sample, Group | None]:
        """Take a sample and draw the map; in the thread that looks."""
        sample = self.sampler.sample()
        return sample, self.draw_map(sample.stats, *self.map_size)

    def draw_map(self, stats: ArenaStats, width: int, height: int) -> Group | None:
        """Return the map in so many columns and lines; None if there is no room for it."""
        columns = row_cells(stats.size, width)
        while height > self.legend_lines + 1 and width > columns:
            arena = take_map(
                self.view, cells=columns * (height - self.legend_lines - 1), by=self.by, stats=stats
            )
            drawing = MapText(arena)
            legend = self.legend(drawing, width)
            lines = legend.plain.count("\n") + 1
            if lines <= self.legend_lines:
                row = columns * arena.frames_per_cell * stats.page_size
                where = f"by {self.by}; cell {counted(arena.frames_per_cell, 'frame')}, row {size_text(row)}"
                title = Text(f"{where}; hollow: under half", no_wrap=True, overflow="ellipsis")
                rows = (line for line in drawing.rows(columns, row, False) if isinstance(line, Text))
                return Group(title, legend, *rows)
            self.legend_lines = lines
        return None

    def legend(self, drawing: MapText, width: int) -> Text:
        """Return what the glyphs of a map mean, in lines of some width."""
        text, left = Text(), width
        for category, (full, _, style) in zip(drawing.arena.categories, drawing.glyphs(False), strict=True):
            entry = f" {category.label} {category.frames:,}   "
            if left < len(entry) - 2 and left < width:
                text.append("\n")
                left = width
            text.append(full, style)
            text.append(entry)
            left -= len(entry) + 1
        return text

    def lost(self, problem: str) -> None:
        """Say that there is nothing more to see."""
        self.problem = problem
        self.show()

    def show(self) -> None:
        """Show what was seen last on all screens."""
        for screen in self.screen_stack:
            if isinstance(screen, LiveScreen) and screen.is_mounted:
                screen.status()
        if self.problem is None:
            self.main.fresh()
            if isinstance(self.screen, DetailScreen) and self.screen.is_mounted:
                self.screen.fresh()

    def look_soon(self) -> None:
        """End the rest, unless it was asked for."""
        if not self.paused:
            self.wake.set()

    # -- words -----------------------------------------------------------------------------------

    def head_text(self, stats: ArenaStats) -> Text:
        """Return what the arena is, and how full."""
        part = stats.used_frames / stats.total_frames
        age = age_text(time.time() - self.view.created)
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f" {short(self.label, 30)}  {size_text(stats.size)}, ")
        text.append(f"{stats.total_frames:,} frames of {size_text(stats.page_size)}, age {age}\n")
        text.append(f" used {stats.used_frames:,} ({part:.1%})  free {stats.free_frames:,}  ")
        text.append(f"fragmentation {stats.fragmentation:.1%}")
        return text

    def status_text(self) -> Text:
        """Return what the view is doing, or why it does nothing any more."""
        text = Text(" ", no_wrap=True, overflow="ellipsis")
        if self.problem is not None:
            text.append(f" STOPPED: {self.problem} ", "reverse bold")
            return text
        if self.paused:
            text.append(" PAUSED ", "reverse bold")
            text.append(" ")
        text.append(f"every {self.rest:.1f} s")
        if self.rest > self.every * 1.05:
            text.append(f" (not {self.every:g} s, to take less than {SHARE:.0%} of a core)")
        if self.seen is not None:
            stats = self.seen.sample.stats
            dead = sum(not client.alive for client in stats.clients)
            if stats.free_frames == 0:
                text.append("  ")
                text.append(" FULL: no frame is free ", "reverse bold")
            if dead:
                text.append("  ")
                text.append(f" {dead} DEAD, not reaped ", "reverse bold")
        return text

    # -- keys ------------------------------------------------------------------------------------

    def action_pause(self) -> None:
        """Stop looking, or go on."""
        self.paused = not self.paused
        self.show_status()
        self.look_soon()

    def action_interval(self, step: int) -> None:
        """Look less often, or more often."""
        near = min(range(len(INTERVALS)), key=lambda i: abs(INTERVALS[i] - self.every))
        self.every = INTERVALS[min(max(near + step, 0), len(INTERVALS) - 1)]
        self.rest = self.every
        self.show_status()
        self.look_soon()

    def action_look(self) -> None:
        """Look now, even in a pause."""
        self.wake.set()

    def action_map_by(self) -> None:
        """Let the map tell apart something else."""
        kinds: tuple[By, ...] = ("type", "holder", "state")
        self.by = kinds[(kinds.index(self.by) + 1) % len(kinds)]
        self.wake.set()

    def action_toggle_dark(self) -> None:
        """Change between light and dark."""
        self.theme = "textual-light" if self.theme == "textual-dark" else "textual-dark"

    def action_help(self) -> None:
        """Show what the keys do."""
        self.push_screen(HelpScreen())

    def show_status(self) -> None:
        """Say what the view is doing."""
        if isinstance(self.screen, LiveScreen):
            self.screen.status()
