# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How names and figures are written for people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def shown(name: Path | str) -> str:
    """Return a path, or a name that others have given, as it can be printed on one line."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def size_text(size: int) -> str:
    """Return a number of bytes in the largest unit in which it takes few digits."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def counted(things: int, one: str) -> str:
    """Return a number of things in words."""
    return f"1 {one}" if things == 1 else f"{things:,} {one}s"


def percent(part: float, whole: float) -> str:
    """Return a part of a whole in words."""
    return f"{part / whole:.1%}" if whole else "0.0%"


def age_text(seconds: float) -> str:
    """Return a time in its two largest units."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = int(seconds)
    first = next(i for i, (_, size) in enumerate(UNITS) if whole >= size)
    words = []
    for unit, size in UNITS[first : first + 2]:
        words.append(f"{whole // size} {unit}")
        whole %= size
    return " ".join(words)


def since(moment: float) -> float:
    """Return how long ago a moment was, in seconds."""
    return max(0.0, time.time() - moment)
