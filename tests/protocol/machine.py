# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Explores all that small programs over shared words can do together.

A program is a generator: it yields one `Action` for each load, store or read-modify-write of a
shared word, and is sent the result.  What may happen next in a state is the next action of any
thread, the arrival of a delayed store, or the death of a process; all of it is followed, breadth
first, and every state is visited once.

A state is the words, where each thread stands, and its delayed stores.  Where a thread stands is
the position and the local variables of its generators, so a program's locals must be hashable and
say all there is: no mutable values, loops over ranges only, no ``yield`` within a larger
expression.  Generators can't be copied; to stand where one stood before, a new one is sent the
same results.  That is done once for each place, then it is known where each result leads.

Memory is sequentially consistent, or weak: then a store waits in its thread, seen by that alone,
and reaches the others after any later ones to other words, unless it is a release, which comes
after all before it.  So does a read-modify-write that releases.  What waits when a process is
killed is lost: this stands for a compiler that had moved it behind the instruction at which the
process died.  Loads take place in program order.
"""

from array import array
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from types import FunctionType

import numpy as np

DEAD = -1
DONE = 0

LOAD, STORE, CAS, ADD, EXCHANGE, KERNEL = range(6)


class Violation(AssertionError):  # noqa: N818 (what the model shows, no error of its own)
    """Something happened that must not."""


@dataclass(slots=True)
class Action:
    """What a program does next.

    ``effect(words, old)`` runs with it if it takes place (of a compare-and-swap: if it succeeds),
    on what no real word holds: who owns what.  It raises `Violation`.
    """

    kind: int
    step: str | None  # its name in step.h, if a kill before it is told apart there
    word: int
    value: int = 0
    expected: int = 0
    release: bool = False
    effect: Callable | None = None
    call: Callable | None = None


def load(word, step=None, effect=None):
    return Action(LOAD, step, word, effect=effect)


def store(step, word, value, release=True, effect=None):
    return Action(STORE, step, word, value, release=release, effect=effect)


def cas(step, word, expected, value, release=True, effect=None):
    return Action(CAS, step, word, value, expected, release, effect)


def add(step, word, value, release=True, effect=None):
    """Add, modulo 256; the result is what there was."""
    return Action(ADD, step, word, value, release=release, effect=effect)


def exchange(step, word, value, effect=None):
    return Action(EXCHANGE, step, word, value, release=True, effect=effect)


def kernel(call, step=None):
    """A system call: ``call(words)`` at once, when all our stores are there.

    If that is negative nothing has happened, and the thread waits until it is not.
    """
    return Action(KERNEL, step, 0, release=True, call=call)


def note(word, call, step=None):
    """What is true from now on, or ``call`` raises; not before our own stores to a word are there."""
    return Action(KERNEL, step, word, call=call)


Program = Callable[[], Generator]


class Places:
    """Where the threads of one program can stand, numbered; 0: at its end."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.actions: list[Action | None] = [None]
        self.histories: list[tuple] = [()]
        self.numbers: dict[tuple, int] = {}
        self.after: dict[tuple[int, int], int] = {}
        self.start = self.number_of(())

    def number_of(self, history: tuple) -> int:
        generator = self.program()
        try:
            action = next(generator)
            for result in history:
                action = generator.send(result)
        except StopIteration:
            return DONE
        key = standing(generator)
        if key not in self.numbers:
            self.numbers[key] = len(self.actions)
            self.actions.append(action)
            self.histories.append(history)
        return self.numbers[key]

    def next(self, place: int, result: int) -> int:
        found = self.after.get((place, result))
        if found is None:
            found = self.number_of((*self.histories[place], result))
            self.after[place, result] = found
        return found


def standing(generator) -> tuple:
    """Where a generator stands: the positions and variables of all that it has called."""
    found = []
    while generator is not None:
        frame = generator.gi_frame
        # A function that is defined within depends on what else there is.
        named = tuple(item for item in frame.f_locals.items() if not isinstance(item[1], FunctionType))
        found.append((frame.f_code.co_qualname, frame.f_lasti, named))
        generator = generator.gi_yieldfrom
    return tuple(found)


def perform(words: bytearray, action: Action) -> int:
    """Let an action take place; return its result."""
    if action.kind == KERNEL:
        return action.call(words)
    old = words[action.word]
    if action.kind == CAS:
        if old != action.expected:
            return 0
        words[action.word] = action.value
    elif action.kind != LOAD:
        words[action.word] = (old + action.value) & 0xFF if action.kind == ADD else action.value
    if action.effect is not None:
        action.effect(words, old)
    return 1 if action.kind == CAS else old


def run_alone(words: bytearray, program: Generator, limit: int = 10_000) -> tuple[object, list[str]]:
    """Run a program with nobody else about; return what it returns and the steps that it passed."""
    steps = []
    result = None
    for _ in range(limit):
        try:
            action = program.send(result)
        except StopIteration as end:
            return end.value, steps
        if action.step is not None:
            steps.append(action.step)
        result = perform(words, action)
    raise Violation(f"still at work after {limit} actions: {steps[-20:]}")


@dataclass
class System:
    """What is explored."""

    words: bytes
    threads: list[tuple[int, Program]]  # process, program
    invariant: Callable[[bytes], None]  # of every state
    at_end: Callable[[bytes], None]  # of every state in which all threads are done or dead
    kill: Callable[[bytearray, int], None]  # what the death of a process does to the words
    alive: Callable[[bytes, int], bool]  # whether a process can be killed
    kills: int = 0
    weak: bool = False


@dataclass
class Explored:
    """What an exploration came to."""

    states: int = 0
    transitions: int = 0
    ends: int = 0  # states in which all threads are done or dead
    kills: int = 0  # transitions that were a kill
    deepest: int = 0  # longest shortest way
    steps: set = field(default_factory=set)  # names of the stores that took place
    killed_before: set = field(default_factory=set)
    lost: int = 0  # compare-and-swaps that failed
    delayed: int = 0  # stores that were overtaken by a later one


def explore(system: System, limit: int = 20_000_000) -> Explored:
    """Visit every state; raises `Violation` with the way to the first bad one that is met."""
    return Exploration(system, limit).run()


class Exploration:
    def __init__(self, system: System, limit: int) -> None:
        self.system, self.limit = system, limit
        programs = {id(program): program for _, program in system.threads}
        places = {key: Places(program) for key, program in programs.items()}
        self.places = [places[id(program)] for _, program in system.threads]
        self.processes = [process for process, _ in system.threads]
        self.found = Explored()
        self.numbers: dict[tuple, int] = {}
        self.waiting: deque = deque()
        self.parents = array("q")
        self.how: list[str] = []
        self.depths = array("i")
        self.sources, self.targets = array("i"), array("i")  # of all transitions but kills
        self.ends: list[int] = []
        # Where each thread would be if it went on alone: state -> state.
        self.alone = [array("i") for _ in system.threads]

    def run(self) -> Explored:
        start = tuple(places.start for places in self.places)
        self.reach(self.system.words, start, ((),) * len(start), -1, "")
        while self.waiting:
            self.expand(*self.waiting.popleft())
        self.found.states = len(self.numbers)
        self.found.ends = len(self.ends)
        self.found.deepest = max(self.depths)
        self.check_progress()
        return self.found

    def reach(self, words: bytes, places: tuple, delayed: tuple, parent: int, how: str) -> int:
        key = (words, places, delayed) if self.system.weak else (words, places)
        number = self.numbers.get(key)
        if number is None:
            number = self.numbers[key] = len(self.numbers)
            if number >= self.limit:
                raise Violation(f"more than {self.limit} states")
            self.parents.append(parent)
            self.how.append(how)
            self.depths.append(self.depths[parent] + 1 if parent >= 0 else 0)
            for alone in self.alone:
                alone.append(-1)
            self.waiting.append((number, words, places, delayed))
            try:
                self.system.invariant(words)
            except Violation as error:
                raise self.violation(number, error) from None
        return number

    def expand(self, number: int, words: bytes, places: tuple, delayed: tuple) -> None:
        system, found = self.system, self.found
        busy = False
        for t, place in enumerate(places):
            if place > 0:
                busy |= self.act(number, words, places, delayed, t)
            for i in range(len(delayed[t])):
                busy = True
                self.arrive(number, words, places, delayed, t, i)
        if not busy:
            self.ends.append(number)
            try:
                system.at_end(words)
            except Violation as error:
                raise self.violation(number, error) from None
        if words[0] < system.kills:
            for process in dict.fromkeys(self.processes):
                if system.alive(words, process):
                    died = bytearray(words)
                    system.kill(died, process)
                    mine = [p == process for p in self.processes]
                    for t, place in enumerate(places):
                        if mine[t] and place > 0 and (step := self.places[t].actions[place].step):
                            found.killed_before.add(step)
                    gone = tuple(DEAD if dead else place for place, dead in zip(places, mine, strict=True))
                    lost = tuple(() if dead else d for d, dead in zip(delayed, mine, strict=True))
                    found.kills += 1
                    found.transitions += 1
                    self.reach(bytes(died), gone, lost, number, f"process {process} is killed")

    def act(self, number: int, words: bytes, places: tuple, delayed: tuple, t: int) -> bool:
        """Let a thread do what is next; False if it has to wait."""
        place = places[t]
        action = self.places[t].actions[place]
        changed = words
        mine = delayed[t]
        if self.system.weak and action.kind == STORE:
            delayed = (*delayed[:t], (*mine, place), *delayed[t + 1 :])
            result = 0
        elif action.kind == LOAD:
            result = words[action.word]
            for waiting in mine:
                if self.places[t].actions[waiting].word == action.word:
                    result = self.places[t].actions[waiting].value
            if action.effect is not None:
                changed = self.effect(number, words, action, t, result)
        else:
            if mine and (action.release or any(self.places[t].actions[w].word == action.word for w in mine)):
                return False  # when they have arrived
            after = bytearray(words)
            try:
                result = perform(after, action)
            except Violation as error:
                raise self.violation(number, error, self.name(t, action)) from None
            if result < 0:
                return False
            changed = bytes(after)
            if action.kind == CAS and not result:
                self.found.lost += 1
        if action.step is not None:
            self.found.steps.add(action.step)
        there = self.places[t].next(place, result)
        target = self.reach(
            changed, (*places[:t], there, *places[t + 1 :]), delayed, number, self.name(t, action, result)
        )
        self.alone[t][number] = target
        self.went(number, target)
        return True

    def effect(self, number: int, words: bytes, action: Action, t: int, result: int) -> bytes:
        """What a load means for who owns what."""
        after = bytearray(words)
        try:
            action.effect(after, result)
        except Violation as error:
            raise self.violation(number, error, self.name(t, action)) from None
        return bytes(after)

    def arrive(self, number: int, words: bytes, places: tuple, delayed: tuple, t: int, i: int) -> None:
        """Let the i-th delayed store of a thread be seen by all, if it may."""
        mine = delayed[t]
        actions = self.places[t].actions
        action = actions[mine[i]]
        if i and (action.release or any(actions[before].word == action.word for before in mine[:i])):
            return
        self.found.delayed += i > 0
        after = bytearray(words)
        try:
            perform(after, action)
        except Violation as error:
            raise self.violation(number, error, self.name(t, action)) from None
        rest = (*delayed[:t], (*mine[:i], *mine[i + 1 :]), *delayed[t + 1 :])
        target = self.reach(bytes(after), places, rest, number, f"{self.name(t, action)} arrives")
        self.went(number, target)

    def went(self, source: int, target: int) -> None:
        self.found.transitions += 1
        self.sources.append(source)
        self.targets.append(target)

    def name(self, t: int, action: Action, result: int | None = None) -> str:
        kind = ("load", "store", "cas", "add", "exchange", "call")[action.kind]
        said = "" if result is None or action.kind == STORE else f" -> {result}"
        return f"thread {t}: {action.step or kind} [{action.word}] {action.value}{said}"

    def violation(self, number: int, error: Violation, last: str = "") -> Violation:
        """An error that tells the way to it."""
        way = [last] if last else []
        while number > 0:
            way.append(self.how[number])
            number = self.parents[number]
        return Violation("\n  ".join([str(error), *reversed(way)]))

    def check_progress(self) -> None:
        """From every state the end can be reached; and each thread reaches its own alone."""
        states = len(self.numbers)
        reaches = np.zeros(states, bool)
        reaches[self.ends] = True
        sources, targets = np.frombuffer(self.sources, np.int32), np.frombuffer(self.targets, np.int32)
        order = np.argsort(targets, kind="stable")
        sources, targets = sources[order], targets[order]
        first = np.searchsorted(targets, np.arange(states + 1))
        fresh = np.array(self.ends, np.int64)
        while len(fresh):
            counts = first[fresh + 1] - first[fresh]
            offsets = np.repeat(first[fresh] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
            before = np.unique(sources[offsets])
            fresh = before[~reaches[before]]
            reaches[fresh] = True
        if not reaches.all():
            raise self.violation(int(np.argmin(reaches)), Violation("from here nobody reaches the end"))
        if self.system.weak:
            return
        for t, alone in enumerate(self.alone):
            going = np.frombuffer(alone, np.int32).astype(np.int64)
            for _ in range(states.bit_length()):  # 1, 2, 4 ... actions of this thread
                going = np.where(going >= 0, going[going], -1)
            if (going >= 0).any():
                stuck = int(np.argmax(going >= 0))
                raise self.violation(stuck, Violation(f"from here thread {t} alone never ends"))
