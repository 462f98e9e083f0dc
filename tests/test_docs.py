# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The documentation: its examples print what they say, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pageframe import Frame, PageTableMeta, PhysicalMemory, Segment, VmSpace

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
EXAMPLES = [
    pytest.param(example, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, example in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S), 1)
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_prints_what_its_comments_say(tmp_path, example):
    """A comment behind a print is what it prints; after a colon it may say more."""
    path = tmp_path / "example.py"
    path.write_text(example)
    result = subprocess.run(
        [sys.executable, "-W", "error", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    expected = re.findall(r"^ *print\(.*\)  # (.+)$", example, re.M)
    assert len(expected) == example.count("print(")
    for line, comment in zip(result.stdout.splitlines(), expected, strict=True):
        assert comment == line or comment.startswith(f"{line}: ")


def test_there_are_examples():
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            name, _, heading = target.partition("#")
            path = page.parent / name if name else page
            assert path.is_file(), target
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
            assert not heading or heading in [h.lower().replace(" ", "-") for h in headings], target


@pytest.mark.parametrize("picture", sorted(ROOT.glob("docs/*.svg")), ids=lambda picture: picture.stem)
def test_pictures_are_shown_and_have_a_background(picture):
    """So that they can be read on a dark page."""
    root = ElementTree.parse(picture).getroot()
    background = root.find("{http://www.w3.org/2000/svg}rect")
    assert [background.get("width"), background.get("height")] == root.get("viewBox").split()[2:]
    assert background.get("fill") == "#fff"
    assert any(f"({picture.name})" in page.read_text() for page in PAGES)


def test_picture_of_page_tables_shows_what_happens():
    page = 4096
    with PhysicalMemory("16 MiB") as mem, VmSpace(mem, "1 GiB") as vm:
        with vm.cursor() as cursor:
            cursor.map(Segment.from_unused(mem, 100 * page, 102 * page))
            cursor.map(Frame.from_unused(mem, 97 * page))
            cursor.jump(4 * page)
            cursor.map(Frame.from_unused(mem, 110 * page))
            cursor.jump(512 * page)
            cursor.map(Segment.from_unused(mem, 512 * page, 1024 * page))
            cursor.jump(2 * page)
            with cursor.query().frame as frame:
                assert frame.start_paddr == 97 * page
            cursor.jump(512 * page)
            assert cursor.query().level == 2
        nodes = mem.meta(PageTableMeta)
        assert sorted(zip(nodes["level"].compressed(), nodes["entries"].compressed(), strict=True)) == [
            (1, 4),
            (2, 2),
            (3, 1),
            (4, 1),
        ]
        del nodes
        lines = Path("/proc/self/maps").read_text().splitlines()
        starts = [int(line.partition("-")[0], 16) for line in lines]
        assert sum(vm.base <= start < vm.base + vm.size for start in starts) == 7
        assert (vm.kernel_mappings, vm.table_frames) == (7, 4)
