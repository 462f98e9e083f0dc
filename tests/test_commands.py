# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The commands that look at arenas and put them right, driven as a user would."""

import dataclasses
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from typer.testing import CliRunner

from other_processes import ArenaFile, Child, file_of, new_name, run, unique_name
from pageframe import (
    REF_COUNT_MAX,
    REF_COUNT_UNIQUE,
    REF_COUNT_UNUSED,
    ArenaView,
    Link,
    LinkedList,
    OutOfFramesError,
    PhysicalMemory,
    UniqueFrame,
    UntypedFrameMeta,
    bytes_,
    cli,
    u64,
)
from pageframe._core import backing
from pageframe.observe import frames as observe_frames
from pageframe.observe.frames import SORTS, STATES, find_frames, type_names
from processes import Forked

PAGE = 4096
MIB = 1 << 20


class CommandMeta(UntypedFrameMeta):
    inode: u64
    tag: bytes_[4]


class ListedMeta(Link, UntypedFrameMeta):
    pass


@pytest.fixture
def name():
    with unique_name() as name:
        yield name


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Have a folder for named arenas that nobody else uses, or sweeps."""
    monkeypatch.setattr(backing, "SHM", tmp_path)


def command(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "pageframe.cli", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
        **options,
    )


def invoke(*args):
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args], env={"COLUMNS": "80"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def shown(*args):
    """Return what a command prints for people, which must go well."""
    result = invoke(*args)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return result.stdout


def facts(*args):
    """Return what a command prints for programs, which must go well."""
    return json.loads(shown(*args, "--json"))


def error(*args, code=2):
    """Return the one line of a command's error."""
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (code, "")
    (line,) = result.stderr.splitlines()
    return line.removeprefix("pageframe: error: ")


def plain(value):
    """Return what a data class is in JSON."""
    return json.loads(json.dumps(dataclasses.asdict(value), default=str))


def row(output, first):
    """Return the cells of the line of a table that begins with a cell."""
    lines = [re.split(r" {2,}", line.strip()) for line in output.splitlines()]
    return next(cells[1:] for cells in lines if cells[0] == first)


def of(name):
    """Return what ls says of one arena: others may come and go."""
    (info,) = [info for info in facts("ls") if info["name"] == name]
    return info


HOLDER = """
with PhysicalMemory.attach(NAME) as mem:
    frames = mem.alloc_frames(5, UntypedFrameMeta())
    tell(os.getpid())
    wait()
    frames.drop()
"""


# -- as programs -------------------------------------------------------------------------------


def test_all_commands_work_as_programs_beside_two_living_clients(name):
    with PhysicalMemory.create(MIB, name) as mem, mem.alloc_frame() as frame, Child(HOLDER, name) as child:
        child.hear()
        results = {
            words[0]: command(*words)
            for words in (
                ["ls"],
                ["stat", name],
                ["frames", name, "--held-by", child.pid],
                ["holders", name, hex(frame.start_paddr)],
                ["audit", name],
                ["reap", name],
                ["trim", name],
                ["rm", name],
            )
        }
        assert {word: result.returncode for word, result in results.items()} == {
            **dict.fromkeys(results, 0),
            "rm": 1,
        }
        assert {word for word, result in results.items() if result.stderr} == {"rm"}
        assert row(results["ls"].stdout, name)[:3] == ["1 MiB", "6", "2.3%"]
        assert row(results["stat"].stdout, str(child.pid))[1:4] == ["alive", "5", "20 KiB"]
        assert "5 frames: all shown" in results["frames"].stdout
        assert row(results["holders"].stdout, str(os.getpid()))[1:5] == ["alive", "1", "0", "0"]
        assert "nothing is wrong" in results["audit"].stdout
        assert results["reap"].stdout == "nothing to take back\n"
        assert results["trim"].stdout.startswith(
            "0 frames, 0 bytes given back\nthe memory of an arena in a file"
        )
        assert re.fullmatch(
            rf"pageframe: error: {name}: in use by 2 clients \(pid \d+, \d+\); --force removes its name\n",
            results["rm"].stderr,
        )
        assert not re.search(r"…|\x1b", "".join(result.stdout for result in results.values()))
        assert file_of(name).exists()
        child.go_on()
        child.finish()


def test_a_command_imports_no_more_than_it_needs():
    told = run(
        """
        from typer.testing import CliRunner
        from pageframe import cli
        assert CliRunner().invoke(cli.app, ["ls"]).exit_code == 0
        dear = ["matplotlib", "textual", "rich.progress", "pageframe.demo", "pageframe.shared_demo"]
        tell([module for module in dear if module in sys.modules])
        """,
        "none",
    )
    assert told == "[]"


def test_help_names_all_commands_and_each_has_its_own():
    listed = shown("--help")
    for word in cli.COMMANDS:
        assert re.search(rf"^│ {word} ", listed, re.M)
        assert f"Usage: root {word} " in shown(word, "--help")
    assert invoke("nonsense").exit_code == 2


# -- ls ----------------------------------------------------------------------------------------


def test_ls_says_what_the_list_of_arenas_says(alone, name):
    with PhysicalMemory.create(MIB, name) as mem, PhysicalMemory.create(2 * MIB) as unnamed:
        frames = mem.alloc_frames(10)
        (info,) = [info for info in PhysicalMemory.list(all=True) if info.name == name]
        assert of(name) == {**plain(info), "state": "in use"}
        assert (info.used_frames, info.clients, info.dead) == (10, 1, 0)
        (other,) = [info for info in facts("ls") if info["id"] == unnamed.id]
        assert (other["name"], other["path"], other["size"]) == (None, None, 2 * MIB)
        cells = row(shown("ls"), name)
        assert (cells[:4], cells[-1]) == (["1 MiB", "10", "3.9%", "1"], "in use")
        assert row(shown("ls"), unnamed.id[:8])[0] == "2 MiB"
        frames.drop()


def test_an_arena_without_a_name_is_meant_by_the_digits_that_ls_shows():
    with PhysicalMemory.create(MIB) as mem:
        (digits,) = [word for word in shown("ls").split() if mem.id.startswith(word) and len(word) >= 8]
        assert facts("stat", digits)["id"] == mem.id
        assert facts("stat", digits.upper())["id"] == mem.id
        assert facts("reap", digits)["frames"] == 0
        frames = mem.alloc_frames(20)
        memoryview(frames[0])[:1] = b"x"
        frames.drop()
        given_back = facts("trim", digits)
        assert given_back["bytes"] == given_back["frames"] * PAGE > 0
        assert len(mem.clients) == 1


def test_an_arena_that_was_made_to_stay_is_idle_and_becomes_stale_by_a_kill(alone, name):
    PhysicalMemory.create(MIB, name, unlink_on_last=False).close()
    assert of(name)["state"] == "idle"

    def hold(conn):
        mem = PhysicalMemory.attach(name)
        kept = mem.alloc_frames(7, CommandMeta())
        conn.send(len(kept))
        conn.recv()

    with Forked(hold) as child:
        child.hear()
        child.kill()
    info = of(name)
    assert (info["state"], info["clients"], info["dead"], info["used_frames"]) == ("stale", 0, 1, 7)
    assert row(shown("ls"), name)[:4] == ["1 MiB", "7", "2.7%", "0 + 1 dead"]
    assert row(shown("stat", name), str(child.pid))[1:3] == ["dead", "7"]
    frames = facts("frames", name, "--held-by", child.pid)
    assert frames["total"] == 7
    (holder,) = facts("holders", name, frames["frames"][0]["paddr"])["holders"]
    assert (holder["pid"], holder["alive"], holder["handles"]) == (child.pid, False, 1)

    # What is made to stay is not removed with the rest, and reaping tells what it took back.
    result = invoke("rm", "--stale")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "made to stay" in result.stderr
    report = facts("reap", name)
    assert [client["pid"] for client in report["clients"]] == [child.pid]
    assert (report["frames"], report["frames_by_type"]) == (7, {"test_commands.CommandMeta": 7})
    assert of(name)["state"] == "idle"
    assert facts("rm", name) == {"removed": [name], "refused": {}, "errors": {}}
    assert not [info for info in facts("ls") if info["name"] == name]


def killed_owner(name):
    """Leave an arena by a kill that should have gone with its last client."""

    def own(conn):
        mem = PhysicalMemory.create(MIB, name)
        kept = mem.alloc_frames(3)
        conn.send(len(kept))
        conn.recv()

    with Forked(own) as child:
        child.hear()
        child.kill()
    return child.pid


def test_what_killed_processes_have_left_is_shown_and_removed_when_told(alone, name):
    pid = killed_owner(name)
    for _ in range(2):
        assert of(name)["state"] == "stale"
        assert facts("audit", name)["clients"][0]["pid"] == pid
    other = new_name()
    with PhysicalMemory.create(MIB, path=backing.path_of(other)):
        pass
    assert facts("rm", "--stale") == {"removed": [], "refused": {}, "errors": {}}  # create() has swept it
    killed_owner(name)
    with Forked(lambda conn: invoke("rm", "--stale", "--json").stdout) as remover:
        assert json.loads(remover.result())["removed"] == [name]
    assert not backing.path_of(name).exists()


def test_reaping_prints_who_was_dead_and_what_came_back(alone, name):
    pid = killed_owner(name)
    output = shown("reap", name)
    assert row(output, "frames whose life ended") == ["3"]
    assert row(output, "pageframe.UntypedFrameMeta") == ["3"]
    assert re.search(rf"process {pid}, .* dead", output)


# -- stat --------------------------------------------------------------------------------------


def test_stat_says_what_the_statistics_say(name):
    with PhysicalMemory.create(MIB, name) as mem, Child(HOLDER, name) as child:
        child.hear()
        frame = mem.alloc_frame(CommandMeta(inode=7))
        scattered = mem.alloc_frames(40)
        kept = scattered[::2]
        scattered.drop()
        unique = UniqueFrame.from_unused(mem, mem.size - PAGE, CommandMeta())
        sent = pickle.dumps(frame)
        found, stats = facts("stat", name), mem.stats()
        assert "raw_references" not in found  # those of this process, which has none
        for fact in ("free_frames", "used_frames", "frames_by_state", "frames_by_type", "clients", "size"):
            assert found[fact] == plain(stats)[fact], fact
        assert (found["name"], found["id"], found["created"]) == (name, mem.id, mem.created)
        assert found["fragmentation"] == stats.fragmentation > 0
        assert found["unusable"] == [stats.unusable(order) for order in range(len(stats.free_runs))]
        output = shown("stat", name)
        assert row(output, "free")[0] == str(mem.free_frames)
        assert row(output, "test_commands.CommandMeta") == ["1", "1"]
        assert row(output, str(child.pid))[1:] == ["alive", "5", "20 KiB", "5", "0", "0"]
        assert row(output, str(os.getpid()))[1:] == ["alive", "22", "88 KiB", "22", "0", "1"]
        assert row(output, "1")[2:4] == ["in transit", "1"]
        blocks = [
            line.split() for line in output.splitlines() if re.match(r" ?\d+ [KM]iB ", line.strip() + " ")
        ]
        assert [int(line[3]) for line in blocks] == [n for n in stats.free_runs if n]
        assert all(len(line) <= 81 for line in output.splitlines())
        assert "…" not in output
        pickle.loads(sent).drop()
        for handle in (frame, kept, unique):
            handle.drop()
        child.go_on()
        child.finish()


def test_stat_of_16_gib_of_which_three_million_frames_are_used_takes_less_than_a_tenth_of_a_second():
    with PhysicalMemory.create("16 GiB") as mem:
        frames = mem.alloc_frames(3_000_000, zeroed=False)
        taken = []
        for _ in range(5):
            begin = time.process_time()
            with ArenaView(id=mem.id) as view:
                stats = view.stats()
            taken.append(time.process_time() - begin)
        assert (stats.total_frames, stats.used_frames) == (4_194_304, 3_000_000)
        assert min(taken) < 0.1, taken
        output = shown("stat", mem.id)
        assert row(output, "frames")[0] == "4,194,304"
        assert row(output, "used")[0] == "3,000,000"
        assert row(output, "pageframe.UntypedFrameMeta") == ["3,000,000"]
        assert facts("frames", mem.id, "--limit", 3)["total"] == 3_000_000
        frames.drop()


def test_numbers_are_not_cut_in_a_pipe_and_have_no_colour(name):
    with PhysicalMemory.create(MIB, name) as mem, mem.alloc_frame() as frame, Child(HOLDER, name) as child:
        child.hear()
        env = {**os.environ, "COLUMNS": "20", "FORCE_COLOR": ""}
        for words in (
            ["ls"],
            ["stat", name],
            ["frames", name],
            ["holders", name, hex(frame.start_paddr)],
        ):
            result = CliRunner().invoke(cli.app, words, env=env)
            assert result.exit_code == 0
            assert not re.search(r"…|\x1b", result.stdout), result.stdout
        child.go_on()
        child.finish()


# -- frames ------------------------------------------------------------------------------------


@pytest.fixture
def mixed(name):
    """An arena of frames in all states, and what holds them."""
    rng = random.Random(5)
    with PhysicalMemory.create(MIB, name, regions=None) as mem:
        held = []
        for _ in range(40):
            frame = mem.alloc_frame(CommandMeta() if rng.random() < 0.5 else None)
            held += [frame, *(frame.clone() for _ in range(rng.randrange(4)))]
        for _ in range(30):
            held.pop(rng.randrange(len(held))).drop()
        listed = LinkedList(mem, ListedMeta)
        free = [
            paddr
            for paddr in range(0, mem.size, PAGE)
            if mem.slots["count"][paddr // PAGE] == REF_COUNT_UNUSED
        ]
        for paddr in rng.sample(free, 8):
            listed.push_back(UniqueFrame.from_unused(mem, paddr, ListedMeta()))
        for _ in range(5):
            held.append(mem.alloc_frame(CommandMeta()).try_unique())
        with ArenaFile(mem, file_of(name)) as file:
            made = {}
            for paddr, count in zip(
                rng.sample([p for p in free if p not in listed][-20:], 5), [0, 0, 0, -3, -3], strict=True
            ):
                made[paddr] = file.slot_field(paddr, file.COUNT)
                file.set_bit(paddr, True)
                file.set_slot(paddr, file.COUNT, count % 2**64)
            yield mem
            for paddr in made:
                file.set_slot(paddr, file.COUNT, REF_COUNT_UNUSED)
                file.set_bit(paddr, False)
        for handle in held:
            handle.drop()
        listed.drop()


def plain_rows(mem):
    """Return all frames of an arena as a slow program would find them."""
    names = type_names(mem)
    for number, slot in enumerate(mem.slots.tolist()):
        count, generation, type_id, list_id = slot
        type_name = names.get(type_id, "none")
        if count == REF_COUNT_UNUSED:
            state, count = "free", 0
        elif count == REF_COUNT_UNIQUE:
            state, count = "in a list" if list_id else "unique", 1
        elif count == 0:
            state = "busy"
        elif count > REF_COUNT_MAX:
            state, count = "orphan", 0
        else:
            state = "reserved" if type_name == "pageframe.MetaPageMeta" else "shared"
        yield {
            "paddr": number * PAGE,
            "state": state,
            "type": type_name,
            "count": count,
            "generation": generation,
            "list": list_id,
        }


@pytest.mark.parametrize("seed", range(60))
def test_frames_are_those_that_a_slow_program_finds(mixed, monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.setattr(observe_frames, "CHUNK", rng.choice([1, 7, 64, 1 << 17]))
    words, wanted = [], list(plain_rows(mixed))
    kind = rng.choice([None, "CommandMeta", "UntypedFrameMeta", "pageframe.MetaPageMeta"])
    state = rng.choice([None, None, *STATES])
    held_by = rng.choice([None, None, os.getpid()])
    least = rng.choice([0, 0, 1, 2, 3])
    if kind is not None:
        words += ["--type", kind]
        wanted = [row for row in wanted if row["type"].endswith(kind)]
    if held_by is not None:
        words += ["--held-by", held_by]
        mine = dict(mixed.held_by(held_by).tolist())
        wanted = [{**row, "references": mine[row["paddr"]]} for row in wanted if row["paddr"] in mine]
    if state is not None:
        words += ["--state", state]
        wanted = [row for row in wanted if row["state"] == state]
    elif held_by is None:
        wanted = [row for row in wanted if row["state"] not in ("free", *([] if kind else ["reserved"]))]
    if least:
        words += ["--min-count", least]
        wanted = [row for row in wanted if row["count"] >= least]
    sort, reverse, limit = rng.choice(SORTS), rng.random() < 0.5, rng.choice([None, 0, 1, 5, 30])
    words += [
        "--sort",
        sort,
        *(["--reverse"] if reverse else []),
        *(["--limit", limit] if limit is not None else []),
    ]
    wanted.sort(key=lambda row: row[sort], reverse=reverse)  # stable: equal ones follow by paddr
    assert facts("frames", mixed.name, *words) == {
        "total": len(wanted),
        "by_type": Counter(row["type"] for row in wanted),
        "frames": wanted[:limit],
    }, words


def test_all_states_occur_where_frames_are_compared_and_agree_with_the_census(mixed):
    stats = mixed.stats()
    for state in ("shared", "unique", "in a list", "orphan"):
        rows, by_type = find_frames(mixed, state=state)
        assert by_type == stats.frames_by_state[state]
        assert len(rows) == sum(by_type.values()) > 0
    assert len(find_frames(mixed, state="busy")[0]) == 3
    assert len(find_frames(mixed, state="reserved")[0]) == mixed.reserved_frames
    assert (
        len(find_frames(mixed, state="free")[0]) + len(find_frames(mixed)[0])
        == mixed.total_frames - mixed.reserved_frames
    )


def test_people_are_shown_50_frames_and_told_how_many_more_there_are(name):
    with PhysicalMemory.create(MIB, name) as mem, mem.alloc_frames(60):
        lines = shown("frames", name).splitlines()
        assert lines[-2:] == ["60 frames: the first 50 shown (--limit)", "  60 pageframe.UntypedFrameMeta"]
        assert sum("0x" in line for line in lines) == 50
        assert shown("frames", name, "--limit", 100).splitlines()[-2] == "60 frames: all shown"
        assert shown("frames", name, "--state", "unique") == "no such frames\n"
        assert len(facts("frames", name)["frames"]) == 60


def test_unknown_types_states_holders_and_orders_are_errors_that_name_the_known_ones(name):
    with PhysicalMemory.create(MIB, name) as mem:
        mem.alloc_frame(CommandMeta()).drop()
        assert "'Nope': there are pageframe.MetaPageMeta, " in error("frames", name, "--type", "Nope")
        assert "test_commands.CommandMeta" in error("frames", name, "--type", "")
        assert error("frames", name, "--state", "gone").endswith("there are " + ", ".join(STATES))
        assert error("frames", name, "--held-by", 1) == f"no process 1 is attached: there are {os.getpid()}"
        assert error("frames", name, "--sort", "size").endswith("there are " + ", ".join(SORTS))
        assert invoke("frames", name, "--limit", "-1").exit_code == 2


# -- holders -----------------------------------------------------------------------------------


def test_holders_says_who_holds_a_frame_and_what_its_metadata_are(name):
    with PhysicalMemory.create(MIB, name) as mem:
        frame = mem.alloc_frame(CommandMeta(inode=7, tag=b"ab"))
        paddr = frame.start_paddr
        with Child(
            """
            with PhysicalMemory.attach(NAME) as mem, Frame.from_in_use(mem, int(ARGS[0])) as one, one.clone():
                tell(os.getpid())
                wait()
            """,
            name,
            paddr,
        ) as child:
            child.hear()
            sent = pickle.dumps(frame)
            found = facts("holders", name, hex(paddr))
            assert found == facts("holders", name, paddr)
            assert found["fields"] == {"inode": 7, "tag": "6162"}
            assert (found["state"], found["type"], found["count"]) == (
                "shared",
                "test_commands.CommandMeta",
                4,
            )
            expected = [plain(holder) | {"alive": True} for holder in mem.holders(frame)]
            assert found["holders"] == expected
            assert {(h["pid"], h["handles"], h["tickets"]) for h in expected} == {
                (os.getpid(), 1, 1),
                (child.pid, 2, 0),
            }
            output = shown("holders", name, hex(paddr))
            assert "inode = 7" in output
            assert row(output, str(child.pid))[1:5] == ["alive", "2", "0", "0"]
            # A process that has not defined the type sees whose it is, and no fields.
            elsewhere = command("holders", name, paddr)
            assert "not defined here" in elsewhere.stdout
            assert "inode" not in elsewhere.stdout
            child.go_on()
            child.finish()
        pickle.loads(sent).drop()
        frame.drop()
        assert "nobody holds it" in shown("holders", name, paddr)
        assert facts("holders", name, paddr)["fields"] is None


@pytest.mark.parametrize(
    ("paddr", "match"),
    [
        ("x", "no address"),
        ("", "no address"),
        ("7", "multiple"),
        (hex(MIB), "0x100000"),
        ("9" * 30, "multiple"),
        ("16777216", "0x1000000"),
    ],
)
def test_an_address_that_is_no_frames_is_an_error(name, paddr, match):
    with PhysicalMemory.create(MIB, name):
        assert re.search(match, error("holders", name, paddr))


# -- events ------------------------------------------------------------------------------------


def test_events_are_shown_of_a_process_that_was_killed(name, monkeypatch):
    monkeypatch.setenv("PAGEFRAME_DEBUG", "trace")
    with PhysicalMemory.create(MIB, name) as mem:
        with Child(
            "frame = PhysicalMemory.attach(NAME).alloc_frame(); tell(frame.start_paddr)\nwait()", name
        ) as child:
            paddr = int(child.hear())
            child.kill()
        mem.reap()
        [claim] = facts("events", name, "--pid", child.pid)
        assert (claim["event"], claim["paddr"], claim["pid"]) == ("claim", paddr, child.pid)
        assert re.search(rf" {child.pid} +\d+ +claim +{paddr:#x}", shown("events", name, "--pid", child.pid))
        assert [event["event"] for event in facts("events", name)] == list(mem.events()["event"])
        assert len(facts("events", name, "--limit", 1)) == 1
        assert "the last 0 shown" in shown("events", name, "--limit", 0)


def test_events_of_an_arena_that_keeps_none_are_an_error(name):
    with PhysicalMemory.create(MIB, name):
        assert "PAGEFRAME_DEBUG=trace is to be set where it is made" in error("events", name)


# -- audit, reap, rm ---------------------------------------------------------------------------


def test_audit_finds_and_repairs_and_says_so_by_its_exit_code(name):
    with PhysicalMemory.create(MIB, name) as mem, mem.alloc_frame(CommandMeta()) as frame:
        assert facts("audit", name) == {**plain(mem.audit()), "clean": True}
        assert invoke("audit", name, "--repair").exit_code == 0
        paddr = frame.start_paddr
        with ArenaFile(mem, file_of(name)) as file:
            file.set_slot(paddr, file.COUNT, 3)
            leaked = mem.size - PAGE
            file.set_bit(leaked, True)
        for _ in range(2):
            result = invoke("audit", name, "--json")
            found = json.loads(result.stdout)
            assert (result.exit_code, found["clean"], found["repaired"]) == (1, False, False)
            assert (found["leaked"], found["miscounted"]) == ([leaked], [paddr])
        repaired = invoke("audit", name, "--repair")
        assert repaired.exit_code == 1
        assert re.search(
            rf"1 frame not free.*\n +{leaked:#x}\n1 frame with a count.*\n +{paddr:#x}\n", repaired.stdout
        )
        assert repaired.stdout.splitlines()[-1] == "repaired"
        assert frame.reference_count == 1
        assert facts("audit", name)["clean"]


def test_rm_leaves_what_is_in_use_unless_forced(name):
    with PhysicalMemory.create(MIB, name) as mem:
        assert "in use by 1 client" in error("rm", name, code=1)
        assert file_of(name).exists()
        assert shown("rm", "--force", name) == f"removed {name}\n"
        assert not file_of(name).exists()
        mem.alloc_frame().drop()
        assert error("rm", name) == f"{name}: there is no such arena"


def test_rm_goes_on_after_what_it_can_t_remove(name):
    PhysicalMemory.create(MIB, name, unlink_on_last=False).close()
    none = new_name()
    result = invoke("rm", none, name, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "removed": [name],
        "refused": {},
        "errors": {none: "there is no such arena"},
    }
    assert "needs the names" in error("rm")


def test_an_arena_at_a_path_can_be_meant_by_it(tmp_path):
    path = tmp_path / "arena"
    PhysicalMemory.create(MIB, path=path, unlink_on_last=False).close()
    assert facts("stat", path)["size"] == MIB
    assert facts("audit", path, "--repair")["clean"]
    assert facts("rm", path)["removed"] == [str(path)]
    assert not path.exists()


# -- what can't be used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["stat"], ["frames"], ["audit"], ["reap"], ["trim"], ["audit", "--repair"]]
)
def test_missing_and_ambiguous_names_and_damaged_files_are_errors_on_one_line(name, words):
    assert error(*words, name) == f"{name}: there is no such arena"
    assert "no slash" in error(*words, "")
    path = file_of(name)
    path.write_bytes(b"x" * 1000)
    assert error(*words, name).endswith("is no arena: it begins with b'xxxxxxxx'")
    arenas = []
    while len({arena.id[0] for arena in arenas}) == len(arenas):
        arenas.append(PhysicalMemory.create("64 KiB"))
    digit = arenas[-1].id[0]
    assert f"arenas have an id that begins with '{digit}'" in error(*words, digit)
    for arena in arenas:
        arena.close()


def test_a_damaged_arena_is_shown_and_removed_only_by_force(alone, name):
    PhysicalMemory.create(MIB, name, unlink_on_last=False).close()
    path = backing.path_of(name)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    info = of(name)
    assert (info["state"], info["size"], info["owner"]) == ("damaged", path.stat().st_size, os.geteuid())
    assert f"{name}: is damaged: the checksum of its header is wrong" in shown("ls")
    assert "--force" in error("rm", name, code=1)
    assert path.exists()
    assert shown("rm", name, "--force") == f"removed {name}\n"
    assert not path.exists()


def test_an_arena_that_is_full_of_frames_and_clients_can_be_looked_at(name):
    with PhysicalMemory.create(MIB, name, clients=1) as mem:
        frames = mem.alloc_frames(mem.free_frames)
        with pytest.raises(OutOfFramesError):
            mem.alloc_frame()
        assert facts("stat", name)["free_frames"] == 0
        assert "free blocks" not in shown("stat", name)
        assert facts("frames", name)["total"] == len(frames)
        assert facts("holders", name, frames[0].start_paddr)["holders"][0]["pid"] == os.getpid()
        assert facts("audit", name)["clean"]
        assert (of(name)["clients"], of(name)["used_frames"]) == (1, len(frames))
        for word in ("reap", "trim"):
            assert error(word, name) == "1 processes are attached to the arena, the maximum"
        frames.drop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_arena_is_listed_and_refused(name):
    with PhysicalMemory.create(MIB, name):
        told = run(
            """
            import json
            from typer.testing import CliRunner
            from pageframe import cli
            def invoke(*words):
                return CliRunner().invoke(cli.app, words, env={"COLUMNS": "80"})
            for word in ("ls", "stat", "rm"):
                invoke(word, "none-" + NAME)    # and all is imported
            invoke("ls")
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            [info] = [info for info in json.loads(invoke("ls", "--json").stdout) if info["name"] == NAME]
            tell(info["state"], info["owner"], info["size"] > 2**20)
            tell(f"{NAME}: this arena belongs to another user" in invoke("ls").stdout)
            for words in (["stat", NAME], ["rm", NAME], ["rm", "--force", NAME]):
                result = invoke(*words)
                tell(result.exit_code, result.stdout, "another user" in result.stderr)
            """,
            name,
        )
        assert told.splitlines() == ["another user's 0 True", "True", *["2  True"] * 3]
        assert file_of(name).exists()


# -- looking changes nothing, and bears change ---------------------------------------------------


def test_looking_changes_nothing(name):
    """Not a byte of the arena's tables, clients, ledgers and frames, and no memory is taken."""
    with PhysicalMemory.create(MIB, name, clients=4) as mem, Child(HOLDER, name) as child:
        child.hear()
        frame = mem.alloc_frame(CommandMeta(inode=1))
        mem.alloc_frame().drop()
        sent = pickle.dumps(frame)
        path = file_of(name)
        before = path.read_bytes(), path.stat().st_blocks, mem.clients, mem.free_frames, mem.used_frames
        paddr = frame.start_paddr
        for words in (
            ["ls"],
            ["stat", name],
            ["frames", name, "--held-by", child.pid],
            ["frames", name, "--state", "free"],
            ["holders", name, paddr],
            ["audit", name],
        ):
            shown(*words)
            facts(*words)
            after = path.read_bytes(), path.stat().st_blocks, mem.clients, mem.free_frames, mem.used_frames
            assert after == before, words
        command("stat", name)
        assert path.read_bytes() == before[0]
        pickle.loads(sent).drop()
        frame.drop()
        child.go_on()
        child.finish()


CHURN = """
import pickle
mem = PhysicalMemory.attach(NAME)
tell("ready")
kept = []
while True:
    kept += [mem.alloc_frame(), mem.alloc_frames(5), mem.alloc_segment(3)]
    pickle.loads(pickle.dumps(kept[0])).drop()
    while len(kept) > 20:
        kept.pop(0).drop()
"""


def test_commands_bear_an_arena_that_changes_and_clients_that_are_killed(name):
    with PhysicalMemory.create(MIB, name):
        for _ in range(2):
            with Child(CHURN, name) as child:
                child.hear()
                end = time.monotonic() + 1.5
                while time.monotonic() < end:
                    for words in (
                        ["ls"],
                        ["stat", name],
                        ["frames", name],
                        ["frames", name, "--held-by", child.pid],
                    ):
                        assert invoke(*words).exit_code == 0
                    rows = facts("frames", name, "--limit", 20)["frames"]
                    for found in rows[::7]:
                        assert invoke("holders", name, found["paddr"]).exit_code == 0
                    assert invoke("audit", name).exit_code in (0, 1)
                os.kill(child.pid, signal.SIGKILL)
            assert facts("stat", name)["clients"][-1]["alive"] is False
            assert facts("reap", name)["clients"][0]["pid"] == child.pid


def test_damaged_tables_are_reported_and_nothing_crashes(name):
    """In a process of its own, with bytes changed at random behind the header; the seed is fixed."""
    told = run(
        """
        import random
        from typer.testing import CliRunner
        from pageframe import cli
        rng = random.Random(11)
        mem = PhysicalMemory.create("1 MiB", NAME, clients=4, unlink_on_last=False)
        mem.alloc_frame().into_raw()
        tables = {name: (paddr, size) for name, paddr, size in mem.layout}
        paddr = int(mem.held_by(os.getpid())["paddr"][0])
        path = "/dev/shm/pageframe-" + NAME
        good = open(path, "rb").read()
        codes = set()
        for _ in range(40):
            table = rng.choice(["types", "clients", "tickets", "bits", "chunks", "slots", "areas"])
            start, size = tables[table]
            with open(path, "r+b") as file:
                for _ in range(rng.choice([1, 20, 300])):
                    file.seek(start + rng.randrange(min(size, 20000)))
                    file.write(rng.randbytes(rng.choice([1, 8])))
            for words in (["stat"], ["frames", "--sort", "type"], ["frames", "--held-by", str(os.getpid())],
                          ["holders", str(paddr)], ["audit"]):
                for more in ([], ["--json"]):
                    result = CliRunner().invoke(cli.app, [words[0], NAME, *words[1:], *more])
                    assert result.exception is None or type(result.exception) is SystemExit, result.exc_info
                    codes.add(result.exit_code)
            with open(path, "r+b") as file:
                file.write(good)
        tell(sorted(codes))
        os._exit(0)
        """,
        name,
    )
    assert told == "[0, 1, 2]"
