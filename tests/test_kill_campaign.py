# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Processes share an arena, fork, pass frames on, and are killed at random moments.

See tests/steps/campaign.py for what is checked after each kill.  ``PAGEFRAME_TEST_SEED`` repeats a
run as far as the scheduler lets one; ``make soak`` is the long form.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from amount import LONG, chosen_seed

CAMPAIGN = Path(__file__).with_name("steps") / "campaign.py"
SEED = chosen_seed(20260)
KILLS = 80 * LONG
SECONDS = 240 * LONG  # for all of them

RARE = [
    "killed inside an operation",
    "killed between operations",
    "killed with unique frames",
    "killed with lists",
    "killed with views of dropped frames",
    "killed while sharing frames",
    "killed parents whose child lived on",
    "killed children of workers",
    "two killed at once",
    "killed with messages in flight",
    "messages loaded",
    "messages loaded late",
    "message gone",
    "messages expired",
    "orphans",
    "adopted",
    "kept frames stolen",
    "reaped by a worker",
    "children",
    "out of frames",
    "not alone",
    "repurpose",
    "killed with mapped frames",
    "map",
    "unmap",
    "protect",
    "snapshot",
    "make_writable",
    "mapping",
    "append",
    "ring",
    "pages unmapped",
    "pages copied",
    "spaces of children",
    "spaces without a table",
]


@pytest.fixture(scope="module")
def counters():
    """Return how often the campaign has come to each state; it goes on if one was missed."""
    total = Counter()
    for more in range(5):
        total.update(campaign(SEED + more))
        if all(total[state] for state in RARE):
            break
    return total


def campaign(seed):
    """Return the counters of one campaign."""
    print(f"PAGEFRAME_TEST_SEED={seed}")
    tests = str(CAMPAIGN.parents[1])
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), "--seed", str(seed), "--kills", str(KILLS)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": tests, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"PAGEFRAME_TEST_SEED={seed}\n{done.stderr}"
    print(done.stdout)
    return json.loads(done.stdout)


def test_whoever_is_killed_the_others_keep_what_they_hold_and_nothing_is_left_over(counters):
    killed = counters["killed inside an operation"] + counters["killed between operations"]
    assert killed >= KILLS


@pytest.mark.parametrize("state", RARE)
def test_the_campaign_came_to_this_state(counters, state):
    assert counters[state] > 0, f"PAGEFRAME_TEST_SEED={SEED}: {counters}"
