# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The demonstration with workers, driven as a user would, and what may go wrong on the way."""

import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pageframe import PhysicalMemory, cli, shared_demo
from pageframe.commands import demo as demo_command
from pageframe.demo import find_files
from pageframe.shared_demo import Digest, WorkerError, create_arena, plain_digests, read_piece, run

PAGE = 4096
LIMIT = 1237 * PAGE  # a size that no other arena has
SIZES = (0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 5, 40 * PAGE, 300_000, 1 << 20, (3 << 20) + 7)
TIMEOUT = 60


@pytest.fixture(scope="module", autouse=True)
def _end_fork_server():
    """Have workers import this module quickly; end the process that they are started from."""
    shared_demo.PRELOAD.append(__name__)
    yield
    forkserver._forkserver._stop()


@pytest.fixture(autouse=True)
def _no_worker_is_left():
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for i, size in enumerate(SIZES):
        path = root / f"d{i % 3}" / f"file{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.random.default_rng(i).bytes(size))
    return root


def command_line(*args):
    return [sys.executable, "-m", "pageframe.cli", "demo", *map(str, args)]


def command(*args):
    return subprocess.run(
        command_line(*args),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )


def invoke(*args):
    return CliRunner().invoke(cli.app, ["demo", *map(str, args)], env={"COLUMNS": "80"})


def row(output, name):
    """Return the words in a row of a table."""
    line = next(line for line in output.splitlines() if line.strip().startswith(name))
    return line.strip().removeprefix(name).split()


def run_tree(tree, limit=LIMIT, workers=2, **kwargs):
    """Run the job on the files of a tree; its arena must be empty at the end."""
    files, _ = find_files(tree)
    with create_arena(limit, PAGE, workers) as mem:
        result = run(mem, files, workers, **kwargs)
        assert mem.used_frames == 0
        assert [client.pid for client in mem.clients] == [os.getpid()]
    return result


def all_right(result, files=None):
    assert result.shared.mismatches == []
    assert result.shared.files == (len(SIZES) if files is None else files)
    assert result.sound
    assert result.frames_left == 0


def session_of(pid):
    """Return the processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == pid and state not in "ZX":
                    found.append(int(entry.name))
    return found


def wait_for_end_of_session(pid):
    end = time.monotonic() + 30
    while (left := session_of(pid)) and time.monotonic() < end:
        time.sleep(0.05)
    for other in left:
        os.kill(other, signal.SIGKILL)
    assert left == []


# -- pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, 99, 100, 101, 1000])
@pytest.mark.parametrize("chunk", [3, 100, 4096])
@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200])
def test_plain_digests_are_those_of_the_pieces(tmp_path, piece, chunk, size):
    data = np.random.default_rng(size).bytes(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    digests, seconds = plain_digests(path, piece, memoryview(bytearray(chunk)))
    parts = [data[i : i + piece] for i in range(0, size, piece)] or [b""]
    assert digests == [Digest(hashlib.sha256(part).digest(), len(part)) for part in parts]
    assert seconds > 0


def test_piece_is_read_only_if_there_is_room(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    room = memoryview(bytearray(16))
    assert read_piece(path, 0, 16, room) == 10
    assert bytes(room[:10]) == b"0123456789"
    assert read_piece(path, 0, 4, room) == 4
    assert read_piece(path, 8, 4, room) == 2
    assert read_piece(path, 10, 4, room) == 0
    assert read_piece(path, 0, 16, room[:9]) is None
    assert read_piece(path, 0, 16, room[:10]) == 10
    preadv = os.preadv
    monkeypatch.setattr(shared_demo.os, "preadv", lambda fd, rooms, at: preadv(fd, [rooms[0][:3]], at))
    room[:] = bytes(16)
    assert read_piece(path, 0, 16, room) == 10
    assert bytes(room[:10]) == b"0123456789"


# -- the job -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_every_digest_is_right_though_a_worker_is_killed_with_frames_in_its_hands(tree, workers):
    held = {}

    def look(mem):
        held.update(mem.stats().frames_by_type)
        held["pids"] = {child.pid for child in multiprocessing.active_children()}

    result = run_tree(tree, workers=workers, halfway=look)
    all_right(result)
    assert result.shared.bytes == result.plain_first.bytes == result.plain_second.bytes == sum(SIZES)
    assert result.killed.exitcode == -signal.SIGKILL
    assert result.killed.pid in held["pids"]
    assert not Path(f"/proc/{result.killed.pid}").exists()
    assert result.killed.frames >= 1
    # It held a segment and the digests of its pieces, and nobody else did.
    (report,) = result.reaped
    assert [client.pid for client in report.clients] == [result.killed.pid]
    assert result.types_reaped == {
        "pageframe.shared_demo.FilePiece": result.killed.frames,
        "pageframe.shared_demo.PieceDigest": result.lost_pieces,
    }
    assert result.frames_reaped == result.killed.frames + result.lost_pieces
    assert all(held[name] >= frames for name, frames in result.types_reaped.items())
    assert result.deaths == []
    # What it held was read once more, and every digest came once.
    assert result.lost_pieces >= 1
    assert result.bytes_read == sum(SIZES) + result.lost_bytes
    assert result.answer_frames == result.pieces
    assert result.segments == result.answers + result.returned + 1


def test_only_handles_cross_the_pipes(tree):
    result = run_tree(tree)
    messages = result.segments + result.answers
    assert result.bytes_handed >= sum(SIZES)
    assert result.bytes_piped <= 300 * (messages + result.workers + 2)
    assert result.bytes_piped >= 50 * messages


@pytest.mark.parametrize("limit", [64 << 10, 128 << 10, 256 << 10])
@pytest.mark.parametrize("workers", [1, 4])
def test_files_larger_than_the_arena_go_through_it_in_pieces(tmp_path, limit, workers):
    (tmp_path / "large").write_bytes(np.random.default_rng(0).bytes(5 * limit + 3))
    (tmp_path / "small").write_bytes(b"small")
    result = run_tree(tmp_path, limit, workers)
    all_right(result, 2)
    assert result.shared.bytes == 5 * limit + 8
    assert result.pieces > 5
    assert result.killed.frames >= 1
    assert result.frames_reaped > result.killed.frames


def test_more_files_than_frames(tmp_path):
    for i in range(200):
        (tmp_path / f"{i}").write_bytes(b"%d" % i)
    result = run_tree(tmp_path, 128 << 10)
    all_right(result, 200)


def test_reading_waits_for_answers_when_frames_run_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(np.random.default_rng(0).bytes(100 * PAGE))
    read_batch = shared_demo._Job.read_batch
    waited = []
    rooms = []

    def watch(job):
        batch = read_batch(job)
        waited.append(batch is None and job.more())
        rooms.append(job.room)
        return batch

    monkeypatch.setattr(shared_demo._Job, "read_batch", watch)
    result = run_tree(tmp_path, 64 << 10, 4)
    all_right(result, 1)
    assert any(waited)
    assert min(rooms) >= 0


def test_file_that_does_not_tell_its_size():
    path = Path("/proc/version")
    assert path.stat().st_size == 0
    result = run_tree(path)
    all_right(result, 1)
    assert result.shared.bytes == len(path.read_bytes())


def test_nothing_to_read(tmp_path):
    result = run_tree(tmp_path)
    all_right(result, 0)
    assert result.killed is None
    assert result.reaped == []


def test_progress_reaches_the_total(tree):
    done = {stage: [0, 0] for stage in demo_command.STAGES}

    def advance(stage, files, size):
        done[stage][0] += files
        done[stage][1] += size

    run_tree(tree, progress=advance)
    assert done == {stage: [len(SIZES), sum(SIZES)] for stage in demo_command.STAGES}


# -- one array ---------------------------------------------------------------------------------


def watch_kept(monkeypatch):
    """Return a list that is filled with what each job has kept in the end: offsets of pieces."""
    show_array = shared_demo._Job.show_array
    kept = []

    def watch(job, buffer):
        kept.append({part: segment.start_paddr for part, segment in job.kept.items()})
        return show_array(job, buffer)

    monkeypatch.setattr(shared_demo._Job, "show_array", watch)
    return kept


@pytest.mark.parametrize("workers", [1, 3])
def test_pieces_of_a_file_are_one_array(tmp_path, monkeypatch, workers):
    """Small files between its pieces, and a worker that is killed with some."""
    size = (1 << 20) + 7
    (tmp_path / "large").write_bytes(np.random.default_rng(0).bytes(size))
    for i in range(100):
        (tmp_path / f"small{i}").write_bytes(b"%d" % i)
    kept = watch_kept(monkeypatch)
    result = run_tree(tmp_path, 3000 * PAGE, workers)
    all_right(result, 101)
    assert result.array.path == tmp_path / "large"
    assert (result.array.pages, result.array.right) == (257, True)
    assert len(kept[0]) > 1 or workers == 1
    assert 1 <= result.array.kernel_mappings <= len(kept[0])
    assert result.mismatches == []


def test_file_of_the_array_takes_an_eighth_of_the_frames_at_the_most(tree):
    result = run_tree(tree)
    assert result.array.path == tree / "d1" / "file7"
    tiny = run_tree(tree, 64 << 10)
    assert tiny.array is None or tiny.array.pages == 1
    assert run_tree(tree / "d0" / "file0").array is None  # it is empty


def test_no_array_of_a_file_that_has_grown(tree, monkeypatch):
    do = shared_demo._Job.do

    def grow_then_do(job, wanted):
        with (tree / "d1" / "file7").open("ab") as file:
            file.write(b"more")
        do(job, wanted)

    monkeypatch.setattr(shared_demo._Job, "do", grow_then_do)
    assert run_tree(tree).array is None


def test_no_array_of_a_file_that_is_gone(tree, monkeypatch):
    show_array = shared_demo._Job.show_array

    def lose(job, buffer):
        (tree / "d1" / "file7").unlink()
        return show_array(job, buffer)

    monkeypatch.setattr(shared_demo._Job, "show_array", lose)
    result = run_tree(tree)
    assert result.array is None
    assert [skipped.path.name for skipped in result.skipped] == ["file7"]


def test_wrong_byte_of_the_array_is_a_mismatch(tree, monkeypatch):
    show_array = shared_demo._Job.show_array

    def spoil(job, buffer):
        memoryview(job.kept[0])[7] ^= 1
        return show_array(job, buffer)

    monkeypatch.setattr(shared_demo._Job, "show_array", spoil)
    result = invoke(tree, "--limit", LIMIT)
    assert result.exit_code == 1
    assert row(result.stdout, "mismatches") == ["0"]
    assert " ".join(row(result.stdout, "one array")).endswith("digest wrong")
    assert str(tree / "d1" / "file7") in result.stdout


# -- deaths ------------------------------------------------------------------------------------


def test_workers_that_die_unexpectedly_are_replaced(tree):
    """All of them at once: the one that holds its frames, and those that wait for work."""

    def kill_all(mem):
        for child in multiprocessing.active_children():
            child.kill()

    result = run_tree(tree, halfway=kill_all, patience=20)
    all_right(result)
    assert result.clients_reaped == 2
    assert result.frames_reaped >= 1
    assert len(result.deaths) == 1
    assert "died with exit code -9" in result.deaths[0]


def test_messages_that_a_dead_worker_had_not_loaded_are_taken_back(tree):
    """A worker that is stopped loads nothing more; then it is killed."""
    stopped = []

    def stop_one(stage, files, size):
        if stage == shared_demo.PLAIN and not stopped:
            stopped.append(multiprocessing.active_children()[0])
            os.kill(stopped[0].pid, signal.SIGSTOP)

    result = run_tree(tree, progress=stop_one, patience=5)
    all_right(result)
    assert len(result.deaths) == 1
    assert "hung for 5 s and was killed" in result.deaths[0]
    assert result.returned >= 1
    assert result.bytes_read == sum(SIZES) + result.lost_bytes


def test_worker_that_does_not_stop_at_the_end_is_killed(tree, monkeypatch):
    stop = shared_demo._Job.stop

    def stop_without_an_answer(job):
        while not all(worker.ready for worker in job.workers):
            job.listen()  # the one that took the victim's place may still be starting
        job.patience = 5
        os.kill(job.workers[0].pid, signal.SIGSTOP)
        stop(job)

    monkeypatch.setattr(shared_demo._Job, "stop", stop_without_an_answer)
    result = run_tree(tree)
    all_right(result)
    assert len(result.deaths) == 1
    assert "did not stop" in result.deaths[0]
    assert result.clients_reaped == 2


def die(mem, tasks, answers):
    """Be a worker that can't even begin."""
    os._exit(3)


def die_at_work(mem, tasks, answers):
    """Be a worker that its work kills."""
    shared_demo.hash_pieces = lambda mem, segment: os._exit(4)
    shared_demo.work(mem, tasks, answers)


def close_and_stay(mem, tasks, answers):
    """Be a worker that goes silent without dying."""
    answers.close()
    time.sleep(TIMEOUT)


@pytest.mark.parametrize(
    ("target", "how"),
    [(die, "exit code 3"), (die_at_work, "exit code 4"), (close_and_stay, "exit code -9")],
)
def test_workers_that_keep_dying_are_given_up(tree, monkeypatch, target, how):
    monkeypatch.setattr(shared_demo, "work", target)
    with pytest.raises(WorkerError, match=how):
        run_tree(tree)
    assert all(info.size != LIMIT for info in PhysicalMemory.list())


def test_command_fails_if_workers_keep_dying(tree, monkeypatch):
    monkeypatch.setattr(shared_demo, "work", die)
    result = invoke(tree, "--limit", LIMIT)
    assert result.exit_code == 2
    assert result.stdout == ""
    message = result.stderr.splitlines()[-1]
    assert message.startswith("pageframe: error: --workers 3: 5 workers have died unexpectedly: worker-")
    assert all(info.size != LIMIT for info in PhysicalMemory.list())


# -- the command -------------------------------------------------------------------------------


def test_shared_job_is_the_default(tree):
    process = subprocess.Popen(
        command_line(tree),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
        start_new_session=True,
    )
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, stderr
    assert "shared, 3 workers" in stdout
    assert row(stdout, "files") == [str(len(SIZES))] * 2
    assert row(stdout, "bytes") == [f"{sum(SIZES):,}"] * 2
    assert row(stdout, "mismatches") == ["0"]
    assert len(row(stdout, "throughput")) == 6
    killed = row(stdout, "killed")
    assert killed[0].startswith("worker-")
    held = int(killed[killed.index("holding") + 1])
    reaped = row(stdout, "reaped")
    assert int(reaped[0]) > held > 0
    assert reaped[1:] == ["frames", "of", "1", "client"]
    assert f"{held}   FilePiece" in stdout
    assert row(stdout, "audit")[:2] == ["nothing", "found"]
    assert row(stdout, "still held")[:2] == ["0", "frames"]
    assert " ".join(row(stdout, "one array")).endswith("digest right")
    assert int(row(stdout, "handed over")[0].replace(",", "")) >= sum(SIZES)
    assert int(row(stdout, "copied through pipes")[0].replace(",", "")) < 10_000
    # An arena without a name lives as long as a process that has it: none is left.
    wait_for_end_of_session(process.pid)


def test_piped_output_is_plain(tree):
    result = command(tree, "--workers", 2)
    assert "\x1b" not in result.stdout + result.stderr
    assert [line.partition(",")[0] for line in result.stderr.splitlines()] == [
        f"{stage}: {len(SIZES)} of {len(SIZES)} files" for stage in demo_command.STAGES.values()
    ]
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if "Files under" not in line)


def test_no_workers_is_the_page_cache(tree):
    result = command(tree, "--workers", 0)
    assert result.returncode == 0, result.stderr
    assert "first, in frames" in result.stdout
    assert "reaped" not in result.stdout


@pytest.mark.parametrize("workers", ["-1", "65", "1000000000000", "many", "1.5", ""])
def test_bad_number_of_workers(tree, workers):
    result = invoke(tree, f"--workers={workers}")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "--workers" in result.stderr


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("much", "--limit: 'much' is no size"),
        ("4 KiB", "--limit 4 KiB: the arena of 4096 bytes can't hold its own tables"),
        ("44 KiB", "--limit 44 KiB: the arena of 45056 bytes has"),
        ("100 TiB", "--limit 100 TiB: 26843545600 frames are too many"),
    ],
)
def test_bad_limit(tree, limit, message):
    result = invoke(tree, "--limit", limit)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"pageframe: error: {message}")


def test_flipped_bit_in_a_frame_is_found(tree, monkeypatch):
    def read_badly(path, start, size, room):
        length = read_piece(path, start, size, room)
        if path.name == "file7" and length:
            room[length - 1] ^= 1
        return length

    monkeypatch.setattr(shared_demo, "read_piece", read_badly)
    result = invoke(tree, "--limit", LIMIT)
    assert result.exit_code == 1
    assert row(result.stdout, "mismatches") == ["1"]
    assert "1 file with a digest unlike that of plain reading:" in result.stdout
    assert str(tree / "d1" / "file7") in result.stdout
    assert row(result.stdout, "audit")[:2] == ["nothing", "found"]


def hash_badly(mem, tasks, answers):
    """Be a worker whose hash function is broken."""
    shared_demo.hashlib.sha256 = hashlib.sha3_256
    shared_demo.work(mem, tasks, answers)


def test_wrong_digest_of_a_worker_is_found(tree, monkeypatch):
    monkeypatch.setattr(shared_demo, "work", hash_badly)
    result = invoke(tree)
    assert result.exit_code == 1
    assert row(result.stdout, "mismatches") == [str(len(SIZES))]


@pytest.mark.parametrize("change", [b"", b"more", bytes(2 << 20)])
def test_file_that_changes_is_a_mismatch(tree, monkeypatch, change):
    do = shared_demo._Job.do

    def change_then_do(job, wanted):
        (tree / "d2" / "file8").write_bytes(change)
        do(job, wanted)

    monkeypatch.setattr(shared_demo._Job, "do", change_then_do)
    result = invoke(tree, "--limit", LIMIT)
    assert result.exit_code == 1
    assert row(result.stdout, "mismatches") == ["1"]
    assert str(tree / "d2" / "file8") in result.stdout


@pytest.mark.parametrize("stage", ["plain_digests", "read_piece"])
@pytest.mark.parametrize("name", ["d1/file4", "d0/file9"])
def test_file_that_disappears_is_skipped_and_named(tree, monkeypatch, stage, name):
    original = getattr(shared_demo, stage)

    def lose(path, *args):
        if path == tree / name:
            path.unlink(missing_ok=True)
        return original(path, *args)

    monkeypatch.setattr(shared_demo, stage, lose)
    result = invoke(tree, "--limit", LIMIT)
    assert result.exit_code == 0
    assert row(result.stdout, "mismatches") == ["0"]
    assert "1 file or directory skipped:" in result.stdout
    assert f"{tree / name}: No such file or directory" in result.stdout
    assert row(result.stdout, "still held")[:2] == ["0", "frames"]


def test_files_that_disappear_with_the_killed_worker_are_skipped(tree):
    def lose_all(mem):
        for path in tree.rglob("file*"):
            path.unlink()

    result = run_tree(tree, halfway=lose_all)
    assert result.shared.mismatches == []
    assert result.sound
    # Lost are those that the worker held, and those not yet read.
    assert len({skipped.path for skipped in result.skipped}) >= 1
    assert result.lost_pieces >= 1
    assert all(skipped.reason == "No such file or directory" for skipped in result.skipped)


def test_picture_shows_what_is_held(tree, tmp_path):
    path = tmp_path / "arena.png"
    result = command(tree, "--picture", path)
    assert result.returncode == 0, result.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"Picture of the arena: {path}" in result.stdout
    full = command(tree, "--picture", "/dev/full")
    assert full.returncode == 2
    assert full.stderr.splitlines()[-1] == "pageframe: error: /dev/full: No space left on device"
    (tmp_path / "empty").mkdir()
    assert command(tmp_path / "empty", "--picture", path).returncode == 0


def heed_interrupts():
    """What runs in the background of a shell ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_workers_end_with_a_parent_that_is_killed_or_interrupted(tmp_path):
    for i in range(40):
        with (tmp_path / f"{i}").open("wb") as file:
            file.truncate(8 << 20)
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            command_line(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )
        first = process.stderr.readline()
        assert first.startswith("plain reading: 40 of 40"), first
        assert len(session_of(process.pid)) >= 5  # the workers are there
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        _, stderr = process.communicate(timeout=TIMEOUT)
        assert process.returncode != 0
        assert "worker" not in stderr  # none has shown a traceback
        wait_for_end_of_session(process.pid)


@pytest.mark.parametrize(
    ("fault", "words"),
    [({"damaged": (4096,)}, "1 damaged"), ({"leaked": (0, 1)}, "2 leaked"), ({"quiet": False}, "not quiet")],
)
def test_what_the_audit_finds_fails_the_command(tree, monkeypatch, fault, words):
    stop = shared_demo._Job.stop

    def stop_and_spoil(job):
        stop(job)
        job.result.audit = dataclasses.replace(job.result.audit, **fault)

    monkeypatch.setattr(shared_demo._Job, "stop", stop_and_spoil)
    result = invoke(tree, "--limit", LIMIT)
    assert result.exit_code == 1
    assert " ".join(row(result.stdout, "audit")).startswith(words)
    assert row(result.stdout, "mismatches") == ["0"]
