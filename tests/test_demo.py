# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The demonstration without workers: its cache, its command and its picture, driven as a user would."""

import errno
import hashlib
import os
import pty
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from typer.testing import CliRunner

import pageframe
from pageframe import cli, demo
from pageframe.commands import demo as demo_command
from pageframe.demo import PageCache, SourceFile, find_files, run
from pageframe.observe import arena_map, picture

PAGE = 4096
SMALL = 64 << 10  # of 16 frames the tables take 8
USABLE = 8
SIZES = (0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 5, 8 * PAGE, 40 * PAGE)


def content(size, seed=0):
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture
def tree(tmp_path):
    """Files of many sizes, below, at and above what a page and the arena hold."""
    root = tmp_path / "tree"
    for i, size in enumerate(SIZES):
        path = root / f"d{i % 3}" / f"file{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(size, i))
    return root


@pytest.fixture
def mem():
    with pageframe.PhysicalMemory(SMALL) as mem:
        yield mem


@pytest.fixture
def cache(mem):
    with PageCache(mem) as cache:
        yield cache


def pages(cache, path):
    found = []
    cache.read(path, lambda page: found.append(bytes(page)))
    return found


def alone(args):
    """Return the arguments of a command that starts no workers."""
    return [str(arg) for arg in args] + ["--workers=0"] * (args[0] == "demo")


def command(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "pageframe.cli", *alone(args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
        **kwargs,
    )


def invoke(*args):
    return CliRunner().invoke(cli.app, alone(args), env={"COLUMNS": "80"})


def row(output, name):
    """Return the figures in a row of a table."""
    line = next(line for line in output.splitlines() if line.strip().startswith(name))
    return line.strip().removeprefix(name).split()


def one_line_error(result):
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("pageframe: error: ")
    return line.removeprefix("pageframe: error: ")


# -- the cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_pages_are_those_of_the_file(cache, tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(content(size))
    expected = [content(size)[i : i + PAGE] for i in range(0, size, PAGE)]
    assert pages(cache, path) == expected
    assert cache.misses == len(expected)
    assert cache.hits == 0
    assert pages(cache, path) == expected


def test_least_recently_used_page_is_evicted_first(cache, mem, tmp_path):
    paths = [tmp_path / f"{i}" for i in range(USABLE + 2)]
    for i, path in enumerate(paths):
        path.write_bytes(content(PAGE, i))
    for path in paths[:USABLE]:
        cache.read(path, len)
    assert mem.free_frames == 0
    assert len(cache) == USABLE
    cache.read(paths[0], len)
    assert (cache.hits, cache.evictions) == (1, 0)
    cache.read(paths[USABLE], len)
    cache.read(paths[USABLE + 1], len)
    assert cache.evictions == 2
    assert [(path, 0) in cache for path in paths] == [True, False, False] + [True] * (USABLE - 1)
    assert len(cache) == mem.used_frames == USABLE


def test_hit_does_not_read_the_file(cache, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content(2 * PAGE + 9))
    first = pages(cache, path)
    path.unlink()
    assert pages(cache, path) == first
    assert (cache.hits, cache.misses) == (3, 3)


def test_sink_gets_the_bytes_of_the_frame(cache, mem, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def change(page):
        page[:] = b"behind"

    assert cache.read(path, change) == 6
    assert pages(cache, path) == [b"behind"]
    slots = mem.slots
    assert np.count_nonzero(slots["count"] == pageframe.REF_COUNT_UNIQUE) == 1
    assert mem.meta(demo.CachedPage)["length"].compressed().tolist() == [6]
    del slots


def test_page_is_released_after_the_call(cache, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    kept = []
    cache.read(path, kept.append)
    with pytest.raises(ValueError, match="released"):
        kept[0].tobytes()


def test_cache_survives_a_sink_that_raises(cache, mem, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content(5 * PAGE))

    def fail(page):
        raise RuntimeError("enough")

    for _ in range(20):
        with pytest.raises(RuntimeError, match="enough"):
            cache.read(path, fail)
        assert mem.used_frames == len(cache)
    assert b"".join(pages(cache, path)) == content(5 * PAGE)


def test_failed_read_leaves_no_frames(cache, mem, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(content(5 * PAGE))

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(demo.os, "preadv", fail)
        with pytest.raises(OSError, match="Input/output"):
            cache.read(path, len)
    assert mem.used_frames == len(cache) == 0
    assert b"".join(pages(cache, path)) == content(5 * PAGE)


def test_short_reads_fill_whole_pages(cache, tmp_path, monkeypatch):
    preadv = os.preadv
    path = tmp_path / "file"
    path.write_bytes(content(6 * PAGE + 77))
    monkeypatch.setattr(
        demo.os, "preadv", lambda fd, buffers, at: preadv(fd, [memoryview(buffers[0])[:1000]], at)
    )
    assert [len(page) for page in pages(cache, path)] == [PAGE] * 6 + [77]
    assert b"".join(pages(cache, path)) == content(6 * PAGE + 77)


def test_file_that_does_not_tell_its_size(cache):
    path = Path("/proc/version")
    assert path.stat().st_size == 0
    assert b"".join(pages(cache, path)) == path.read_bytes()


def test_frames_held_elsewhere_are_left_alone(cache, mem, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content(3 * PAGE))
    with mem.alloc_frames(USABLE), pytest.raises(pageframe.OutOfFramesError):
        cache.read(path, len)
    with mem.alloc_frames(USABLE - 1):
        assert b"".join(pages(cache, path)) == content(3 * PAGE)
        assert len(cache) == 1
        assert cache.evictions == 2


def test_all_frames_return_to_the_arena(tree):
    mem = pageframe.PhysicalMemory(SMALL)
    free = mem.free_frames
    with PageCache(mem) as cache:
        result = run(cache, find_files(tree)[0])
        assert result.stats.used_frames == USABLE
        assert mem.used_frames == len(cache) > 0
    assert (mem.used_frames, mem.free_frames) == (0, free)
    mem.close()
    assert mem.closed


# -- the files ---------------------------------------------------------------------------------


def test_find_files_lists_regular_files_once_and_sorted(tree):
    (tree / "to_file").symlink_to(tree / "d1" / "file1")
    (tree / "to_folder").symlink_to(tree, target_is_directory=True)
    (tree / "d0" / "again").hardlink_to(tree / "d2" / "file2")
    os.mkfifo(tree / "pipe")
    files, skipped = find_files(tree, ("d1",))
    assert [file.path.relative_to(tree).as_posix() for file in files] == [
        "d0/again",
        "d0/file0",
        "d0/file3",
        "d0/file6",
        "d2/file5",
    ]
    assert files[0].size == PAGE - 1
    assert skipped == []


def test_find_files_takes_a_single_file(tree):
    path = tree / "d1" / "file4"
    assert find_files(path) == ([SourceFile(path, PAGE + 1)], [])


# -- the readings ------------------------------------------------------------------------------


def test_second_reading_hits_what_was_read_last(tree, mem, cache):
    result = run(cache, find_files(tree)[0])
    total = sum(-(-size // PAGE) for size in SIZES)
    readings = (result.plain_first, result.plain_second, result.first, result.second)
    assert [reading.bytes for reading in readings] == [sum(SIZES)] * 4
    assert result.first.files == result.second.files == len(SIZES)
    assert (result.first.hits, result.first.misses) == (0, total)
    assert result.first.evictions == total - USABLE
    assert result.second.pages == total
    assert result.second.hits >= 1
    assert result.second.evictions == result.second.misses
    assert result.mismatches == []


def test_readings_feed_the_digests(tree, cache):
    for file in find_files(tree)[0]:
        digest = demo.frame_digest(file.path, cache)
        data = file.path.read_bytes()
        assert (digest.value, digest.size) == (hashlib.sha256(data).digest(), len(data))


# -- one array ---------------------------------------------------------------------------------


@pytest.fixture
def large():
    with pageframe.PhysicalMemory("2 MiB") as mem, PageCache(mem) as cache:
        yield cache


def read_in_turns(cache, paths):
    """Read files page by page in turns, so that no two pages of one lie beside each other."""
    for size in range(PAGE, max(path.stat().st_size for path in paths) + PAGE, PAGE):
        for path in paths:
            data = path.read_bytes()
            path.write_bytes(data[:size])
            if cache._files.get(path) is not None:
                cache._files[path].pages = None
            cache.read(path, len)
            path.write_bytes(data)


def test_scattered_pages_are_one_array(large, tmp_path):
    sizes = (20 * PAGE, 9 * PAGE + 7)
    paths = [tmp_path / f"{i}" for i in range(len(sizes))]
    for i, path in enumerate(paths):
        path.write_bytes(content(sizes[i], i))
    read_in_turns(large, paths)
    before = large.mem.used_frames
    for path, size, pages_of_it in zip(paths, sizes, (20, 10), strict=True):
        assert large.pages(path) == pages_of_it
        with large.mapped(path) as (mapping, found):
            assert found == size
            assert mapping.array(size).tobytes() == path.read_bytes()
            assert mapping.size == pages_of_it * PAGE
            assert mapping.kernel_mappings > pages_of_it // 2
    # The cache has all its pages still, and the page table has gone.
    assert large.mem.used_frames == before == len(large) == 30
    misses = large.misses
    assert [b"".join(pages(large, path)) for path in paths] == [content(n, i) for i, n in enumerate(sizes)]
    assert large.misses == misses


def test_pages_give_way_to_the_page_table_and_not_those_that_are_mapped(mem, cache, tmp_path):
    paths = [tmp_path / f"{i}" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(content(2 * PAGE, i))
    (tmp_path / "3").write_bytes(content(2 * PAGE - 1, 3))
    for path in [tmp_path / "3", *paths]:
        cache.read(path, len)
    assert mem.free_frames == 0
    with cache.mapped(tmp_path / "3") as (mapping, size):
        assert mapping.array(size).tobytes() == content(2 * PAGE - 1, 3)
        assert cache.evictions == 4
    assert [cache.pages(path) for path in [tmp_path / "3", *paths]] == [2, None, None, 2]
    assert mem.used_frames == len(cache) == 4


def test_pages_are_cached_still_if_the_page_table_finds_no_frames(mem, cache, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content(USABLE * PAGE))
    cache.read(path, len)
    with pytest.raises(pageframe.OutOfFramesError), cache.mapped(path):
        pass
    assert cache.pages(path) == USABLE == len(cache)
    assert (
        demo.show_array(cache, {SourceFile(path, 1): demo.plain_digest(path, memoryview(bytearray(9)))})
        is None
    )


def test_pages_are_known_only_of_files_that_are_all_cached(cache, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content(3 * PAGE))
    assert cache.pages(path) is None
    cache.read(path, len)
    assert cache.pages(path) == 3
    cache._evict().drop()
    assert cache.pages(path) is None


def test_the_largest_cached_file_is_shown_as_an_array(tree, large):
    files, _ = find_files(tree)
    result = run(large, files)
    assert result.array.path == tree / "d1" / "file7"
    assert (result.array.pages, result.array.right) == (40, True)
    assert 1 <= result.array.kernel_mappings <= 40
    assert pageframe.map_budget()[0] == 0
    assert result.mismatches == []


def test_files_of_too_many_pages_are_not_shown(tree, large, monkeypatch):
    monkeypatch.setattr(demo, "ARRAY_PAGES", 39)
    result = run(large, find_files(tree)[0])
    assert result.array.path == tree / "d0" / "file6"
    assert result.array.pages == 8


def test_nothing_is_shown_where_the_pages_of_the_system_are_larger(tree, large, monkeypatch):
    monkeypatch.setattr(demo.mmap, "PAGESIZE", 2 * PAGE)
    assert run(large, find_files(tree)[0]).array is None
    assert row(invoke("demo", tree).stdout, "one array")[0] == "none"


def test_wrong_byte_of_the_array_is_a_mismatch(tree, monkeypatch):
    mapped = PageCache.mapped

    @contextmanager
    def spoil(cache, path):
        with mapped(cache, path) as (mapping, size):
            mapping.array(size)[-1] ^= 1
            yield mapping, size

    monkeypatch.setattr(PageCache, "mapped", spoil)
    result = invoke("demo", tree)
    assert result.exit_code == 1
    assert row(result.stdout, "mismatches") == ["0", "0"]
    assert " ".join(row(result.stdout, "one array")).endswith("digest wrong")
    assert "1 file with a digest unlike that of plain reading:" in result.stdout
    assert str(tree / "d1" / "file7") in result.stdout


# -- the command -------------------------------------------------------------------------------


def test_demo_reads_a_tree(tree):
    result = command("demo", tree, "--limit", SMALL)
    assert result.returncode == 0, result.stderr
    total = sum(-(-size // PAGE) for size in SIZES)
    assert row(result.stdout, "files") == [str(len(SIZES))] * 3
    assert row(result.stdout, "bytes") == [f"{sum(SIZES):,}"] * 3
    assert row(result.stdout, "pages") == [str(total)] * 2
    assert int(row(result.stdout, "evictions")[0]) == total - USABLE
    assert row(result.stdout, "digests compared") == [str(len(SIZES))] * 2
    assert row(result.stdout, "mismatches") == ["0", "0"]
    assert row(result.stdout, "frames used") == ["8", "of", "8", "usable", "(100.0%)"]
    assert " ".join(row(result.stdout, "one array")) == "1 page in 1 kernel mapping, digest right"
    assert len(row(result.stdout, "throughput")) == 8


def test_piped_output_is_plain(tree):
    result = command("demo", tree, "--limit", SMALL)
    assert "\x1b" not in result.stdout + result.stderr
    assert "\r" not in result.stdout + result.stderr
    assert result.stderr.splitlines() == [
        f"{reading} reading: 8 of 8 files, 0.2 of 0.2 MB" for reading in ("first", "second")
    ]
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if "Files under" not in line)


def test_terminal_gets_a_bar(tree):
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "pageframe.cli", "demo", tree, "--limit", str(SMALL), "--workers", "0"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
    ) as process:
        process.communicate(timeout=60)
    os.close(theirs)
    drawn = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert process.returncode == 0
    assert "second reading" in drawn
    assert "\x1b[" in drawn
    assert "Traceback" not in drawn


def test_single_and_empty_files(tree):
    result = command("demo", tree / "d0" / "file0")
    assert result.returncode == 0, result.stderr
    assert row(result.stdout, "files") == ["1", "1", "1"]
    assert row(result.stdout, "pages") == ["0", "0"]


def test_empty_directory(tmp_path):
    result = command("demo", tmp_path)
    assert result.returncode == 0, result.stderr
    assert row(result.stdout, "files") == ["0", "0", "0"]


def test_default_path_is_the_standard_library_without_site_packages(monkeypatch, tree):
    (tree / "site-packages").mkdir()
    (tree / "site-packages" / "installed").write_bytes(b"x")
    monkeypatch.setattr(
        demo_command.sysconfig, "get_path", lambda name: str(tree) if name == "stdlib" else None
    )
    result = invoke("demo", "--limit", SMALL)
    assert result.exit_code == 0
    assert row(result.stdout, "files") == [str(len(SIZES))] * 3
    assert row(invoke("demo", tree).stdout, "files") == [str(len(SIZES) + 1)] * 3


def test_file_that_changes_is_a_mismatch(tree, monkeypatch):
    plain_digest = demo.plain_digest

    def read_then_append(path, buffer):
        digest = plain_digest(path, buffer)
        if path.name == "file3":
            with path.open("ab") as file:
                file.write(b"more")
        return digest

    monkeypatch.setattr(demo, "plain_digest", read_then_append)
    (tree / "d0" / "file0").unlink()  # now the file is the first: read directly, then in frames
    result = invoke("demo", tree, "--limit", SMALL)
    assert result.exit_code == 1
    assert row(result.stdout, "mismatches") == ["1", "1"]
    assert "1 file with a digest unlike that of plain reading:" in result.stdout
    assert str(tree / "d0" / "file3") in result.stdout


def test_change_between_the_readings_is_a_mismatch(tree, monkeypatch):
    count = demo.Reading.count

    def change_after_the_first(reading, cache, before=None):
        count(reading, cache, before)
        (tree / "d0" / "file0").write_bytes(b"no longer empty, but cached as empty")
        (tree / "d1" / "file1").write_bytes(b"!")

    monkeypatch.setattr(demo.Reading, "count", change_after_the_first)
    result = invoke("demo", tree, "--limit", SMALL)
    assert result.exit_code == 1
    assert row(result.stdout, "mismatches") == ["0", "1"]
    assert str(tree / "d1" / "file1") in result.stdout


def test_file_that_disappears_is_skipped_and_named(tree, monkeypatch):
    def find_then_lose(root, exclude):
        found = find_files(root, exclude)
        (tree / "d1" / "file7").unlink()
        return found

    monkeypatch.setattr(demo_command, "find_files", find_then_lose)
    result = invoke("demo", tree, "--limit", SMALL)
    assert result.exit_code == 0
    assert row(result.stdout, "files") == [str(len(SIZES) - 1)] * 3
    assert "1 file or directory skipped:" in result.stdout
    assert f"{tree / 'd1' / 'file7'}: No such file or directory" in result.stdout
    assert [line.split(",")[0] for line in result.stderr.splitlines()] == [
        "first reading: 8 of 8 files",
        "second reading: 8 of 8 files",
    ]


def test_file_that_disappears_between_the_readings_is_skipped(tree, monkeypatch):
    count = demo.Reading.count

    def lose(reading, cache, before=None):
        count(reading, cache, before)
        (tree / "d1" / "file1").unlink(missing_ok=True)

    monkeypatch.setattr(demo.Reading, "count", lose)
    result = invoke("demo", tree, "--limit", SMALL)
    assert result.exit_code == 0
    assert row(result.stdout, "digests compared") == ["8", "7"]
    assert f"{tree / 'd1' / 'file1'}: in the second reading: No such file or directory" in result.stdout


def test_unreadable_files_are_skipped_and_named(tree, monkeypatch):
    class Refusing(demo.FileIO):
        def __init__(self, path):
            if path.name in ("file5", "file6"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            super().__init__(path)

    monkeypatch.setattr(demo, "FileIO", Refusing)
    result = invoke("demo", tree, "--limit", SMALL)
    assert result.exit_code == 0
    assert "2 files or directories skipped:" in result.stdout
    for name in ("d2/file5", "d0/file6"):
        assert f"{tree / name}: Permission denied" in result.stdout


@contextmanager
def unprivileged():
    """Be somebody else than the superuser, who may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_may_not_be_read_is_skipped_and_named():
    with TemporaryDirectory() as name:
        top = Path(name)
        locked = top / "locked"
        locked.mkdir()
        (top / "open").write_bytes(b"open")
        (locked / "file").write_bytes(b"locked")
        top.chmod(0o755)
        assert invoke("demo", top, "--limit", SMALL).exit_code == 0  # and all is imported
        locked.chmod(0)
        with unprivileged():
            result = invoke("demo", top, "--limit", SMALL)
            refused = invoke("demo", locked, "--limit", SMALL)
        locked.chmod(0o755)
    assert result.exit_code == 0
    assert f"{locked}: Permission denied" in result.stdout
    assert row(result.stdout, "digests compared") == ["1", "1"]
    assert refused.exit_code == 2
    assert refused.stderr == f"pageframe: error: {locked}: Permission denied\n"


def test_strange_names_are_printed(tree):
    result = command("demo", (tree / "d0").rename(tree / os.fsdecode(b"[bold]\xff\n")))
    assert result.returncode == 0, result.stderr
    assert "[bold]\\udcff\\n" in result.stdout


def test_long_names_leave_the_tables_as_wide_as_the_terminal(tmp_path):
    path = tmp_path / ("n" * 250)
    path.write_bytes(content(PAGE))
    result = command("demo", path)
    assert result.returncode == 0, result.stderr
    assert row(result.stdout, "one array")[:2] == ["1", "page"]
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if "Files under" not in line)


def test_missing_path(tmp_path):
    result = command("demo", tmp_path / "missing")
    assert result.returncode == 2
    assert one_line_error(result) == f"{tmp_path / 'missing'}: No such file or directory"


def test_path_that_is_no_file():
    result = command("demo", "/dev/null")
    assert result.returncode == 2
    assert one_line_error(result) == "/dev/null: neither a directory nor a regular file"


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("much", "--limit: 'much' is no size: expected bytes or a string like '256 MiB'"),
        ("1.0001 kB", "--limit: '1.0001 kB' is no whole number of bytes"),
        ("-5", "--limit: '-5' is no size"),
        ("4095", "--limit 4095: the arena needs at least one frame of 4096 bytes"),
        ("4 KiB", "--limit 4 KiB: the arena of 4096 bytes can't hold its own tables"),
        ("32 KiB", "--limit 32 KiB: the arena of 32768 bytes has no usable frame"),
        ("100 TiB", "--limit 100 TiB: 26843545600 frames are too many"),
    ],
)
def test_bad_limit(tree, limit, message):
    result = command("demo", tree, f"--limit={limit}")
    assert result.returncode == 2
    assert one_line_error(result).startswith(message)


def test_limit_is_rounded_down_to_whole_frames(tree):
    result = command("demo", tree, "--limit", SMALL + PAGE - 1)
    assert result.returncode == 0, result.stderr
    assert f"{SMALL:,} bytes" in result.stdout


def test_version_and_help():
    assert command("--version").stdout == f"pageframe {cli.version('pageframe')}\n"
    assert "demo" in command("--help").stdout
    assert "--limit" in command("demo", "--help").stdout
    assert command("nonsense").returncode == 2


def test_installed_script(tree):
    script = Path(sys.executable).with_name("pageframe")
    result = subprocess.run([script, "demo", tree], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# -- the picture -------------------------------------------------------------------------------


def read_png(path):
    from matplotlib.image import imread

    pixels = imread(path)[:, :, :3]
    return np.round(pixels * 255).astype(np.uint8)


def pixels_of(image, colour):
    return int(np.count_nonzero((image == np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)).all(axis=2)))


def test_picture_shows_every_frame(tree, tmp_path):
    path = tmp_path / "arena.png"
    result = command("demo", tree, "--limit", SMALL, "--picture", path)
    assert result.returncode == 0, result.stderr
    assert f"Picture of the arena: {path}" in result.stdout
    image = read_png(path)
    cell = (picture.GRID // 4 - 1) ** 2  # 4 by 4 frames, each with a line beside it
    assert cell * 8 <= pixels_of(image, arena_map.BLUE) <= cell * 8 + 400  # and a swatch in the legend
    assert image.shape[0] > picture.GRID
    assert image.shape[1] > picture.GRID


def test_missing_matplotlib(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(picture.importlib.util, "find_spec", lambda name: None)
    result = invoke("demo", tree, "--picture", tmp_path / "arena.png")
    assert result.exit_code == 2
    assert one_line_error(result) == "--picture: a picture needs matplotlib: pip install 'pageframe[plot]'"


def test_picture_that_can_not_be_saved(tree, tmp_path):
    result = command("demo", tree, "--picture", tmp_path / "missing" / "arena.png")
    assert result.returncode == 2
    assert re.match(r".*arena\.png: there is no directory .*missing$", one_line_error(result))
    assert one_line_error(command("demo", tree, "--picture", tmp_path)) == f"{tmp_path}: Is a directory"
    full = command("demo", tree, "--picture", "/dev/full")
    assert full.returncode == 2
    assert full.stderr.splitlines()[-1] == "pageframe: error: /dev/full: No space left on device"
    assert row(full.stdout, "mismatches") == ["0", "0"]
