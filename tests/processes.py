# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Processes that tests start, and the shared arenas they meet in.

Whatever is started here is ended and waited for, with a limit of time.
"""

import gc
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from multiprocessing import Pipe
from uuid import uuid4

import pageframe as pf

LIMIT = 30  # seconds that anything may take


def unique_name():
    """Return a name that no other arena has."""
    return f"test-{os.getpid()}-{uuid4().hex[:8]}"


def assert_quiet(mem, clients=1):
    """Assert that nothing is held any more, once what has died was reaped."""
    gc.collect()
    mem.reap()
    report = mem.audit()
    assert report.clean, report
    assert report.quiet
    assert report.tickets == 0
    assert report.orphans == 0
    assert len(mem.clients) == clients, mem.clients
    assert mem.used_frames == 0, mem.stats()


@contextmanager
def shared_arena(size="1 MiB", name=None, **options):
    """Make a shared arena that must be empty again at the end."""
    mem = pf.PhysicalMemory.create(size, name, **options)
    try:
        yield mem
        assert_quiet(mem)
        mem.close()
    finally:
        if not mem.closed and name is not None:
            pf.PhysicalMemory.unlink(name)


class Forked:
    """A forked process that runs ``work(conn, *args)``, where conn is a pipe to its parent.

    It ends by ``os._exit``. What work returns or raises is had from `result`.
    """

    def __init__(self, work, *args):
        self.conn, theirs = Pipe()
        self.status = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.conn.close()
                try:
                    answer = "done", work(theirs, *args)
                except BaseException:
                    answer = "failed", traceback.format_exc()
                theirs.send(answer)
            finally:
                os._exit(0)
        theirs.close()

    def hear(self, timeout=LIMIT):
        """Return what the process has sent."""
        assert self.conn.poll(timeout), "the process says nothing"
        return self.conn.recv()

    def say(self, value=None):
        """Send something to the process."""
        self.conn.send(value)

    def result(self):
        """Return what work returned; the process has ended then."""
        kind, value = self.hear()
        assert kind == "done", value
        self.wait()
        return value

    def kill(self):
        """Kill the process."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self):
        """Wait for the end of the process; return its exit code, negative for a signal."""
        if self.status is None:
            self.status = wait_for(self.pid)
        return self.status

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self.conn.close()


def wait_for(pid):
    """Wait for a child process; kill it if it does not end in time."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} had to be killed after {LIMIT} s")


def wait_until(condition):
    """Wait until something is true."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)


def run_program(source, *args, input=None):
    """Run a Python program of its own; return what it prints, in bytes."""
    result = subprocess.run(
        [sys.executable, "-c", source, *map(str, args)],
        input=input,
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stderr == b"", result.stderr.decode()
    return result.stdout
