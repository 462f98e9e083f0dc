# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""`pageframe demo`: read files through page frames, and show what came of it."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pageframe import OutOfFramesError, PhysicalMemory, parse_size, shared_demo
from pageframe import demo as cache_demo
from pageframe.commands.common import fail, reason
from pageframe.demo import DemoResult, OneArray, PageCache, Reading, SkippedFile, SourceFile, find_files
from pageframe.observe.arena_map import ArenaMap, take_map
from pageframe.observe.picture import draw_map, require_matplotlib
from pageframe.observe.words import counted, shown
from pageframe.shared_demo import MAX_WORKERS, SharedResult, WorkerError, create_arena

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence, Sized

    from rich.console import RenderableType

PAGE_SIZE = 4096
PLAIN_LINE_SECONDS = 5.0
LEAST_SECONDS = 0.01  # below which a throughput says nothing
NAMED = 10  # files that a summary names before it only counts them
READINGS = {1: "first reading", 2: "second reading"}
STAGES = {
    shared_demo.PLAIN: "plain reading",
    shared_demo.SHARED: "shared arena",
    shared_demo.PLAIN_AGAIN: "plain again",
}

R = TypeVar("R")


def demo(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="A directory or a file.", show_default="the standard library"),
    ] = None,
    limit: Annotated[str, typer.Option(metavar="SIZE", help="Size of the arena.")] = "64 MiB",
    workers: Annotated[
        int,
        typer.Option(
            metavar="N", help=f"Worker processes, up to {MAX_WORKERS}; 0: a page cache in one process."
        ),
    ] = 3,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Save a picture of the arena, taken before the kill, or when the cache is full.",
        ),
    ] = None,
) -> None:
    """Read all files under PATH through page frames.

    N worker processes share one arena. This process reads the files into
    frames and hands them to the workers, which hash them where they lie.
    Halfway a worker is killed while it holds frames; they are reaped, and
    another one does its work. Every digest is compared with that of reading
    the file directly.

    With --workers 0 every file is read twice through a page cache in this
    process: a frame holds a page of 4 KiB, and the least recently used is
    evicted when frames run out.

    Either way the scattered frames of one file are mapped in the end, and
    hashed as a single contiguous array.

    The exit code is 1 if any digest differs or an audit of the shared arena
    finds anything, and 2 if PATH, SIZE, N or FILE.png can't be used or the
    workers keep dying.
    """
    size = arena_size(limit)
    if not 0 <= workers <= MAX_WORKERS:
        fail(f"--workers {workers}: expected 0 to {MAX_WORKERS}")
    if picture is not None:
        check_picture(picture)
    exclude = ("site-packages", "dist-packages") if path is None else ()
    root = Path(sysconfig.get_path("stdlib")) if path is None else path
    try:
        files, skipped = find_files(root, exclude)
    except OSError as error:
        fail(f"{shown(root)}: {reason(error)}")
    try:
        mem = create_arena(size, PAGE_SIZE, workers) if workers else PhysicalMemory(size, page_size=PAGE_SIZE)
    except (ValueError, MemoryError, OSError) as error:
        fail(f"--limit {limit}: {error}")

    with mem:
        if workers:
            try:
                shared, snapshot = share_files(mem, files, workers, picture is not None)
            except (WorkerError, OutOfFramesError) as error:
                fail(f"--workers {workers}: {error}")
            tables, all_skipped = shared_tables(shared), shared.skipped
            mismatches, sound = shared.mismatches, shared.sound
        else:
            result, snapshot = read_files(mem, files, picture is not None)
            tables, all_skipped = [readings_table(result), arena_table(result)], result.skipped
            mismatches, sound = result.mismatches, True
    report(root, tables, mismatches, skipped + all_skipped)
    if picture is not None and snapshot is not None:
        try:
            draw_map(snapshot, picture)
        except OSError as error:
            fail(f"{shown(picture)}: {reason(error)}", 1 if mismatches or not sound else 2)
        typer.echo(f"Picture of the arena: {shown(picture)}")
    if mismatches or not sound:
        raise typer.Exit(1)


def arena_size(limit: str) -> int:
    """Return a size given by the user, rounded down to whole frames."""
    try:
        size = parse_size(limit)
    except ValueError as error:
        fail(f"--limit: {error}")
    if size < PAGE_SIZE:
        fail(f"--limit {limit}: the arena needs at least one frame of {PAGE_SIZE} bytes")
    return size - size % PAGE_SIZE


def check_picture(path: Path) -> None:
    """Fail before the work is done if its picture could not be saved."""
    try:
        require_matplotlib()
    except ImportError as error:
        fail(f"--picture: {error}")
    if path.is_dir():
        fail(f"{shown(path)}: Is a directory")
    if not path.parent.is_dir():
        fail(f"{shown(path)}: there is no directory {shown(path.parent)}")


def read_files(
    mem: PhysicalMemory, files: list[SourceFile], picture: bool
) -> tuple[DemoResult, ArenaMap | None]:
    """Run the demonstration of a page cache and show how far it is."""
    snapshots: list[ArenaMap] = []

    def full(mem: PhysicalMemory) -> None:
        if picture:
            snapshots.append(take_map(mem, "type"))

    with PageCache(mem) as cache:
        result = with_progress(
            READINGS,
            files,
            lambda advance: cache_demo.run(
                cache, files, lambda number, file: advance(number, 1, file.size), full
            ),
        )
    return result, snapshots[0] if snapshots else None


def share_files(
    mem: PhysicalMemory, files: list[SourceFile], workers: int, picture: bool
) -> tuple[SharedResult, ArenaMap | None]:
    """Run the demonstration of sharing and show how far it is."""
    snapshots: list[ArenaMap] = []

    def halfway(mem: PhysicalMemory) -> None:
        if picture:
            snapshots.append(take_map(mem, "holder"))

    result = with_progress(
        STAGES,
        files,
        lambda advance: shared_demo.run(mem, files, workers, progress=advance, halfway=halfway),
    )
    if not snapshots:
        halfway(mem)  # there was nothing to hand over
    return result, snapshots[0] if snapshots else None


def with_progress(
    stages: dict[int, str], files: list[SourceFile], job: Callable[[Callable[[int, int, int], None]], R]
) -> R:
    """Run a job that tells a function the stage and the files and bytes it has finished."""
    total = sum(file.size for file in files)
    console = Console(stderr=True)
    if not console.is_terminal:
        return job(plain_progress(console, stages, len(files), total))
    columns = (
        TextColumn("{task.description:14}"),
        BarColumn(bar_width=28),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = {number: progress.add_task(name, total=total, start=False) for number, name in stages.items()}

        def advance(number: int, files: int, size: int) -> None:
            progress.start_task(tasks[number])
            progress.advance(tasks[number], size)

        return job(advance)


def plain_progress(
    console: Console, stages: dict[int, str], files: int, total: int
) -> Callable[[int, int, int], None]:
    """Return a function that prints a line now and then, and at the end of each stage."""
    done = read = stage = 0
    printed = monotonic()

    def advance(number: int, more: int, size: int) -> None:
        nonlocal done, read, stage, printed
        if number != stage:
            stage, done, read = number, 0, 0
        done += more
        read += size
        now = monotonic()
        if (more and done == files) or now - printed >= PLAIN_LINE_SECONDS:
            printed = now
            console.print(
                f"{stages[number]}: {done:,} of {files:,} files, {read / 1e6:,.1f} of {total / 1e6:,.1f} MB",
                highlight=False,
                soft_wrap=True,
            )

    return advance


def report(
    root: Path, tables: Sequence[RenderableType], mismatches: list[Path], skipped: list[SkippedFile]
) -> None:
    """Print what the demonstration found."""
    console = Console(highlight=False)
    console.print(Text(f"Files under {shown(root)}"), soft_wrap=True)
    for table in tables:
        console.print(table)
    if mismatches:
        print_names(
            console,
            f"{count(mismatches, 'file')} with a digest unlike that of plain reading:",
            [shown(path) for path in mismatches],
        )
    if skipped:
        print_names(
            console,
            f"{count(skipped, 'file or directory', 'files or directories')} skipped:",
            [f"{shown(path)}: {why}" for path, why in skipped],
        )


def count(things: Sized, one: str, many: str | None = None) -> str:
    """Return a number of things in words."""
    return f"1 {one}" if len(things) == 1 else f"{len(things):,} {many or one + 's'}"


def print_names(console: Console, title: str, lines: list[str]) -> None:
    """Print a title and some lines below it, and how many more there would be."""
    console.print(Text(title), soft_wrap=True)
    for line in lines[:NAMED]:
        console.print(Text(f"  {line}"), soft_wrap=True)
    if len(lines) > NAMED:
        console.print(f"  … and {len(lines) - NAMED:,} more", soft_wrap=True)


def readings_table(result: DemoResult) -> Table:
    """Return the figures of the readings side by side."""
    first, second = result.plain_first, result.plain_second
    frames = (result.first, result.second)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("plain, twice", "first, in frames", "second, in frames"):
        table.add_column(name, justify="right", no_wrap=True)

    def row(name: str, plainly: str, figure: Callable[[Reading], str]) -> None:
        table.add_row(name, plainly, *(figure(reading) for reading in frames))

    row("files", f"{first.files:,}", lambda r: f"{r.files:,}")
    row("bytes", f"{first.bytes:,}", lambda r: f"{r.bytes:,}")
    row("pages", "", lambda r: f"{r.pages:,}")
    row("hits", "", lambda r: f"{r.hits:,}")
    row("misses", "", lambda r: f"{r.misses:,}")
    row("evictions", "", lambda r: f"{r.evictions:,}")
    row("seconds", f"{first.seconds:.3f}, {second.seconds:.3f}", lambda r: f"{r.seconds:.3f}")
    row("throughput", f"{rate(first)}, {rate(second)}", rate)
    table.add_row("beside plain", "", ratio(result.first, first), ratio(result.second, second))
    row("digests compared", "", lambda r: f"{r.files:,}")
    row("mismatches", "", lambda r: f"{len(r.mismatches):,}")
    return table


def rate(reading: Reading) -> str:
    """Return the throughput of a reading in words."""
    return f"{reading.rate / 1e6:,.0f} MB/s"


def ratio(reading: Reading, plain: Reading) -> str:
    """Return a throughput beside that of plain reading, unless there is too little to tell."""
    return f"{reading.rate / plain.rate:.0%}" if plain.seconds >= LEAST_SECONDS else ""


def arena_table(result: DemoResult) -> Table:
    """Return the figures of the arena."""
    stats = result.stats
    usable = stats.total_frames - stats.reserved_frames
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("arena")
    table.add_column(f"{stats.size:,} bytes", justify="right")
    table.add_column("")
    table.add_row(
        "frames used", f"{stats.used_frames:,}", f"of {usable:,} usable ({stats.used_frames / usable:.1%})"
    )
    table.add_row(
        "metadata overhead", f"{stats.overhead:,} bytes", f"{stats.overhead / stats.size:.2%} of the arena"
    )
    add_array(table, result.array)
    return table


def add_array(table: Table, array: OneArray | None) -> None:
    """Add what became of the file whose frames were mapped one behind another."""
    if array is None:
        table.add_row("one array", "none", "no file could be shown as one")
        return
    digest = "right" if array.right else "wrong"
    where = f"in {counted(array.kernel_mappings, 'kernel mapping')}, digest {digest}"
    table.add_row("one array", counted(array.pages, "page"), where)
    table.add_row("", "", Text(f"of {shown(Path(array.path.name))}", overflow="ellipsis"))


def shared_tables(result: SharedResult) -> list[Table]:
    """Return the figures of the shared job."""
    return [shared_readings_table(result), sharing_table(result)]


def shared_readings_table(result: SharedResult) -> Table:
    """Return the figures of plain reading and of the shared arena side by side."""
    first, second, shared = result.plain_first, result.plain_second, result.shared
    plain = max(first, second, key=lambda reading: reading.rate)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    workers = "1 worker" if result.workers == 1 else f"{result.workers} workers"
    for name in ("plain, twice", f"shared, {workers}"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("files", f"{first.files:,}", f"{shared.files:,}")
    table.add_row("bytes", f"{first.bytes:,}", f"{shared.bytes:,}")
    table.add_row("seconds", f"{first.seconds:.3f}, {second.seconds:.3f}", f"{shared.seconds:.3f}")
    table.add_row("throughput", f"{rate(first)}, {rate(second)}", rate(shared))
    table.add_row("beside the faster", "", ratio(shared, plain))
    table.add_row("digests compared", "", f"{result.pieces:,}")
    table.add_row("mismatches", "", f"{len(shared.mismatches):,}")
    return table


def sharing_table(result: SharedResult) -> Table:
    """Return what was handed over, copied, lost and found again."""
    stats, audit, killed = result.stats, result.audit, result.killed
    assert stats is not None
    assert audit is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("shared arena")
    table.add_column(f"{stats.size:,} bytes", justify="right")
    table.add_column("")
    table.add_row(
        "handed over",
        f"{result.bytes_handed:,} bytes",
        f"by {counted(result.segments, 'handle')} of segments",
    )
    table.add_row("answered", f"{result.answer_frames:,} frames", f"by {counted(result.answers, 'handle')}")
    table.add_row("copied from files", f"{result.bytes_read:,} bytes", "")
    table.add_row(
        "copied through pipes",
        f"{result.bytes_piped:,} bytes",
        "pickles of handles",
    )
    if killed is None:
        table.add_row("killed", "no worker", "there was nothing to hand over")
    else:
        table.add_row("killed", killed.name, f"pid {killed.pid}, holding {counted(killed.frames, 'frame')}")
    for death in result.deaths:
        table.add_row("unexpected death", "", death)
    table.add_row(
        "reaped", counted(result.frames_reaped, "frame"), f"of {counted(result.clients_reaped, 'client')}"
    )
    for name, frames in result.types_reaped.items():
        table.add_row("", f"{frames:,}", name.rpartition(".")[2])
    table.add_row("taken back unread", counted(result.returned, "message"), "that the dead had not loaded")
    table.add_row(
        "read again", counted(result.lost_pieces, "piece"), f"of {counted(result.lost_bytes, 'byte')}"
    )
    add_array(table, result.array)
    table.add_row("audit", *audit_row(result))
    table.add_row("still held", counted(result.frames_left, "frame"), "after the workers have left")
    return table


def audit_row(result: SharedResult) -> tuple[str, str]:
    """Return what the audit says in words."""
    audit = result.audit
    assert audit is not None
    seen = f"in {counted(audit.frames, 'frame')}"
    if result.sound and audit.clean:
        return "nothing found", seen
    wrong = {
        "leaked": len(audit.leaked),
        "miscounted": len(audit.miscounted),
        "damaged": len(audit.damaged),
        "busy": audit.busy,
    }
    found = ", ".join(f"{frames:,} {what}" for what, frames in wrong.items() if frames)
    return found or "not quiet", seen
