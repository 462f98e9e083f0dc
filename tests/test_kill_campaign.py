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
KILLS = 25 * LONG
SECONDS = 240 * LONG  # for all of them

# What so short a run comes to; the long one must come to all that campaign.py counts.
STATES = [
    "killed inside an operation", "killed with unique frames", "killed with lists",
    "killed with views of dropped frames", "killed while sharing frames", "killed with mapped frames",
    "killed with threads", "killed parents whose child lived on", "killed children of workers",
    "two killed at once", "killed with messages in flight", "messages expired", "kept frames stolen",
    "stopped inside an operation", "stopped while messages expired", "out of frames", "quota reached",
    "tickets full", "table of clients full", "children without a place", "not alone", "frames refused",
    "frames taken", "frames trimmed", "messages loaded", "messages loaded late", "message gone", "children",
    "children of threads", "attached anew", "reaped by a worker", "audits of an arena at work",
    "audits of a quiet arena", "pages unmapped", "pages copied", "spaces of children",
]  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return what the campaign has found; it goes on if a state was missed."""
    total = {"kills": 0, "failures": [], "states": Counter(), "operations": Counter()}
    for more in range(5):
        found = campaign(SEED + more, tmp_path_factory.mktemp("campaign") / "report.json")
        total["kills"] += found["kills"]
        total["failures"] += found["failures"]
        for counted in ("states", "operations"):
            total[counted].update(found[counted])
        if all(total["states"][state] for state in STATES):
            break
    return total


def campaign(seed, path):
    """Return the report of one campaign."""
    print(f"PAGEFRAME_TEST_SEED={seed}")
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), "--seed", str(seed), "--kills", str(KILLS), "--report", str(path)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CAMPAIGN.parents[1]), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"PAGEFRAME_TEST_SEED={seed}\n{done.stderr}"
    print(done.stdout)
    return json.loads(path.read_text())


def test_whoever_is_killed_the_others_keep_what_they_hold_and_nothing_is_left_over(report):
    assert report["kills"] >= KILLS
    assert report["failures"] == []


@pytest.mark.parametrize("state", STATES)
def test_the_campaign_came_to_this_state(report, state):
    assert report["states"][state] > 0, f"PAGEFRAME_TEST_SEED={SEED}"


def test_every_operation_was_done(report):
    assert [name for name, count in report["operations"].items() if count == 0] == []
