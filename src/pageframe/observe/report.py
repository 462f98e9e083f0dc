# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What there is to know of an arena as tables for people: `ArenaStats`, by rich."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from pageframe.observe.frames import STATES
from pageframe.observe.tables import add_row, new_console, new_table
from pageframe.observe.words import age_text, counted, percent, shown, since, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from pageframe import ArenaStats, ArenaView

MESSAGES = 8  # in transit that are shown one by one


def report(stats: ArenaStats, title: str, created: float) -> Group:
    """Return the figures of an arena as rich prints them.

    Parameters
    ----------
    stats
        The figures.
    title
        What the arena is called.
    created
        When it was made.
    """
    parts: list[RenderableType] = [Text(title), arena_table(stats, created)]
    if stats.frames_by_state:
        parts.append(types_table(stats))
    if any(stats.free_runs):
        parts.append(free_runs_table(stats))
    if stats.clients:
        parts.append(clients_table(stats))
    if stats.tickets:
        parts.append(messages_table(stats))
    if (more := len(stats.tickets) - MESSAGES) > 0:
        parts.append(Text(f"… and {counted(more, 'message')} more"))
    return Group(*parts)


def arena_table(stats: ArenaStats, created: float) -> Table:
    """Return what there is of everything."""
    table = new_table("frames", f">{stats.total_frames:,}", f"of {size_text(stats.page_size)}")
    for name, frames in (
        ("free", stats.free_frames),
        ("used", stats.used_frames),
        ("reserved", stats.reserved_frames),
    ):
        share = percent(frames, stats.total_frames)
        add_row(table, name, frames, f"{share}, {size_text(frames * stats.page_size)}")
    raw = f"{stats.raw_references:,} of them raw ones of this process" if stats.raw_references else ""
    add_row(table, "references", stats.references, raw)
    run = stats.longest_free_run
    add_row(table, "longest free run", run, f"{size_text(run * stats.page_size)}")
    add_row(table, "fragmentation", f"{stats.fragmentation:.1%}", "of the free frames are not in that run")
    add_row(
        table,
        "overhead",
        percent(stats.overhead, stats.size),
        f"{size_text(stats.overhead)} of {size_text(stats.size)} for the arena's tables",
    )
    add_row(table, "age", age_text(since(created)), "")
    return table


def types_table(stats: ArenaStats) -> Table:
    """Return the used frames by type and state, the most frequent types first."""
    states = [state for state in STATES if state in stats.frames_by_state]
    table = new_table("frames by type", *[f">{state}" for state in states])
    names = dict.fromkeys(name for by_type in stats.frames_by_state.values() for name in by_type)

    def frames(name: str) -> int:
        return sum(by_type.get(name, 0) for by_type in stats.frames_by_state.values())

    for name in sorted(names, key=frames, reverse=True):
        add_row(table, shown(name), *[stats.frames_by_state[state].get(name, "") for state in states])
    return table


def free_runs_table(stats: ArenaStats) -> Table:
    """Return the free blocks by order, as far as there are any."""
    table = new_table("free blocks of", ">order", ">blocks", ">frames", ">useless for this order")
    for order, blocks in enumerate(stats.free_runs):
        if blocks:
            block, useless = size_text(stats.page_size << order), f"{stats.unusable(order):.1%}"
            add_row(table, block, order, blocks, blocks << order, useless)
    return table


def clients_table(stats: ArenaStats) -> Table:
    """Return who is attached."""
    table = new_table(">pid", "client", "=state", ">frames", ">memory", ">handles", ">mapped", ">sent")
    for client in stats.clients:
        add_row(
            table,
            str(client.pid),
            shown(client.name),
            "alive" if client.alive else "dead",
            client.frames,
            size_text(client.bytes),
            client.handles,
            client.mappings,
            client.tickets,
        )
    return table


def messages_table(stats: ArenaStats) -> Table:
    """Return the oldest messages in transit."""
    table = new_table(">message", ">pid", "sender", "=state", ">frames", ">age", ">expires in")
    for ticket in stats.tickets[:MESSAGES]:
        add_row(
            table,
            ticket.serial,
            str(ticket.pid),
            shown(ticket.name),
            ticket.state,
            ticket.frames,
            age_text(ticket.age),
            age_text(ticket.expires),
        )
    return table


def print_report(mem: ArenaView, file: IO[str] | None) -> None:
    """Print the figures of an arena; see `ArenaView.report`."""
    name = f" {shown(mem.name)}" if mem.name else ""
    title = f"Arena{name} of {size_text(mem.size)}" + (f", id {mem.id}" if mem.shared else "")
    new_console(file).print(report(mem.stats(), title, mem.created))
