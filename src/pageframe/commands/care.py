# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""`pageframe reap`, `audit`, `trim` and `rm`: putting arenas right, and removing them.

What changes an arena is done by a client, so these attach for a moment; an arena that should
have gone with its last client goes when they leave.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pageframe import ArenaDamagedError, ArenaView, BadArenaError, PhysicalMemory
from pageframe.commands.common import (
    ArenaName,
    Json,
    attach,
    damaged,
    fail,
    open_view,
    print_json,
    reason,
)
from pageframe.observe.tables import add_row, new_console, new_table, say
from pageframe.observe.words import counted, shown

if TYPE_CHECKING:
    from rich.console import Console

    from pageframe import AuditReport, ReapReport

SHOWN = 20  # frames that an audit lists for a person


# -- reap, audit, trim -------------------------------------------------------------------------


def reap(arena: ArenaName, as_json: Json = False) -> None:
    """Take back what dead processes held, and messages that have expired.

    An arena that should have gone with its last client goes when this leaves it.
    """
    with attach(arena) as mem:
        try:
            report = mem.reap()
        except ArenaDamagedError as error:
            damaged(arena, error)
    if as_json:
        print_json(report)
        return
    console = new_console()
    if not (report.clients or report.tickets or report.adopted):
        say(console, "nothing to take back")
    else:
        print_reaped(console, report)
    if mem.path is not None and not mem.path.exists():
        say(console, "the arena is gone: it was to go with its last client")


def print_reaped(console: Console, report: ReapReport) -> None:
    """Print what was taken back."""
    table = new_table("taken back", ">")
    for client in report.clients:
        add_row(table, f"process {client.pid}, {shown(client.name)}", "dead")
    add_row(table, "references", report.references)
    add_row(table, "frames whose life ended", report.frames)
    for name, frames in report.frames_by_type.items():
        add_row(table, f"  {shown(name)}", frames)
    for name, times in (
        ("messages that nobody loaded", report.tickets),
        ("frames that wait for a process to run their on_drop", report.orphans),
        ("frames that may be held still: see pageframe audit", report.in_doubt),
    ):
        if times:
            add_row(table, name, times)
    console.print(table)


def audit(
    arena: ArenaName,
    repair: Annotated[bool, typer.Option("--repair", help="Reap, and let go of what nobody holds.")] = False,
    as_json: Json = False,
) -> None:
    """Compare the counts of all frames with all their holders.

    With --repair what is wrong is put right, unless a process works in the
    arena meanwhile; an arena that should have gone with its last client goes
    then. The exit code is 1 if anything was found, repaired or not.
    """
    try:
        if repair:
            with attach(arena) as mem:
                report = mem.audit(repair=True)
        else:
            with open_view(arena) as view:
                report = view.audit()
    except ArenaDamagedError as error:
        damaged(arena, error)
    if as_json:
        print_json({**dataclasses.asdict(report), "clean": report.clean})
    else:
        print_audit(new_console(), report, repair)
    if not report.clean:
        raise typer.Exit(1)


def print_audit(console: Console, report: AuditReport, repair: bool) -> None:
    """Print what an audit found."""
    table = new_table("looked at", ">")
    add_row(table, "frames", report.frames)
    add_row(table, "clients", len(report.clients))
    add_row(table, "messages in transit", report.tickets)
    if report.orphans:
        add_row(table, "frames that wait for a process to run their on_drop", report.orphans)
    if report.busy:
        add_row(table, "frames that somebody works on: not judged", report.busy)
    console.print(table)
    for paddrs, what in (
        (report.leaked, "not free, though nobody holds them"),
        (report.miscounted, "with a count of more than their holders have"),
        (report.damaged, "whose count, bit and holders no crash can bring about"),
    ):
        if paddrs:
            say(console, f"{counted(len(paddrs), 'frame')} {what}:")
            for paddr in paddrs[:SHOWN]:
                say(console, f"  {paddr:#x}")
            if len(paddrs) > SHOWN:
                say(console, f"  … and {len(paddrs) - SHOWN:,} more")
    if report.frames_by_type:
        types = ", ".join(f"{frames:,} {shown(name)}" for name, frames in report.frames_by_type.items())
        say(console, f"types of the leaked frames: {types}")
    if report.clean:
        say(console, "nothing is wrong")
    elif report.repaired:
        say(console, "repaired")
    elif repair:
        say(console, "nothing was repaired: processes work in the arena")
    if not report.quiet:
        say(console, "processes worked in the arena meanwhile: what they worked on may look damaged")


def trim(arena: ArenaName, as_json: Json = False) -> None:
    """Give the memory of free frames back to the system.

    That of a named arena is set aside for it, and stays.
    """
    with attach(arena) as mem:
        frames, page_size = mem.trim(), mem.page_size
    if as_json:
        print_json({"frames": frames, "bytes": frames * page_size})
    else:
        typer.echo(f"{counted(frames, 'frame')}, {counted(frames * page_size, 'byte')} given back")
        if mem.path is not None:
            typer.echo("the memory of an arena in a file is set aside for it, and stays")


# -- rm ----------------------------------------------------------------------------------------


def rm(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME…", help="Names of arenas, or paths.", show_default=False),
    ] = None,
    stale: Annotated[bool, typer.Option("--stale", help="All that killed processes have left.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also one that processes use, or that can't be read.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove arenas: their names at once, their memory with their last clients.

    The exit code is 1 if one was not removed since processes use it or it
    can't be read, and 2 if there is none of a name.
    """
    if not names and not stale:
        fail("rm needs the names of arenas, or --stale")
    removed: list[str] = []
    refused: dict[str, str] = {}
    missing: dict[str, str] = {}
    if stale:
        remove_stale(removed, refused)
    for name in names or ():
        try:
            why = remove(name, force)
        except (OSError, ValueError) as error:
            missing[name] = reason(error) if isinstance(error, OSError) else str(error)
        else:
            if why is None:
                removed.append(name)
            else:
                refused[name] = why
    if as_json:
        print_json({"removed": removed, "refused": refused, "errors": missing})
    else:
        for name in removed:
            typer.echo(f"removed {shown(name)}")
    for name, why in (refused | missing).items():
        typer.echo(f"pageframe: error: {shown(name)}: {why}", err=True)
    if refused or missing:
        raise typer.Exit(2 if missing else 1)


def remove(name: str, force: bool) -> str | None:
    """Remove an arena; return why not, if it should stay."""
    place = {"path": name} if "/" in name else {"name": name}
    try:
        with ArenaView(**place) as view:
            living = [client for client in view.stats().clients if client.alive]
    except BadArenaError as error:
        if not force:
            return f"{error}; --force removes it" if "name" in place else str(error)
    else:
        if living and not force:
            pids = ", ".join(str(client.pid) for client in living[:SHOWN])
            return f"in use by {counted(len(living), 'client')} (pid {pids}); --force removes its name"
    PhysicalMemory.unlink(**place)
    return None


def remove_stale(removed: list[str], refused: dict[str, str]) -> None:
    """Remove what should have gone with its last client; whoever attaches meanwhile keeps it."""

    def names(infos: list[Any]) -> list[str]:
        return [info.name for info in infos if info.stale and info.name is not None]

    before = names(PhysicalMemory.list(all=True))
    left = names(PhysicalMemory.list())  # which removes them
    for name in before:
        if name in left:
            refused[name] = (
                "made to stay when its clients go: pageframe reap takes back what the dead held, "
                "pageframe rm with its name removes it"
            )
        else:
            removed.append(name)
