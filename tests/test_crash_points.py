# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A process is killed before each store of the shared protocol, and another one makes good.

The package is built with a hook in every such place (step.h, tests/steps/build.py).  A victim goes
through the operations (tests/steps/scenarios.py) and is killed at the first and at the last pass of
each step; a survivor checks what is left (tests/steps/server.py, check.py).  Deterministic.

``make test LONG=10`` kills at more passes of each step.
"""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from amount import LONG
from steps.build import build, environment, step_names, used_names
from steps.scenarios import MAPPED

PASSES = 2 * LONG
SERVER = Path(__file__).with_name("steps") / "server.py"
SECONDS = 150 * PASSES  # for all


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return what became of every run; two servers share the scenarios, since many wait for a process."""
    options = {
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": environment(build()),
    }
    end = time.monotonic() + SECONDS
    runs = []
    with ExitStack() as stack:
        servers = []
        for part in ("0", "1"):
            folder = tmp_path_factory.mktemp("steps")
            command = [sys.executable, "-S", SERVER, folder, str(PASSES), part, "2"]
            servers.append(stack.enter_context(subprocess.Popen(command, **options)))
            stack.callback(servers[-1].kill)
        with ThreadPoolExecutor(len(servers)) as pool:
            told = list(pool.map(lambda server: server.communicate(timeout=end - time.monotonic()), servers))
        for server, (output, errors) in zip(servers, told, strict=True):
            assert server.returncode == 0, errors
            runs += [json.loads(line) for line in output.splitlines()]
    return runs


def killed_at(runs):
    return Counter(run["step"] for run in runs if run["step"] and not run["error"] and run["killed"])


def test_every_step_has_a_place_in_the_code_and_every_place_a_name():
    assert used_names() == set(step_names())
    assert len(step_names()) == len(set(step_names()))


def test_every_operation_works_when_nobody_is_killed(runs):
    whole = [run for run in runs if run["step"] is None]
    assert len(whole) == len({run["scenario"] for run in runs})
    for run in whole:
        assert run["error"] is None, f"{run['scenario']}: {run['error']}"
        assert not run["killed"]
        # What the children of a scenario leave is returned by it (audit) or by nobody before.
        assert (run["leaked"], run["miscounted"]) == (0, 0), run


@pytest.mark.parametrize("step", step_names())
def test_a_kill_before_this_store_loses_nothing_and_frees_nothing_too_early(runs, step):
    of_step = [run for run in runs if run["step"] == step and run["sent"] == signal.SIGKILL]
    for run in of_step:
        assert run["error"] is None, f"{run['scenario']}, pass {run['after']}: {run['error']}"
    assert any(run["killed"] and run["after"] == 0 for run in of_step)


@pytest.mark.parametrize("step", step_names())
def test_an_audit_while_a_process_stands_before_this_store_repairs_nothing_wrongly(runs, step):
    for run in runs:
        if run["step"] == step and run["sent"] == signal.SIGSTOP:
            assert run["error"] is None, f"{run['scenario']}: {run['error']}"


def test_every_step_was_passed_and_a_process_killed_there(runs):
    passed = Counter()
    for run in runs:
        if run["step"] is None:
            passed.update(run["passed"])
    assert set(passed) == set(step_names())
    assert set(killed_at(runs)) == set(step_names())


def test_steps_that_are_passed_often_were_a_place_of_death_later_too(runs):
    later = {run["step"] for run in runs if run["step"] and run["killed"] and run["after"] > 0}
    often = {step for run in runs if run["step"] is None for step, n in run["passed"].items() if n > 1}
    assert often <= later


# What an address space comes by when it maps, unmaps, splits, is copied, forked, left and reaped.
PASSED_MAPPED = [
    "op_begin", "op_end", "claim_ledger", "begin_type", "begin_storage", "publish", "inc_count",
    "inc_ledger", "put_last", "put_ledger", "put_count", "unique_busy", "retire_generation",
    "retire_count", "free_ledger", "fork_count", "fork_ledger", "ticket_count", "redeem_ledger",
    "reap_busy", "reap_count", "reap_ledger", "reap_lanes",
]  # fmt: skip


@pytest.mark.parametrize("step", PASSED_MAPPED)
def test_a_process_with_address_spaces_was_killed_before_this_store(runs, step):
    assert any(run["scenario"] in MAPPED for run in runs if run["step"] == step and run["killed"])


@pytest.mark.parametrize("scenario", MAPPED)
def test_a_process_with_address_spaces_was_killed_at_the_first_and_the_last_pass_of_each_step(runs, scenario):
    (passed,) = [run["passed"] for run in runs if run["scenario"] == scenario and run["step"] is None]
    killed = {(run["step"], run["after"]) for run in runs if run["scenario"] == scenario and run["killed"]}
    assert {(step, 0) for step in passed} <= killed
    assert {(step, count - 1) for step, count in passed.items()} <= killed


def test_frames_that_kills_left_behind_were_there_for_the_audit_to_return(runs):
    held_too_long = Counter(run["leaked"] + run["miscounted"] for run in runs if run["step"])
    assert held_too_long[0] > 0
    assert held_too_long[1] > 0


def test_what_a_killed_thread_held_too_long_had_been_counted_as_in_doubt(runs):
    for run in runs:
        # The victim of that scenario has reaped its own dead children, whose doubts it was told.
        if run["step"] and run["scenario"] != "audit":
            assert run["leaked"] + run["miscounted"] <= run["in_doubt"], run
