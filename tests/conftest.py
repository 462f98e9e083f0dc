# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What all tests share."""

import gc
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

from cimport.build import load
from pageframe import PhysicalMemory

# Nothing is left outside the build folder.
set_hypothesis_home_dir(Path(__file__).parents[1] / "build" / "hypothesis")
settings.register_profile("pageframe", database=None, deadline=None, print_blob=False)
settings.load_profile("pageframe")


@pytest.fixture
def mem():
    """Return an arena of 256 frames that must be empty again at the end."""
    arena = PhysicalMemory("1 MiB")
    yield arena
    gc.collect()
    assert arena.used_frames == 0, arena.stats()
    arena.close()


@pytest.fixture
def switch_often():
    """Let threads interrupt each other everywhere."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(scope="session")
def probe():
    """Return the extension module that cimports pageframe, built if need be."""
    return load("probe")
