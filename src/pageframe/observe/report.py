# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What there is to know of an arena as tables for people: `ArenaStats`, by rich."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pageframe.observe.arena_map import frames_text, printable, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pageframe import ArenaStats, ArenaView

MESSAGES = 10  # that are shown one by one
STATES = ("shared", "unique", "in a list", "busy", "orphan")


def report(stats: ArenaStats, name: str | None = None) -> Group:
    """Return the figures of an arena as rich prints them: those of a private one if it has no clients.

    Parameters
    ----------
    stats
        The figures.
    name
        What the arena is called.
    """
    title = f"Arena {printable(name)}" if name else "Arena"
    frames = f"{frames_text(stats.total_frames)} of {size_text(stats.page_size)}"
    head = Text(f"{title} of {size_text(stats.size)}: {frames}", style="bold")
    facts = Text(
        f"{stats.used_frames:,} used, {stats.free_frames:,} free, {stats.reserved_frames:,} reserved; "
        f"{stats.references:,} references, of which this process has {stats.raw_references:,} raw; "
        f"slots of {stats.slot_size} bytes, all tables {size_text(stats.overhead)}"
    )
    parts: list[RenderableType] = [head, facts, frames_table(stats), free_runs_table(stats)]
    if stats.clients:
        parts.append(clients_table(stats))
    if stats.tickets:
        parts.append(tickets_table(stats))
    return Group(*parts)


def new_table(title: str, *columns: str, names: int = 1) -> Table:
    """Return a table of figures, of which the first columns are names."""
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        if number < names:
            table.add_column(column, overflow="ellipsis", no_wrap=True)
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def shown_number(number: int) -> str:
    """Return a number for a table in which most are 0."""
    return f"{number:,}" if number else ""


def frames_table(stats: ArenaStats) -> Table:
    """Return the frames by type and state; those of the arena itself are in no state."""
    states = [state for state in STATES if state in stats.frames_by_state]
    table = new_table("Frames by type and state", "type", *states, "all", "bytes")
    types = dict.fromkeys([*stats.frames_by_type, *(t for s in states for t in stats.frames_by_state[s])])
    for name in types:
        by_state = [stats.frames_by_state[state].get(name, 0) for state in states]
        frames = max(sum(by_state), stats.frames_by_type.get(name, 0))
        table.add_row(
            Text(printable(name)),
            *map(shown_number, by_state),
            f"{frames:,}",
            size_text(frames * stats.page_size),
        )
    table.add_row(
        "free", *[""] * len(states), f"{stats.free_frames:,}", size_text(stats.free_frames * stats.page_size)
    )
    return table


def free_runs_table(stats: ArenaStats) -> Table:
    """Return the free blocks of each size, and what part of the free frames is of no use for such a block."""
    table = new_table(
        f"Free runs: the longest is {frames_text(stats.longest_free_run)}, "
        f"fragmentation {stats.fragmentation:.1%}",
        "order",
        "block",
        "free blocks",
        "frames",
        "unusable",
        names=0,
    )
    last = max((order for order, blocks in enumerate(stats.free_runs) if blocks), default=-1)
    for order, blocks in enumerate(stats.free_runs[: last + 1]):
        table.add_row(
            str(order),
            size_text(stats.page_size << order),
            f"{blocks:,}",
            f"{blocks << order:,}",
            f"{stats.unusable(order):.1%}",
        )
    return table


def clients_table(stats: ArenaStats) -> Table:
    """Return the processes that are attached."""
    table = new_table(
        "Clients", "program", "", "pid", "frames", "bytes", "handles", "mappings", "messages", names=2
    )
    for client in stats.clients:
        table.add_row(
            Text(printable(client.name)),
            "" if client.alive else "dead",
            str(client.pid),
            f"{client.frames:,}",
            size_text(client.bytes),
            f"{client.handles:,}",
            f"{client.mappings:,}",
            f"{client.tickets:,}",
        )
    return table


def tickets_table(stats: ArenaStats) -> Table:
    """Return the oldest messages in transit."""
    more = len(stats.tickets) - MESSAGES
    title = "Messages in transit" + (f", the oldest; {more:,} more" if more > 0 else "")
    table = new_table(title, "sender", "state", "pid", "first frame", "frames", "age", "expires in", names=2)
    for ticket in stats.tickets[:MESSAGES]:
        table.add_row(
            Text(printable(ticket.name)),
            ticket.state,
            str(ticket.pid),
            f"{ticket.paddr:#x}",
            f"{ticket.frames:,}",
            f"{ticket.age:.1f} s",
            f"{ticket.expires:.1f} s",
        )
    return table


def print_report(mem: ArenaView, file: IO[str] | None) -> None:
    """Print the figures of an arena; see `ArenaView.report`."""
    Console(file=file, highlight=False).print(report(mem.stats(), mem.name))
