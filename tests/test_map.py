# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The map of an arena: its model, and how it looks in terminals, files, figures and notebooks."""

import io
import itertools
import json
import pickle
import re
import subprocess
import sys
import threading
import tracemalloc
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from rich.console import Console
from typer.testing import CliRunner

import pageframe as pf
from other_processes import ArenaFile, Child, file_of, unique_name
from pageframe import cli
from pageframe.observe import arena_map, html, picture, terminal
from pageframe.observe.arena_map import CELLS, RANKED, STYLES, count_kinds, make_categories, take_map
from pageframe.observe.terminal import MapText

PAGE = 4096
SLOT = np.dtype(
    {
        "names": ["count", "generation", "type", "list"],
        "formats": ["u8", "u8", "u4", "u4"],
        "offsets": [0, 8, 16, 20],
        "itemsize": 64,
    }
)


class MapPage(pf.UntypedFrameMeta):
    inode: pf.u64
    tag: pf.bytes_[16]


class MapNode(pf.Link, pf.FrameMeta):
    pass


def free_slots(frames):
    slots = np.zeros(frames, SLOT)
    slots["count"] = pf.REF_COUNT_UNUSED
    return slots


def map_of(slots, types, by="state", names=None, free_runs=(1,), cells=CELLS):
    """Return the map of slots that lie in no arena."""
    kinds = count_kinds(slots, types, by, cells=cells)
    categories, shown, used = make_categories(kinds, by, names or {})
    return arena_map.ArenaMap(
        by, len(slots) * PAGE, PAGE, len(slots), kinds.frames_per_cell, categories, shown, used,
        free_runs, 1, 0.5,
    )  # fmt: skip


def counts(taken):
    return {category.name: category.frames for category in taken.categories}


def name_at(taken, frame):
    return taken.categories[taken.cells[frame // taken.frames_per_cell]].name


def shown_text(taken, width=80, **options):
    file = io.StringIO()
    Console(file=file, width=width, **options).print(MapText(taken))
    return file.getvalue()


def invoke(*args, columns=80):
    return CliRunner().invoke(cli.app, ["map", *map(str, args)], env={"COLUMNS": str(columns)})


@pytest.fixture
def busy_arena():
    """Return an arena of 1,024 frames in all states but those that pass, and what it holds."""
    mem = pf.PhysicalMemory("4 MiB", regions=[(1 << 20, 8 * PAGE, "reserved"), (2 << 20, 2 * PAGE, "bad")])
    unique = mem.alloc_frame().try_unique()
    listed = pf.LinkedList(mem, MapNode)
    for _ in range(5):
        listed.push_back(mem.alloc_frame(MapNode()).try_unique())
    handles = [mem.alloc_frames(100), mem.alloc_segment(30, MapPage(inode=7)), unique, listed]
    yield mem, handles
    for handle in handles:
        handle.drop()
    mem.close()  # no view of the slots was left


@pytest.fixture
def named():
    """Return an arena with a name, and the name."""
    with unique_name() as name, pf.PhysicalMemory.create("4 MiB", name) as mem:
        yield mem, name


# -- the model ---------------------------------------------------------------------------------


def test_a_map_counts_what_the_census_counts(busy_arena):
    mem, (_, segment, unique, _) = busy_arena
    stats = mem.stats()
    taken = take_map(mem)
    own = {"tables of the arena": mem.reserved_frames - 10, "reserved region": 8, "bad region": 2}
    assert counts(taken) == {
        **{state: sum(types.values()) for state, types in stats.frames_by_state.items()},
        **own,
        "free": stats.free_frames,
    }
    assert (taken.frames_per_cell, len(taken.cells)) == (1, 1024)
    assert name_at(taken, unique.start_paddr // PAGE) == "unique"
    assert name_at(taken, segment.start_paddr // PAGE) == "shared"
    assert name_at(taken, (1 << 20) // PAGE) == "reserved region"
    by_type = counts(take_map(mem, "type"))
    by_full_name = {name.rpartition(".")[2]: frames for name, frames in stats.frames_by_type.items()}
    assert by_full_name["MetaPageMeta"] == own["tables of the arena"]
    assert all(by_type[name] == by_full_name[name] for name in ("UntypedFrameMeta", "MapPage", "MapNode"))
    assert by_type == {"UntypedFrameMeta": 101, "MapPage": 30, "MapNode": 5, **own, "free": stats.free_frames}
    assert taken.free_runs == stats.free_runs
    assert taken.fragmentation == stats.fragmentation


@pytest.mark.parametrize("cells", [1, 2, 7, 100, 1023, 1024, 5000])
def test_cells_cover_all_frames_once_whatever_their_number(busy_arena, cells):
    mem, _ = busy_arena
    taken = take_map(mem, cells=cells)
    assert len(taken.cells) <= cells
    assert taken.cell_frames.sum() == 1024
    assert set(taken.cell_frames[:-1].tolist()) <= {taken.frames_per_cell}
    assert taken.used.sum() == 1024 - mem.free_frames
    assert counts(taken) == counts(take_map(mem))


def test_a_single_used_frame_among_free_ones_is_seen():
    slots = free_slots(256 * 4096)
    slots["count"][123 * 4096 + 77] = 1
    taken = map_of(slots, {}, cells=256)
    assert taken.frames_per_cell == 4096
    assert np.flatnonzero(taken.used).tolist() == [123]
    assert name_at(taken, 123 * 4096) == "shared"
    assert name_at(taken, 122 * 4096) == "free"
    paper, ink = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
    pixels = picture.cell_pixels(taken, 6, paper, ink)
    blue = (pixels == np.round(np.array(to_rgb(arena_map.BLUE)) * 255).astype(np.uint8)).all(axis=2)
    assert np.count_nonzero(blue) == 5  # a line of a cell of 5 by 5
    row, column = divmod(123, 16)
    assert blue[row * 6 + 4, column * 6 : column * 6 + 5].all()


def test_a_cell_shows_what_most_of_its_used_frames_are():
    slots = free_slots(256)
    slots["count"][:3] = 1
    slots["count"][3:8] = pf.REF_COUNT_UNIQUE
    slots["list"][7] = 9
    slots["count"][128:130] = 0
    slots["count"][130] = pf.REF_COUNT_UNIQUE - 1
    taken = map_of(slots, {}, cells=2)
    assert counts(taken) == {"unique": 4, "shared": 3, "in a list": 1, "busy": 2, "orphan": 1, "free": 245}
    assert [name_at(taken, 0), name_at(taken, 128)] == ["unique", "busy"]
    assert taken.used.tolist() == [8, 3]


def test_an_arena_that_is_full_has_no_free_cell():
    slots = free_slots(64)
    slots["count"] = 1
    taken = map_of(slots, {})
    assert counts(taken) == {"shared": 64}
    assert taken.free_frames == 0
    assert "No frame is free." in shown_text(taken)
    assert "free" not in counts(taken)


def test_an_arena_that_is_empty_has_free_cells_only():
    assert counts(map_of(free_slots(64), {})) == {"free": 64}


def test_types_beyond_the_most_frequent_are_counted_together():
    slots = free_slots(1000)
    types = {number: type(f"Kind{number}", (pf.FrameMeta,), {}) for number in range(1, 9)}
    at = 0
    for number in types:
        slots["count"][at : at + number] = 1
        slots["type"][at : at + number] = number
        at += number
    taken = map_of(slots, types, "type", {number: cls.__name__ for number, cls in types.items()})
    assert counts(taken) == {
        **{f"Kind{number}": number for number in (8, 7, 6, 5, 4)},
        "other (3 types)": 6,
        "free": 1000 - 36,
    }
    styles = [category.style for category in taken.categories]
    assert len({style.colour for style in styles}) == len({style.full for style in styles}) == len(styles)


def test_damaged_type_numbers_are_counted_and_not_crashed_on(named):
    mem, name = named
    with mem.alloc_segment(4, MapPage()) as segment:
        file = ArenaFile(mem, file_of(name))
        at = file.tables["slots"][0] + segment.start_paddr // PAGE * 64 + 16
        for number in (0, 99, 2**32 - 1):
            file.map[at : at + 4] = number.to_bytes(4, "little")
            assert counts(take_map(mem, "type"))["MapPage"] == 3
            assert counts(take_map(mem, "type"))["none"] == 1
            assert counts(take_map(mem))["shared"] == 4
            assert counts(take_map(mem, "holder"))["free"] == mem.free_frames
        known = next(number for number, cls in mem.types.items() if cls is MapPage)
        file.map[at : at + 4] = known.to_bytes(4, "little")
        file.map.close()


def test_ten_million_frames_take_little_time_and_memory():
    slots = free_slots(10_000_000)
    slots["count"][1_000_000:4_000_000] = 1
    slots["count"][9_000_000] = pf.REF_COUNT_UNIQUE
    tracemalloc.start()
    taken = map_of(slots, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20  # a tenth of the slots would be 64 MB
    assert counts(taken) == {"shared": 3_000_000, "unique": 1, "free": 6_999_999}
    assert (taken.frames_per_cell, len(taken.cells)) == (1024, 9766)
    assert name_at(taken, 9_000_000) == "unique"
    assert len(shown_text(map_of(slots, {}, cells=64 * terminal.ROWS)).splitlines()) < 40


def test_slots_of_free_frames_are_not_read(named):
    """Reading them would give them memory, and an arena has many."""
    with unique_name() as name, pf.PhysicalMemory.create("1 GiB", name):
        before = file_of(name).stat().st_blocks
        with pf.ArenaView(name) as view:
            for by in ("state", "type", "holder"):
                take_map(view, by)
        assert file_of(name).stat().st_blocks - before < 64  # of 512 bytes; the slots have 32,768


def test_by_holder_tells_processes_apart(named):
    mem, name = named
    mine = mem.alloc_frames(20)
    script = """
        mem = PhysicalMemory.attach(NAME)
        both = Frame.from_in_use(mem, int(ARGS[0]))
        own = mem.alloc_segment(7)
        tell(own.start_paddr)
        wait()
        own.drop(); both.drop(); mem.close()
    """
    shared = int(mine.paddrs[3])
    with Child(script, name, shared) as child:
        theirs = int(child.hear())
        with pf.ArenaView(name) as view:
            taken = take_map(view, "holder")
        found = counts(taken)
        (me,) = [n for n in found if n.endswith(f", pid {mem.clients[0].pid}")]
        (they,) = [n for n in found if n.endswith(f", pid {child.pid}")]
        assert (found[me], found[they], found["several processes"]) == (19, 7, 1)
        assert [name_at(taken, paddr // PAGE) for paddr in (mine.paddrs[0], theirs, shared)] == [
            me,
            they,
            "several processes",
        ]
        child.go_on()
        child.finish()
    mine.drop()


def test_frames_of_a_message_are_no_process_s(named):
    mem, _ = named
    with mem.alloc_segment(3) as segment:
        message = pickle.dumps(segment)
    assert counts(take_map(mem, "holder"))["no process"] == 3
    pickle.loads(message).drop()


def test_private_arenas_have_no_map_by_holder(mem):
    with pytest.raises(TypeError, match="shared arenas"):
        take_map(mem, "holder")
    with pytest.raises(ValueError, match="state, type and holder"):
        take_map(mem, "colour")


def test_a_map_is_taken_while_others_go_on():
    with pf.PhysicalMemory("8 MiB") as mem:
        end = threading.Event()

        def churn():
            while not end.is_set():
                mem.alloc_frames(200, MapPage()).drop()

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for by in ("state", "type") * 100:
                taken = take_map(mem, by, cells=300)
                assert sum(counts(taken).values()) == 2048
                assert taken.used.sum() == 2048 - taken.free_frames
        finally:
            end.set()
            thread.join(60)
        assert not thread.is_alive()


# -- colours -----------------------------------------------------------------------------------

# Machado, Oliveira, Fernandes: A Physiologically-based Model for Simulation of Color Vision
# Deficiency, IEEE TVCG 15 (6), 2009; severity 1.0, for linear RGB:
# https://www.inf.ufrgs.br/~oliveira/pubs_files/CVD_Simulation/CVD_Simulation.html
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
COLOURS = (
    arena_map.BLUE,
    arena_map.GREEN,
    arena_map.PURPLE,
    arena_map.VERMILLION,
    arena_map.ORANGE,
    arena_map.SKY,
    arena_map.YELLOW,
)


def linear(colour):
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    return linear(colour) @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    """Return the contrast ratio of WCAG 2."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def lab(rgb):
    """Return CIE L*a*b* (D65) of linear RGB."""
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def least_distance(colours, vision):
    seen = [lab(VISIONS[vision] @ linear(colour)) for colour in colours]
    return min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2))


@pytest.mark.parametrize("background", ["#FFFFFF", "#000000"])
def test_glyphs_have_contrast_on_light_and_dark(background):
    for colour in (*terminal.COLOURS.values(), terminal.GREY):
        assert contrast(colour, background) >= 3, colour


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_told_apart(vision):
    assert least_distance(COLOURS, vision) >= 16
    assert [terminal.COLOURS[colour] for colour in COLOURS[:4]] == list(COLOURS[:4])
    assert least_distance(COLOURS[:4], vision) >= 17


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("theme", [picture.LIGHT, picture.DARK], ids=["light", "dark"])
def test_colours_and_greys_of_pictures_are_told_apart(vision, theme):
    paper, ink = (to_rgb(theme[name]) for name in ("paper", "ink"))
    used = [*STYLES.values(), ("other", arena_map.OTHER_STYLE)]
    greys = [picture.paint(style, paper, ink) for _, style in used if not isinstance(style.colour, str)]
    assert len(greys) == 5
    assert least_distance(greys, vision) >= 10
    free = picture.paint(STYLES[arena_map.FREE][1], paper, ink)
    for colour in COLOURS:
        assert least_distance([colour, free], vision) >= 20


def test_glyphs_of_a_map_differ():
    state = [style for _, style in STYLES.values()]
    apart = [*RANKED, arena_map.OTHER_STYLE, arena_map.SEVERAL_STYLE, arena_map.NOBODY_STYLE]
    apart += [
        STYLES[kind][1] for kind in (arena_map.TABLES, arena_map.RESERVED, arena_map.BAD, arena_map.FREE)
    ]
    for styles in (state, apart):
        for part in ("full", "letters", "colour"):
            assert len({getattr(style, part) for style in styles}) == len(styles)


# -- the terminal ------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["state", "type"])
def test_text_at_80_columns_without_colour_shows_every_frame(busy_arena, by):
    mem, _ = busy_arena
    taken = take_map(mem, by, cells=64 * terminal.ROWS)
    text = shown_text(taken)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split()[-1] for line in text.splitlines() if line.strip().startswith("0x")]
    assert [len(row) for row in rows] == [64] * 16
    cells = "".join(rows)
    for category in taken.categories:
        assert cells.count(category.style.full) == category.frames
        assert any(
            line.split()[0] == category.style.full
            and category.label in line
            and f"{category.frames:,}" in line
            for line in text.splitlines()
            if line
        )
    assert f"Fragmentation {mem.stats().fragmentation:.1%}" in text


def test_cells_that_are_less_than_half_used_are_hollow():
    slots = free_slots(64 * terminal.ROWS * 8)
    slots["count"][:8] = 1
    slots["count"][8:12] = 1
    slots["count"][16:19] = 1
    text = shown_text(map_of(slots, {}, cells=64 * terminal.ROWS))
    assert "0x0 ■■□···" in text
    assert max(map(len, text.splitlines())) <= 80


def test_text_fits_narrow_and_wide_terminals(busy_arena):
    mem, _ = busy_arena
    for width in (30, 40, 80, 133, 200):
        cells = terminal.ROWS * terminal.row_cells(mem.size, width)
        lines = shown_text(take_map(mem, cells=cells), width).splitlines()
        assert max(map(len, lines)) <= width
        assert len([line for line in lines if line.strip().startswith("0x")]) <= terminal.ROWS


def test_ascii_terminals_get_letters(busy_arena):
    mem, _ = busy_arena
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    Console(file=file, width=80).print(MapText(take_map(mem, cells=64 * terminal.ROWS)))
    file.seek(0)
    text = file.read()
    assert "S  shared" in text
    assert "SSSS" in text


def test_names_of_others_are_shown_printable():
    slots = free_slots(4)
    slots["count"][0], slots["type"][0] = 1, 1
    text = shown_text(map_of(slots, {1: pf.UntypedFrameMeta}, "type", {1: "a\x1b[31m[red]b"}))
    assert "\x1b" not in text
    assert "a\\x1b[31m[red]b" in text


# -- the command -------------------------------------------------------------------------------


def test_command_shows_an_arena_of_another_process(named):
    mem, name = named
    with mem.alloc_frames(200):
        command = [sys.executable, "-m", "pageframe.cli", "map", name, "--by", "holder"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "200" in result.stdout
    assert f"pid {mem.clients[0].pid}" in result.stdout
    assert len(mem.clients) == 1


def test_json_is_the_map(named):
    mem, name = named
    with mem.alloc_frames(200):
        result = invoke(name, "--json", "--by=type")
        stats = mem.stats()
    found = json.loads(result.stdout)
    assert sum(length for length, _, _ in found["cells"]) == 1024
    legend = {entry["category"]: entry["frames"] for entry in found["legend"]}
    assert legend["UntypedFrameMeta"] == 200
    assert legend["free"] == stats.free_frames
    by_category = [0] * len(legend)
    for length, category, used in found["cells"]:
        assert used == (found["legend"][category]["category"] != "free")
        by_category[category] += length
    assert by_category == list(legend.values())
    assert sum(entry["share"] for entry in found["legend"]) == pytest.approx(1)
    assert found["free_runs"] == list(stats.free_runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "map.jpg"], "map.jpg: a picture is saved as .png or .svg"),
        (["-o", "map"], "map: a picture is saved as .png or .svg"),
        (["-o", "/missing/map.png"], "/missing/map.png: No such file or directory"),
        (["-o", "map.png", "--json"], "--json and --output: one of them"),
    ],
)
def test_output_that_can_not_be_written_is_told_in_a_line(named, arguments, message):
    result = invoke(named[1], *arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"pageframe: error: {message}"]


def test_missing_arena_and_missing_matplotlib(named, monkeypatch):
    result = invoke("test-there-is-none")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    monkeypatch.setattr(picture.importlib.util, "find_spec", lambda name: None)
    result = invoke(named[1], "-o", "map.png")
    assert result.stderr == (
        "pageframe: error: --output: a picture needs matplotlib: pip install 'pageframe[plot]'\n"
    )
    with pytest.raises(ImportError, match="plot"):
        named[0].plot()


# -- files -------------------------------------------------------------------------------------


def read_png(path):
    from matplotlib.image import imread

    return np.round(imread(path)[:, :, :3] * 255).astype(np.uint8)


@pytest.mark.parametrize("dark", [False, True])
def test_png_has_the_colours_of_the_frames(named, tmp_path, dark):
    mem, name = named
    path = tmp_path / "map.PNG"
    with mem.alloc_segment(40) as segment, mem.alloc_frame().try_unique() as unique:
        result = invoke(name, "-o", path, "--dark" if dark else "--light")
        assert (result.exit_code, result.output) == (0, "")
        image = read_png(path)
        scale = picture.GRID // 32
        theme = picture.DARK if dark else picture.LIGHT
        paper, ink = (to_rgb(theme[part]) for part in ("paper", "ink"))
        for paddr, kind in (
            (0, arena_map.TABLES),
            (segment.start_paddr, arena_map.SHARED),
            (segment.end_paddr - PAGE, arena_map.SHARED),
            (unique.start_paddr, arena_map.UNIQUE),
            (mem.size - PAGE, arena_map.FREE),
        ):
            row, column = divmod(paddr // PAGE, 32)
            pixel = image[picture.TOP + row * scale + scale // 2, picture.LEFT + column * scale + scale // 2]
            expected = np.round(np.array(picture.paint(STYLES[kind][1], paper, ink)) * 255)
            assert pixel.tolist() == expected.tolist(), kind
        assert image[1, 1].tolist() == np.round(np.array(paper) * 255).tolist()


def test_svg_has_its_legend_as_text(busy_arena, tmp_path):
    mem, _ = busy_arena
    taken = take_map(mem)
    for dark in (False, True):
        path = tmp_path / "map.svg"
        picture.draw_map(taken, path, dark=dark)
        root = ElementTree.parse(path).getroot()
        texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
        for category in taken.categories:
            assert any(text.startswith(f"{category.label}: {category.frames:,} (") for text in texts)
        assert any("Fragmentation" in text for text in texts)
        assert path.stat().st_size < 100_000


def test_picture_of_ten_million_frames_is_small(tmp_path):
    slots = free_slots(10_000_000)
    rng = np.random.default_rng(5)
    for start in rng.integers(0, len(slots), 3000).tolist():
        part = slots[start : start + int(rng.integers(1, 3000))]
        part["count"], part["type"] = 1, start % 7
    taken = map_of(slots, dict.fromkeys(range(1, 8), pf.UntypedFrameMeta), "type", free_runs=(1,) * 24)
    for name in ("map.png", "map.svg"):
        picture.draw_map(taken, tmp_path / name)
        assert (tmp_path / name).stat().st_size < 1_000_000


@pytest.mark.parametrize("cells", [1, 2, 15, 16, 17, 4097, 16384])
def test_grid_is_nearly_square(cells):
    rows, columns = picture.grid_shape(cells)
    assert (rows - 1) * columns < cells <= rows * columns
    assert rows <= columns <= rows + 32


@pytest.mark.parametrize("size", ["64 KiB", "256 MiB"])
def test_nothing_in_a_picture_overlaps_or_is_cut_off(size):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    with pf.PhysicalMemory(size) as mem:
        kinds = [type(f"Kind{i}" + "x" * 40, (pf.FrameMeta,), {}) for i in range(7)]
        frames = [mem.alloc_frame(kind) for kind in kinds]
        figure = Figure()
        FigureCanvasAgg(figure)
        picture.lay_out(figure, take_map(mem, "type"))
        figure.canvas.draw()
        boxes = [
            (text.get_text(), text.get_window_extent())
            for text in figure.findobj(Text)
            if text.get_text() and text.get_visible()
        ]
        for frame in frames:
            frame.drop()
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), (one, other)


# -- figures of the user's ---------------------------------------------------------------------


def test_plot_draws_into_the_axes_it_is_given(busy_arena):
    from matplotlib import rc_context, style
    from matplotlib.figure import Figure

    mem, _ = busy_arena
    with rc_context(), style.context("dark_background"):
        figure = Figure()
        left, right = figure.subplots(1, 2)
        assert mem.plot(left) is left
        assert mem.plot(ax=right, by="type") is right
        assert len(figure.axes) == 2
        assert [text.get_text().partition(":")[0] for text in left.get_legend().get_texts()] == list(
            counts(take_map(mem))
        )
        ((image,), (other,)) = left.images, right.images
        free = np.round(0.1 * 255)
        assert (image.get_array() == free).all(axis=2).sum() == 16 * mem.free_frames
        assert image.get_array().shape == other.get_array().shape
        assert left.get_xlabel().startswith("Fragmentation")


def test_plot_makes_a_figure_and_closes_none(busy_arena):
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mem, _ = busy_arena
    backend = mpl.get_backend()
    plt.switch_backend("agg")
    try:
        before = plt.figure()
        axes = mem.plot()
        assert plt.fignum_exists(before.number)
        assert axes.figure is not before
        assert len(axes.figure.axes) == 2
        axes.figure.canvas.draw()
    finally:
        plt.close("all")
        plt.switch_backend(backend)


def test_importing_pageframe_imports_neither_rich_nor_matplotlib():
    script = "import sys, pageframe; print([m for m in ('rich', 'matplotlib') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "[]\n"


# -- reports -----------------------------------------------------------------------------------


def test_report_prints_what_the_census_counts(busy_arena, capsys):
    mem, _ = busy_arena
    stats = mem.stats()
    file = io.StringIO()
    mem.report(file)
    text = file.getvalue()
    for by_type in stats.frames_by_state.values():
        for name, frames in by_type.items():
            (line,) = [line for line in text.splitlines() if line.strip().startswith(name)]
            assert str(frames) in line.split()
    assert f"free {stats.free_frames:,}" in " ".join(text.split())
    assert f"fragmentation {stats.fragmentation:.1%}" in " ".join(text.split())
    mem.report()
    ages = re.compile(r"\d+\.\d s")  # which go on between the two
    assert ages.sub("", capsys.readouterr().out) == ages.sub("", text)


def test_report_of_a_shared_arena_shows_clients_and_messages(named):
    mem, name = named
    with mem.alloc_segment(3) as segment:
        message = pickle.dumps(segment)
    file = io.StringIO()
    mem.report(file)
    text = file.getvalue()
    assert f"Arena {name} of 4 MiB" in text
    assert str(mem.clients[0].pid) in text
    assert "in transit" in text
    pickle.loads(message).drop()


# -- notebooks ---------------------------------------------------------------------------------


class Parsed(HTMLParser):
    """The tags and the text of a piece of HTML, which must be closed as they were opened."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data}\n"


def test_notebooks_show_an_arena(busy_arena):
    mem, _ = busy_arena
    parsed = Parsed(mem._repr_html_())
    assert set(parsed.tags) == {"div", "b", "br", "svg", "rect", "table", "tr", "td"}
    for category in take_map(mem).categories:
        assert category.label in parsed.text
        assert f"{category.frames:,}" in parsed.text


def test_notebooks_show_a_huge_arena_in_little_room():
    slots = free_slots(10_000_000)
    slots["count"][::40_000] = 1
    slots["count"][20_000::40_000] = pf.REF_COUNT_UNIQUE
    svg = html.map_svg(map_of(slots, {}, cells=html.CELLS))
    assert len(svg) < 100 * html.CELLS
    assert len(Parsed(svg).tags) > 100


def test_notebooks_show_segments_and_vectors_with_their_metadata(mem):
    class Tagged(pf.FrameMeta):
        tag: pf.bytes_[16]
        hits: pf.atomic_u32

    for handle in (
        mem.alloc_segment(20, Tagged(tag=b"<script>&")),
        mem.alloc_frames(20, Tagged(tag=b"<script>&")),
    ):
        parsed = Parsed(handle._repr_html_())
        assert set(parsed.tags) == {"div", "b", "table", "tr", "th", "td"}
        assert parsed.text.count("b'<script>&'") == html.ROWS
        assert "20 frames, 80 KiB" in parsed.text
        assert "… 15 more" in parsed.text
        assert {"tag", "hits"} <= set(parsed.text.splitlines())
        with handle[0] as frame:
            assert frame.reference_count == 2  # nothing was kept
        handle.drop()
        assert Parsed(handle._repr_html_()).text.strip() == repr(handle)
    with mem.alloc_segment(2) as segment:
        assert "USegment of 2 frames" in Parsed(segment._repr_html_()).text


def test_notebooks_show_what_is_closed_or_was_never_made():
    mem = pf.PhysicalMemory("1 MiB")
    mem.close()
    for thing in (mem, pf.ArenaView.__new__(pf.ArenaView), pf.FrameVec.__new__(pf.FrameVec)):
        assert Parsed(thing._repr_html_()).text.strip() == repr(thing)
