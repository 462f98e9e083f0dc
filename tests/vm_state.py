# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the tests of mapped frames share: the state that a refused operation must leave as it was."""

import mmap
from contextlib import contextmanager
from pathlib import Path

import pageframe as pf

PAGE = 4096
READ_ONLY = pf.PageProperty(write=False)
NOTHING = pf.PageProperty(read=False, write=False)


def addresses(base, size):
    """Return what the system has mapped from base on: (start, stop, flags, offset) of each mapping."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, flags, offset = line.split()[:3]
        start, stop = (int(word, 16) for word in where.split("-"))
        if start < base + size and base < stop:
            found.append((max(start, base) - base, min(stop, base + size) - base, flags, int(offset, 16)))
    return found


def flags_at(vm, va):
    """Return what the system allows at an address of a space, such as "rw-s"."""
    return next(flags for start, stop, flags, _ in addresses(vm.base, vm.size) if start <= va < stop)


def shown(vm):
    """Return what a space shows, page by page, as a cursor sees it: {va: (paddr, prop, copy_on_write)}."""
    pages = {}
    with vm.cursor() as cursor:
        while cursor.find_next() is not None:
            item = cursor.query()
            with item.frame as frame:
                for at in range(0, item.size, vm.page_size):
                    pages[item.va + at] = frame.start_paddr + at, item.prop, item.copy_on_write
            if item.va + item.size == vm.size:
                break
            cursor.jump(item.va + item.size)
    return pages


def state(mem, *spaces, cursors=()):
    """Return all that a refused operation must not change."""
    stats = mem.stats()
    return (
        (stats.free_frames, stats.references, stats.unique_frames, stats.raw_references),
        stats.frames_by_type,
        pf.map_budget(),
        [(vm.table_frames, vm.kernel_mappings, addresses(vm.base, vm.size)) for vm in spaces],
        [(cursor.virt_addr, cursor.range) for cursor in cursors],
    )


@contextmanager
def unchanged(mem, *spaces, cursors=()):
    """Assert that what is done here changes nothing, whatever it raises."""
    before = state(mem, *spaces, cursors=cursors)
    try:
        yield
    finally:
        after = state(mem, *spaces, cursors=cursors)
        assert after == before, f"{before} has become {after}"


def assert_true_to_kernel(vm):
    """Assert that the system shows what the page table says, in as many mappings as the space counts."""
    pages = {}
    for start, stop, flags, offset in addresses(vm.base, vm.size):
        if flags[3] == "s":
            for va in range(start, stop, mmap.PAGESIZE):
                pages[va] = offset + va - start, flags[:3]
    expected = {}
    for va, (paddr, prop, _) in shown(vm).items():
        flags = "".join(
            letter if allowed else "-"
            for letter, allowed in zip("rwx", (prop.read, prop.write, prop.execute), strict=True)
        )
        for at in range(0, vm.page_size, mmap.PAGESIZE):
            expected[va + at] = paddr + at, flags
    assert pages == expected
    assert len(addresses(vm.base, vm.size)) <= vm.kernel_mappings
