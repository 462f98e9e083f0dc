# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Waiting for ranges of an address space that others have to themselves."""

import threading
from time import monotonic, sleep

import pytest

from pageframe import PhysicalMemory, RangeLockedError, VmSpace

PAGE = 4096


def test_timeout_is_for_all_cursors_together_that_one_waits_for():
    """Threads whose cursors come and go, so that one after another is in the way."""
    patience, lasting = 0.2, 30.0
    with PhysicalMemory("1 MiB") as mem, VmSpace(mem, "1 MiB") as vm:
        stop = threading.Event()

        def come_and_go(page):
            while not stop.is_set():
                with vm.cursor(page * PAGE, (page + 1) * PAGE):
                    sleep(0.05)

        threads = [threading.Thread(target=come_and_go, args=(page,)) for page in range(8)]
        end = threading.Timer(lasting, stop.set)
        for thread in [end, *threads]:
            thread.start()
        while not vm_is_locked(vm):
            sleep(0.01)
        begin = monotonic()
        try:
            with pytest.raises(RangeLockedError, match="another thread"):
                vm.cursor(timeout=patience)
            assert patience <= monotonic() - begin < lasting / 2
        finally:
            end.cancel()
            stop.set()
            for thread in [end, *threads]:
                thread.join(30)
        vm.cursor(timeout=0).close()


def vm_is_locked(vm):
    try:
        vm.cursor(timeout=0).close()
    except RangeLockedError:
        return True
    return False
