# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What must hold after a kill."""

from pathlib import Path

from pageframe import REF_COUNT_UNIQUE
from steps.patterns import Holding, references


def check_held(mem, holdings: list[Holding], slack: int) -> None:
    """All that is held is intact, and no count is lower than it should be, nor much higher."""
    for holding in holdings:
        holding.check()
    counts = mem.slots["count"]
    alone = {life.paddr for holding in holdings if holding.alone for life in holding.lives}
    higher = 0
    for paddr, held in references(holdings).items():
        count = int(counts[paddr // mem.page_size])
        if paddr in alone:
            assert (count, held) == (REF_COUNT_UNIQUE, 1), f"{paddr:#x} has one owner, its count is {count}"
        else:
            assert held <= count < 2**62, f"{paddr:#x} is held {held} times, its count is {count}"
            higher += count > held
    assert higher <= slack, f"{higher} counts are too high, {slack} may be"


def check_audit(mem, killed: int):
    """At most one frame a killed thread is held too long, and nothing else is wrong."""
    report = mem.audit()
    wrong = len(report.leaked) + len(report.miscounted)
    assert report.damaged == (), report
    assert wrong <= killed, f"{wrong} frames are held too long by {killed} killed threads: {report}"
    return report


def check_repaired(mem, holdings: list[Holding]) -> None:
    """Audit returns what is held too long: nothing is left, and counts are exact."""
    report = mem.audit(repair=True)
    assert report.quiet, f"an operation is in progress: {report}"
    assert report.repaired, report
    assert report.damaged == (), report
    report = mem.audit()
    assert report.clean, report
    assert (report.tickets, report.orphans, report.busy) == (0, 0, 0), report
    assert report.quiet, report
    check_held(mem, holdings, 0)
    held = references(holdings)
    assert mem.used_frames == len(held), f"{mem.used_frames} frames used, {len(held)} held"


def check_all_free_frames_work(mem) -> None:
    """Every free frame can be allocated, and is zero if that is asked for."""
    count = mem.free_frames
    with mem.alloc_frames(count) as frames:
        assert mem.free_frames == 0
        zeros = bytes(mem.page_size)
        for frame in frames:
            with memoryview(frame) as view:
                assert view == zeros, f"{frame!r} is not zero"
        del frame
    assert mem.free_frames == count


def check_dropped_once(log: Path) -> None:
    """No on_drop has run twice for one life."""
    numbers = log.read_text().split()
    assert len(numbers) == len(set(numbers)), f"on_drop ran twice: {sorted(numbers)}"
