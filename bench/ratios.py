# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Ratios that hold on a machine whose speed changes from one moment to the next.

Every round times each subject for about a millisecond, one after another, along
with `object()` and with one atomic add and subtract in C.  A figure is the median
over the rounds of the ratio within the round.

Run by the benchmarks, and alone as ``python -m bench.ratios``.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.subjects import OBJECT, SUBJECTS, Subject, Workbench

if TYPE_CHECKING:
    from timeit import Timer
    from types import ModuleType

ROUNDS = 150
SLICE = 0.001  # seconds for one subject in one round
PAIR = "atomic add + subtract in C"
RESULT = Path(__file__).parents[1] / "build" / "bench.json"

Row = dict[str, Any]


def calibrated(timer: Timer) -> int:
    """How many times a statement runs in about one slice."""
    n = 1
    while (time := min(timer.repeat(3, n))) * 4 < SLICE:
        n *= 2
    return max(1, round(n * SLICE / time))


def measure(bench: Workbench, probe: ModuleType, rounds: int = ROUNDS) -> list[Row]:
    """Return a row for each subject: ns, and multiples of object() and of an atomic pair."""
    timers = [bench.timer(subject) for subject in SUBJECTS]
    counts = [calibrated(timer) for timer in timers]
    pairs = round(SLICE * 1e9 / probe.atomic_pair_ns(100_000))
    ns: dict[str, list[float]] = {name: [] for name in [*(s.name for s in SUBJECTS), PAIR]}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            # Begin elsewhere in every round, so that none always follows the same one.
            turn = number % len(SUBJECTS)
            for i in [*range(turn, len(SUBJECTS)), *range(turn)]:
                subject = SUBJECTS[i]
                time = timers[i].timeit(counts[i])
                ns[subject.name].append(time * 1e9 / counts[i] / subject.size)
                if subject.name == OBJECT:
                    ns[PAIR].append(probe.atomic_pair_ns(pairs, 1))
    finally:
        if collecting:
            gc.enable()
    return [row(subject, ns) for subject in [*SUBJECTS, Subject(PAIR, "", "")]]


def row(subject: Subject, ns: dict[str, list[float]]) -> Row:
    def multiple_of(other: str) -> float:
        return median(a / b for a, b in zip(ns[subject.name], ns[other], strict=True))

    in_object, in_pair = multiple_of(OBJECT), multiple_of(PAIR)
    ratio = in_pair if subject.unit == "pair" else in_object
    return {
        "name": subject.name,
        "per": "frame" if subject.group == "many frames" else "operation",
        "ns": median(ns[subject.name]),
        "object": in_object,
        "pair": in_pair,
        "target": subject.target,
        "unit": subject.unit,
        "met": None if subject.target is None else ratio <= subject.target,
    }


def table(rows: list[Row]) -> list[str]:
    """The rows as lines of text."""
    lines = [f"{'':28} {'per':9} {'ns':>8} {'x object()':>10} {'x pair':>8}   target"]
    for r in rows:
        line = f"{r['name']:28} {r['per']:9} {r['ns']:8.2f} {r['object']:10.3f} {r['pair']:8.3f}"
        if r["target"] is not None:
            unit = "pair" if r["unit"] == "pair" else OBJECT
            line += f"   <= {r['target']} {unit:8}  {'met' if r['met'] else 'not met'}"
        lines.append(line)
    return lines


def save(rows: list[Row]) -> None:
    """Write the rows to build/bench.json."""
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")


def main() -> None:
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from cimport.build import load

    bench = Workbench()
    rows = measure(bench, load("probe"))
    bench.close()
    save(rows)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
