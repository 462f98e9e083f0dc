# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The `pageframe` command."""

from __future__ import annotations

import sysconfig
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pageframe import PhysicalMemory, parse_size
from pageframe.demo import DemoResult, PageCache, Reading, SourceFile, find_files, run
from pageframe.observe.picture import arena_picture, require_matplotlib

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

PAGE_SIZE = 4096
PLAIN_LINE_SECONDS = 5.0
LEAST_SECONDS = 0.01  # below which a throughput says nothing
NAMED = 10  # files that a summary names before it only counts them
READINGS = {1: "first reading", 2: "second reading"}

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def fail(message: str, code: int = 2) -> NoReturn:
    """Print a one-line error and exit."""
    typer.echo(f"pageframe: error: {message}", err=True)
    raise typer.Exit(code)


def shown(path: Path) -> str:
    """Return a path as it can be printed on one line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def reason(error: OSError) -> str:
    """Return what went wrong without the error number."""
    return error.strerror or str(error)


def print_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        typer.echo(f"pageframe {version('pageframe')}")
        raise typer.Exit


@app.callback()
def pageframe(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Manage physical memory: page frames with counts and typed metadata."""


@app.command()
def demo(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="A directory or a file.", show_default="the standard library"),
    ] = None,
    limit: Annotated[str, typer.Option(metavar="SIZE", help="Size of the arena.")] = "64 MiB",
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Save a picture of the arena, taken when the cache is full."),
    ] = None,
) -> None:
    """Read all files under PATH through page frames.

    Every file is read twice through a page cache: a frame holds a page
    of 4 KiB, and the least recently used is evicted when frames run out.
    Its digest is compared with that of reading the file directly.

    The exit code is 1 if any digest differs, and 2 if PATH, SIZE or
    FILE.png can't be used.
    """
    size = arena_size(limit)
    if picture is not None:
        check_picture(picture)
    exclude = ("site-packages", "dist-packages") if path is None else ()
    root = Path(sysconfig.get_path("stdlib")) if path is None else path
    try:
        files, skipped = find_files(root, exclude)
    except OSError as error:
        fail(f"{shown(root)}: {reason(error)}")
    try:
        mem = PhysicalMemory(size, page_size=PAGE_SIZE)
    except (ValueError, MemoryError, OSError) as error:
        fail(f"--limit {limit}: {error}")

    failure = None
    with mem, PageCache(mem) as cache:
        result = read_files(cache, files)
        if picture is not None:
            try:
                arena_picture(mem, picture)
            except OSError as error:
                failure = f"{shown(picture)}: {reason(error)}"
    result.skipped[:0] = skipped
    report(root, result)
    if failure is not None:
        fail(failure, 1 if result.mismatches else 2)
    if picture is not None:
        typer.echo(f"Picture of the arena: {shown(picture)}")
    if result.mismatches:
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


def read_files(cache: PageCache, files: list[SourceFile]) -> DemoResult:
    """Run the demonstration and show how far it is."""
    total = sum(file.size for file in files)
    console = Console(stderr=True)
    if not console.is_terminal:
        return run(cache, files, plain_progress(console, len(files), total))
    columns = (
        TextColumn("{task.description:14}"),
        BarColumn(bar_width=28),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = {
            number: progress.add_task(name, total=total, start=False) for number, name in READINGS.items()
        }

        def advance(number: int, file: SourceFile) -> None:
            progress.start_task(tasks[number])
            progress.advance(tasks[number], file.size)

        return run(cache, files, advance)


def plain_progress(console: Console, files: int, total: int) -> Callable[[int, SourceFile], None]:
    """Return a function that prints a line now and then, and at the end of each reading."""
    done = read = 0
    reading = 1
    printed = monotonic()

    def advance(number: int, file: SourceFile) -> None:
        nonlocal done, read, reading, printed
        if number != reading:
            reading, done, read = number, 0, 0
        done += 1
        read += file.size
        now = monotonic()
        if done == files or now - printed >= PLAIN_LINE_SECONDS:
            printed = now
            console.print(
                f"{READINGS[number]}: {done:,} of {files:,} files, "
                f"{read / 1e6:,.1f} of {total / 1e6:,.1f} MB",
                highlight=False,
                soft_wrap=True,
            )

    return advance


def report(root: Path, result: DemoResult) -> None:
    """Print what the demonstration found."""
    console = Console(highlight=False)
    console.print(Text(f"Files under {shown(root)}"), soft_wrap=True)
    console.print(readings_table(result))
    console.print(arena_table(result))
    if result.mismatches:
        print_names(
            console,
            f"{count(result.mismatches, 'file')} with a digest unlike that of plain reading:",
            [shown(path) for path in result.mismatches],
        )
    if result.skipped:
        print_names(
            console,
            f"{count(result.skipped, 'file or directory', 'files or directories')} skipped:",
            [f"{shown(path)}: {why}" for path, why in result.skipped],
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
    return table


def main() -> None:
    """Run the command."""
    app(prog_name="pageframe")


if __name__ == "__main__":
    main()
