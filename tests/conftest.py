# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

import gc

import pytest

from cimport.build import load_probe
from pageframe import PhysicalMemory


@pytest.fixture
def mem():
    """An arena of 256 frames that must be empty again at the end."""
    arena = PhysicalMemory("1 MiB")
    yield arena
    gc.collect()
    assert arena.used_frames == 0, arena.stats()
    arena.close()


@pytest.fixture(scope="session")
def probe():
    """Return the extension module that cimports pageframe, built if need be."""
    return load_probe()
