# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Memory regions, and the early allocator that places the arena's own tables.

Before an arena has slots and an allocator, somebody must find room for them.
The early allocator only ever moves forward through the usable regions; what it
has passed becomes frames of the arena's own, what lies beyond is the free
memory of the real allocator.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Literal, NamedTuple, SupportsIndex, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Kind: TypeAlias = Literal["usable", "reserved", "bad"]
KINDS: tuple[Kind, ...] = ("usable", "reserved", "bad")

_UNITS = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "kib": 1 << 10,
    "m": 1 << 20,
    "mib": 1 << 20,
    "g": 1 << 30,
    "gib": 1 << 30,
    "t": 1 << 40,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}


def exact_int(value: SupportsIndex) -> int:
    """Return an integer that is just that: a subclass of int may compute as it likes."""
    return int.__index__(operator.index(value))


def parse_size(size: int | str) -> int:
    """Return a number of bytes, given as such or in words.

    Parameters
    ----------
    size
        Bytes, or a string such as ``"256 MiB"``, ``"64K"`` or ``"1.5 GiB"``.
        K, M, G, T and KiB, MiB, … are powers of 1024; kB, MB, … of 1000.

    Raises
    ------
    TypeError
        If size is neither an integer nor a string.
    ValueError
        If the string is no size, or is no whole number of bytes.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+)(?:\.(\d+))?\s*([a-zA-Z]*)\s*", size)
        unit = _UNITS.get(match[3].lower()) if match else None
        if match is None or unit is None:
            raise ValueError(f"{size!r} is no size: expected bytes or a string like '256 MiB'")
        fraction = match[2] or ""
        scale: int = 10 ** len(fraction)
        scaled, rest = divmod(int(match[1] + fraction) * unit, scale)
        if rest:
            raise ValueError(f"{size!r} is no whole number of bytes")
        return scaled
    if not isinstance(size, SupportsIndex) or isinstance(size, bool):
        raise TypeError(f"size must be an int or a string, not {type(size).__name__}")
    return exact_int(size)


class MemoryRegion(NamedTuple):
    """A range of physical addresses and what it can be used for.

    Attributes
    ----------
    start
        First paddr, in bytes; a multiple of the page size.
    size
        Length in bytes; a multiple of the page size.
    kind
        ``"usable"``; ``"reserved"``: set aside, its frames carry
        `ReservedMemoryMeta`; ``"bad"``: its frames carry `UnusableMemoryMeta`.
    """

    start: int
    size: int
    kind: Kind

    @property
    def stop(self) -> int:
        """First paddr past the region."""
        return self.start + self.size


def _exact(region: MemoryRegion) -> MemoryRegion:
    """Return a region of plain integers and a known kind."""
    for kind in KINDS:
        if region.kind == kind:
            return MemoryRegion(exact_int(region.start), exact_int(region.size), kind)
    raise ValueError(f"{region}: kind must be 'usable', 'reserved' or 'bad'")


def cover(
    regions: Iterable[MemoryRegion | tuple[int, int, Kind]] | None, size: int, page_size: int
) -> list[MemoryRegion]:
    """Return regions that cover all of ``0 .. size`` in order, gaps being usable.

    Raises
    ------
    ValueError
        If a region is empty, unaligned, outside, of no known kind, or overlaps another.
    """
    covered: list[MemoryRegion] = []
    end = 0
    given = [_exact(MemoryRegion(*region)) for region in regions or ()]
    for region in sorted(given, key=lambda region: region.start):
        if region.start % page_size or region.size % page_size:
            raise ValueError(f"{region}: start and size must be multiples of the page size {page_size}")
        if region.size <= 0 or region.start < 0 or region.stop > size:
            raise ValueError(f"{region} is empty or not within 0 .. {size:#x}")
        if region.start < end:
            raise ValueError(f"{region} overlaps {covered[-1]}")
        if region.start > end:
            covered.append(MemoryRegion(end, region.start - end, "usable"))
        covered.append(region)
        end = region.stop
    if end < size:
        covered.append(MemoryRegion(end, size - end, "usable"))
    return covered


class EarlyAllocator:
    """Gives memory of the usable regions, in order, and takes none back.

    Parameters
    ----------
    regions
        Regions in the order of their addresses.
    """

    def __init__(self, regions: Iterable[MemoryRegion]) -> None:
        self._usable = [r for r in regions if r.kind == "usable"]
        self._tails = [r.start for r in self._usable]

    def alloc(self, size: int, align: int) -> int:
        """Return the paddr of `size` fresh bytes.

        Raises
        ------
        MemoryError
            If no usable region has that much room left.
        """
        for i, region in enumerate(self._usable):
            start = -(-self._tails[i] // align) * align
            if start + size <= region.stop:
                self._tails[i] = start + size
                return start
        raise MemoryError(f"no usable region has {size} bytes left")

    def allocated(self, page_size: int) -> list[tuple[int, int]]:
        """Return the ranges of whole pages given out so far, as (start, stop)."""
        return [
            (region.start, -(-tail // page_size) * page_size)
            for region, tail in zip(self._usable, self._tails, strict=True)
            if tail > region.start
        ]
