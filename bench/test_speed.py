# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What operations on frames cost.  Nothing is asserted about speed."""

import pytest

from bench.ratios import PAIR, measure, save
from bench.subjects import SUBJECTS

SIZE = 10_000  # operations, or frames, in one round of a benchmark


@pytest.mark.parametrize("subject", SUBJECTS, ids=[subject.name for subject in SUBJECTS])
def test_speed_and_no_frame_is_left_over(benchmark, workbench, subject):
    benchmark.group = f"{subject.group} (times of {SIZE})"
    benchmark.name = subject.name
    timer = workbench.timer(subject)
    benchmark.pedantic(timer.timeit, args=(SIZE // subject.size,), rounds=50, warmup_rounds=2)
    assert workbench.mem.used_frames == workbench.held


def test_ratios_to_object_and_to_an_atomic_pair(workbench, probe, report):
    rows = measure(workbench, probe)
    save(rows)
    report(rows)
    assert workbench.mem.used_frames == workbench.held
    assert [row["name"] for row in rows] == [*(subject.name for subject in SUBJECTS), PAIR]
    assert all(row["ns"] > 0 for row in rows)
