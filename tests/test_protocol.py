# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The protocol of counts, exhaustively: a small-step model of it (protocol/), and that it is the real one.

Every interleaving of a few processes is visited here for the small scenarios; ``make protocol`` does all.
That the model is that of the compiled code is seen by doing the same operations with both: the same
steps in the same order, and the same words, also when the process is killed before any of the steps.
"""

import json
import subprocess
import sys
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest

from protocol.cases import CASES, CLIENTS
from protocol.machine import Violation, kernel, perform
from protocol.operations import Protocol
from protocol.scenarios import ALL, FAULTS, LIVE, SCENARIOS, run
from protocol.words import DROPPING, ORPHAN, PLAIN, UNIQUE, UNUSED, Arena, Lane
from steps.build import build, environment, step_names

COMPILED = Path(__file__).with_name("protocol") / "compiled.py"
SECONDS = 120

# Steps that the model leaves out, and why.
LEFT_OUT = {
    "chunk_lane": "who has a chunk reserved is a hint",
    "reap_chunk": "the same",
    "trim_type": "a run of claimed frames; nobody else reads it",
    "list_link": "links of a list belong to its owner alone",
    "list_id": "the same",
    "list_unlink": "the same",
    "list_no_id": "the same",
    "type_entry": "written under a file lock",
    "type_count": "the same",
    "type_flags": "the same",
}
SMALL = 30_000  # states

quick = [name for name, scenario in SCENARIOS.items() if scenario.quick]


@pytest.fixture(scope="module")
def explored():
    """What exploring the small scenarios came to."""
    return {name: run(SCENARIOS[name]) for name in quick}


@pytest.mark.parametrize("name", quick)
def test_in_no_state_is_a_frame_freed_while_held_or_owned_by_two(explored, name):
    found = explored[name]
    assert 100 < found.states < SMALL
    assert found.ends > 10
    assert found.kills > found.states // 4


def test_nor_if_stores_are_seen_late():
    found = {name: run(SCENARIOS[name], weak=True) for name in quick if SCENARIOS[name].weak_quick}
    assert min(one.states for one in found.values()) > 100
    assert sum(one.delayed for one in found.values()) > 1000


def test_every_step_is_in_the_model_or_left_out_for_a_reason(explored):
    passed = set().union(*(found.steps for found in explored.values()))
    assert passed == set(step_names()) - set(LEFT_OUT)


def test_a_process_is_killed_before_every_step(explored):
    killed = set().union(*(found.killed_before for found in explored.values()))
    assert killed == set(step_names()) - set(LEFT_OUT)


def test_compare_and_swaps_are_lost_to_others(explored):
    assert sum(found.lost for found in explored.values()) > 100


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_is_put_in_is_found(fault):
    name, weak = FAULTS[fault]
    with pytest.raises(Violation, match=r"thread|process"):
        run(SCENARIOS[name], weak, fault)


# -- the compiled code does the same ---------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return what the compiled code did, run by run."""
    command = [sys.executable, "-S", str(COMPILED), str(tmp_path_factory.mktemp("protocol"))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, env=environment(build()), check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def program(protocol, operations, places):
    """The operations of a process in the model, in the places that it has."""
    frames = {}
    for name, client, *rest in operations:
        me = Lane(places[client])
        if name in ("alloc", "alloc_dropping"):
            type_id = DROPPING if name == "alloc_dropping" else PLAIN
            frames[rest[0]] = yield from protocol.alloc(me, 1, type_id)
        elif name == "clone":
            frames[rest[1]] = frames[rest[0]]
            yield from protocol.more(me, frames[rest[0]])
        elif name == "find":
            got = yield from protocol.from_in_use(me, rest[0])
            assert got
            frames[rest[1]] = rest[0]
        elif name == "drop":
            yield from protocol.put(me, frames[rest[0]])
        elif name in ("unique", "unique_fails"):
            won = yield from protocol.try_unique(me, frames[rest[0]])
            assert bool(won) == (name == "unique")
        elif name == "share":
            yield from protocol.share(me, frames[rest[0]])
        elif name == "repurpose":
            yield from protocol.repurpose(me, frames[rest[0]])
        elif name == "send":
            yield from protocol.issue(me, frames[rest[0]], 1)
        elif name == "load":
            (frames[rest[0]],) = yield from protocol.redeem(me, 0, LIVE)
        elif name == "join":
            yield from protocol.join(me)
        elif name == "fork":
            yield from protocol.fork(me, me.client + 1)
            yield kernel(partial(end, protocol.a, me.client + 1))
        elif name == "reap":
            yield from protocol.reap(me)
        elif name == "audit":
            yield from protocol.reap(me)
            yield from protocol.audit(me, True)
        elif name == "leave":  # with all that is held, as at the end of a process
            for place in places:
                yield from protocol.leave(Lane(place))


def end(arena, process, words):
    """A process ends without leaving the arena."""
    arena.kill(words, process)
    return 0


def follow(words, generator, kill):
    """Run a program alone until the step, or after as many, where it is killed; return what it passed."""
    passed, result = [], None
    while True:
        try:
            action = generator.send(result)
        except StopIteration:
            return passed
        if action.step is not None:
            if len(passed) == kill:
                return passed
            passed.append(action.step)
            if action.step == kill:  # the hook had told of it
                return passed
        result = perform(words, action)


def in_model(case, kill):
    """What a case comes to in the model: the orders of steps, and the words."""
    words, orders, ops = None, [], []
    for i, operations in enumerate(case.processes):
        arena = Arena(case.frames, CLIENTS, tickets=1, knows=ALL if case.knows[i] else frozenset())
        words = arena.new() if words is None else words
        clients = 1 + max(client for _, client, *_ in operations)
        places = [place for place in range(CLIENTS) if not words[arena.at("state", place)]][:clients]
        if operations[0][0] != "join":
            for place in places:
                arena.join(words, place)
        ops = words[arena.at("ops") : arena.at("ops", CLIENTS)]
        cut = kill if i == len(case.processes) - 1 else case.killed_at
        orders.append(follow(words, program(Protocol(arena), operations, places), cut))
        for place in places:
            arena.kill(words, place)
    return orders, as_compiled(arena, words, ops)


def as_compiled(arena, words, ops):
    """The words of the model as compiled.py tells those of a real arena."""

    def of(name, number):
        return list(words[arena.at(name) : arena.at(name, number)])

    large = {UNUSED: 2**64 - 1, UNIQUE: 2**64 - 2, ORPHAN: 2**64 - 3}
    word = words[arena.at("word")]
    return {
        "bits": words[arena.at("bits")],
        "count": [large.get(count, count) for count in of("count", arena.frames)],
        "generation": of("generation", arena.frames),
        "ledger": of("ledger", CLIENTS * arena.frames),
        "kept": of("kept", CLIENTS),
        "op": [op and [op >> 3, op & 7] for op in of("op", CLIENTS)],
        "ops": [now - then for now, then in zip(of("ops", CLIENTS), ops, strict=True)],
        "orphans": words[arena.at("orphans")],
        "state": of("state", CLIENTS),
        "ticket": [word >> 3 & 3, word & 7, words[arena.at("done")]],
    }


def in_both(order):
    """Steps that the model has; one that comes again at once, for another lane, is one."""
    return [step for step, _ in groupby(step for step in order if step not in LEFT_OUT)]


@pytest.mark.parametrize("name", CASES)
def test_the_compiled_code_passes_the_steps_of_the_model_in_their_order(runs, name):
    (whole,) = [run for run in runs if run["case"] == name and run["kill"] is None]
    orders, words = in_model(CASES[name], None)
    assert [in_both(order) for order in whole["orders"]] == [in_both(order) for order in orders]
    assert whole["words"] == words


@pytest.mark.parametrize("name", CASES)
def test_a_kill_at_any_step_leaves_the_words_that_the_model_says(runs, name):
    (whole,) = [run for run in runs if run["case"] == name and run["kill"] is None]
    order = whole["orders"][-1]
    killed = [run for run in runs if run["case"] == name and run["kill"] is not None]
    assert [order[one["kill"]] for one in killed] == [step for step, _ in groupby(order)]
    for one in killed:
        passed = in_both(order[: one["kill"]])
        assert in_both(one["orders"][-1])[: len(passed)] == passed
        _, words = in_model(CASES[name], len(passed))
        assert one["words"] == words, f"killed before {order[one['kill']]}, step {one['kill']}"


def test_the_cases_pass_most_steps(runs):
    passed = {step for run in runs for order in run["orders"] for step in order}
    assert set(step_names()) - set(LEFT_OUT) - passed == {"reap_mark"}  # takes another one's drop just then
