# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Explores all scenarios, and those with a fault put in; prints what was found and writes it as JSON.

Run as ``python all.py [--only TEXT] [--json FILE]``; exit status 1 if anything must not happen, or a
fault is not found.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.table import Table

from protocol.machine import Violation
from protocol.scenarios import FAULTS, SCENARIOS, run


def explore(name: str, weak: bool, fault: str | None) -> dict:
    """Explore one scenario."""
    began = time.monotonic()
    told = {"scenario": name, "weak": weak, "fault": fault, "violation": None}
    try:
        found = run(SCENARIOS[name], weak, fault)
        told |= {
            "states": found.states, "transitions": found.transitions, "ends": found.ends,
            "kills": found.kills, "deepest": found.deepest, "lost": found.lost, "delayed": found.delayed,
            "steps": sorted(found.steps),
        }  # fmt: skip
    except Violation as error:
        told["violation"] = str(error)
    return told | {"seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the report goes")
    given = parser.parse_args()
    todo = [(name, False, None) for name in SCENARIOS]
    todo += [(name, True, None) for name, scenario in SCENARIOS.items() if scenario.weak_kills is not None]
    todo += [(name, weak, fault) for fault, (name, weak) in FAULTS.items()]
    told = []
    with ProcessPoolExecutor() as pool:
        waiting = [pool.submit(explore, *one) for one in todo if given.only in one[0]]
        for done in as_completed(waiting):
            told.append(done.result())
            print(end=".", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    told.sort(key=lambda one: todo.index((one["scenario"], one["weak"], one["fault"])))
    wrong = [one for one in told if (one["violation"] is None) != (one["fault"] is None)]
    show(told)
    for one in wrong:
        what = f"{one['scenario']}, weak={one['weak']}, fault={one['fault']}"
        print(f"\n{what}: {one['violation'] or 'not found'}")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"ok": not wrong, "explored": told}, indent=1))
    return 1 if wrong else 0


def show(told: list[dict]) -> None:
    table = Table("scenario", "memory", "states", "transitions", "kills", "ends", "late stores", "s")
    sound = [one for one in told if one["fault"] is None and one["violation"] is None]
    for one in sound:
        figures = [f"{one[key]:,}" for key in ("states", "transitions", "kills", "ends", "delayed")]
        table.add_row(one["scenario"], "weak" if one["weak"] else "", *figures, f"{one['seconds']}")
    total = [
        f"{sum(one[key] for one in sound):,}" for key in ("states", "transitions", "kills", "ends", "delayed")
    ]
    table.add_row("all", "", *total, "", style="bold")
    faults = Table("fault put in", "found as")
    for one in told:
        if one["fault"]:
            faults.add_row(one["fault"], (one["violation"] or "NOT FOUND").partition("\n")[0])
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table, faults)


if __name__ == "__main__":
    sys.exit(main())
