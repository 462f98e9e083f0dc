# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""`pageframe ls`, `stat`, `frames`, `holders` and `events`: looking at arenas, which changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from pageframe import ArenaDamagedError, ArenaInfo, GetFrameError, OpaqueMeta, PhysicalMemory
from pageframe.commands.common import (
    ArenaName,
    Json,
    arena_label,
    damaged,
    fail,
    open_view,
    print_json,
)
from pageframe.observe.frames import SORTS, STATES, find_frames, frame_row, type_names
from pageframe.observe.report import report
from pageframe.observe.tables import add_row, new_console, new_table, say
from pageframe.observe.words import age_text, counted, percent, shown, since, size_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pageframe import ArenaView

LIMIT = 50  # frames that a person is shown
DIGITS = 8  # of an id, unless more are needed to tell arenas apart


# -- ls ----------------------------------------------------------------------------------------


def ls(as_json: Json = False) -> None:
    """Show the arenas of this machine.

    An arena is in use while processes are attached; idle, if it was made to
    stay and nobody is; stale, if processes that were killed have left it.
    Nothing is removed by looking.
    """
    infos = PhysicalMemory.list(all=True)
    if as_json:
        print_json([{**dataclasses.asdict(info), "state": arena_state(info)} for info in infos])
        return
    console = new_console()
    if not infos:
        say(console, "no arenas")
        return
    table = new_table("arena", ">size", ">used", ">", ">clients", ">age", "=owner", "=state")
    for info in infos:
        bad = info.problem is not None
        clients = f"{info.clients}" + (f" + {info.dead} dead" if info.dead else "")
        add_row(
            table,
            info_label(info, infos),
            size_text(info.size),
            "" if bad else info.used_frames,
            "" if bad else percent(info.used_frames, info.total_frames),
            "" if bad else clients,
            age_text(since(info.created)) if info.created else "",
            user_name(info.owner),
            arena_state(info),
        )
    console.print(table)
    for info in infos:
        if info.problem is not None:
            say(console, f"{info_label(info, infos)}: {problem_text(info)}")


def arena_state(info: ArenaInfo) -> str:
    """Return the state of an arena in one word, or two."""
    if info.problem is not None:
        return "damaged" if info.owner == os.geteuid() else "another user's"
    return "in use" if info.clients else "stale" if info.stale else "idle"


def problem_text(info: ArenaInfo) -> str:
    """Return why an arena can't be used, without its path."""
    return shown((info.problem or "").removeprefix(f"{info.path} "))


def info_label(info: ArenaInfo, infos: list[ArenaInfo]) -> str:
    """Return what an arena is called: its name, or as many digits of its id as tell it from others."""
    if info.name is not None:
        return shown(info.name)
    others = [other.id for other in infos if other.name is None and other.id != info.id]
    digits = next(
        (n for n in range(DIGITS, len(info.id)) if all(info.id[:n] != other[:n] for other in others)),
        len(info.id),
    )
    return info.id[:digits]


def user_name(uid: int) -> str:
    """Return the name of a user, or the number of one who has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# -- stat --------------------------------------------------------------------------------------


def stat(arena: ArenaName, as_json: Json = False) -> None:
    """Show the figures of an arena: frames, free runs, clients, messages in transit."""
    with open_view(arena) as view:
        try:
            stats = view.stats()
        except ArenaDamagedError as error:
            damaged(arena, error)
        name, arena_id, created = view.name, view.id, view.created
        label = arena_label(view)
    if as_json:
        orders = range(len(stats.free_runs))
        figures = dataclasses.asdict(stats)
        del figures["raw_references"]  # those of this process, which has none
        print_json(
            {
                "name": name,
                "id": arena_id,
                "created": created,
                **figures,
                "fragmentation": stats.fragmentation,
                "unusable": [stats.unusable(order) for order in orders],
            }
        )
        return
    new_console().print(report(stats, f"Arena {label}, id {arena_id}", created))


# -- frames ------------------------------------------------------------------------------------


def frames(
    arena: ArenaName,
    type: Annotated[
        str | None,
        typer.Option(metavar="T", help="Name of a metadata type, or its last part.", show_default=False),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="S", help=f"One of: {', '.join(STATES)}.", show_default="those in use"),
    ] = None,
    held_by: Annotated[
        int | None,
        typer.Option(metavar="PID", help="What this process holds.", show_default=False),
    ] = None,
    min_count: Annotated[int, typer.Option(min=0, metavar="N", help="References at least.")] = 0,
    sort: Annotated[str, typer.Option(metavar="KEY", help=f"One of: {', '.join(SORTS)}.")] = "paddr",
    reverse: Annotated[bool, typer.Option("--reverse", help="The largest first.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Rows at most.", show_default=f"{LIMIT}; all with --json"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show frames of an arena, one a row.

    The count of a frame is that of its references; a unique one has its
    owner's. The list is the number of the linked list that owns it. With
    --held-by the last column has the references of that process. Below
    stands how many frames there are of each type.
    """
    if limit is None and not as_json:
        limit = LIMIT
    with open_view(arena) as view:
        try:
            rows, by_type = find_frames(
                view,
                type=type,
                state=state,
                held_by=held_by,
                min_count=min_count,
                sort=sort,
                reverse=reverse,
                limit=limit,
            )
            names = type_names(view)
        except ArenaDamagedError as error:
            damaged(arena, error)
        except ValueError as error:
            fail(str(error))
    if as_json:
        print_rows(rows, by_type, names, held_by is not None)
        return
    console = new_console()
    holder = [">held"] if held_by is not None else []
    table = new_table(">paddr", "=state", "type", ">count", ">generation", ">list", *holder)
    for row in rows:
        add_row(
            table,
            f"{row['paddr']:#x}",
            STATES[row["state"]],
            shown(names.get(int(row["type"]), "none")),
            int(row["count"]),
            int(row["generation"]),
            int(row["list"]) or "",
            *[int(row["references"]) for _ in holder],
        )
    total = sum(by_type.values())
    if not total:
        say(console, "no such frames")
        return
    if len(rows):
        console.print(table)
    more = f"the first {len(rows):,} shown (--limit)" if len(rows) < total else "all shown"
    say(console, f"{counted(total, 'frame')}: {more}")
    for name, times in by_type.items():
        say(console, f"  {times:,} {shown(name)}")


def row_facts(row: np.void, names: dict[int, str], held: bool) -> dict[str, Any]:
    """Return a row as an object for programs."""
    facts = {
        "paddr": int(row["paddr"]),
        "state": STATES[row["state"]],
        "type": names.get(int(row["type"]), "none"),
        "count": int(row["count"]),
        "generation": int(row["generation"]),
        "list": int(row["list"]),
    }
    return facts | {"references": int(row["references"])} if held else facts


def print_rows(rows: NDArray[np.void], by_type: dict[str, int], names: dict[int, str], held: bool) -> None:
    """Print frames for programs, row by row: there may be millions."""
    total = sum(by_type.values())
    sys.stdout.write(f'{{"total": {total}, "by_type": {json.dumps(by_type)}, "frames": [')
    for i, row in enumerate(rows):
        sys.stdout.write(",\n" if i else "\n")
        json.dump(row_facts(row, names, held), sys.stdout)
    sys.stdout.write("\n]}\n")


# -- holders -----------------------------------------------------------------------------------


def holders(
    arena: ArenaName,
    paddr: Annotated[
        str, typer.Argument(metavar="PADDR", help="Address of a frame, 0x… or decimal.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Show a frame and who holds it."""
    try:
        address = int(paddr, 0)
    except ValueError:
        fail(f"{shown(paddr)} is no address: expected 0x… or a decimal number")
    with open_view(arena) as view:
        try:
            found = view.holders(address)
            facts = row_facts(frame_row(view, address)[0], type_names(view), False)
            fields, known = frame_fields(view, address)
            alive = {(client.pid, client.started): client.alive for client in view.stats().clients}
        except GetFrameError as error:
            fail(f"{shown(arena)}: {error}")
        except ArenaDamagedError as error:
            damaged(arena, error)
        label = arena_label(view)
    rows: list[dict[str, Any]] = [
        dataclasses.asdict(holder) | {"alive": alive.get((holder.pid, holder.started), False)}
        for holder in found
    ]
    if as_json:
        print_json({**facts, "fields": fields, "holders": rows})
        return
    console = new_console()
    say(console, f"Frame {address:#x} of arena {label}: {facts['state']}, count {facts['count']:,}")
    opaque = "" if known else " (not defined here: its fields can't be shown)"
    say(console, f"type {shown(facts['type'])}{opaque}, generation {facts['generation']:,}")
    for name, value in (fields or {}).items():
        say(console, f"  {name} = {value!r}")
    if not rows:
        say(console, "it belongs to the arena" if facts["state"] == "reserved" else "nobody holds it")
        return
    table = new_table(">pid", "program", "=state", ">handles", ">mappings", ">messages", "=started")
    for row in rows:
        add_row(
            table,
            str(row["pid"]),
            shown(row["name"]),
            "alive" if row["alive"] else "dead",
            row["handles"],
            row["mappings"],
            row["tickets"],
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["started"])),
        )
    console.print(table)


def frame_fields(view: ArenaView, paddr: int) -> tuple[dict[str, Any] | None, bool]:
    """Return the metadata of a frame by its fields, None if it has none now; whether the type is known."""
    slot = view.slots[paddr // view.page_size]
    cls = view.types.get(int(slot["type"]))
    if cls is None or issubclass(cls, OpaqueMeta):
        return None, False
    columns = view.meta(cls)
    if np.ma.getmaskarray(columns)[paddr // view.page_size]:
        return None, True
    values = columns.data[paddr // view.page_size]
    names = values.dtype.names or ()
    return {name: plain_value(values[name]) for name in names}, True


def plain_value(value: Any) -> Any:
    """Return the value of a field as Python has it; bytes as text."""
    value = value.tolist()
    return value.hex() if isinstance(value, bytes) else value


# -- events ------------------------------------------------------------------------------------


def events(
    arena: ArenaName,
    pid: Annotated[
        int | None, typer.Option(metavar="PID", help="Those of this process.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="The last so many.", show_default=f"{LIMIT}; all with --json"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what was done last to frames, if the arena was made with PAGEFRAME_DEBUG=trace.

    Events of processes that were killed are there, too.
    """
    with open_view(arena) as view:
        try:
            found = view.events(pid)
        except TypeError as error:
            fail(f"{shown(arena)}: {error}")
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if limit is None and not as_json:
        limit = LIMIT
    rows = found if limit is None else found[max(0, len(found) - limit) :]
    if as_json:
        names = found.dtype.names or ()
        print_json([dict(zip(names, row, strict=True)) for row in rows.tolist()])
        return
    table = new_table(">seconds ago", ">pid", ">lane", "=event", ">paddr")
    for row in rows:
        ago = f"{(now - int(row['time'])) / 1e9:.6f}"
        add_row(table, ago, str(row["pid"]), int(row["lane"]), row["event"], f"{row['paddr']:#x}")
    console = new_console()
    if len(rows):
        console.print(table)
    say(console, f"{counted(len(found), 'event')}: the last {len(rows):,} shown")
