# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

import pytest

from bench.ratios import RESULT, ROUNDS, table
from bench.subjects import Workbench
from cimport.build import load

RATIOS = pytest.StashKey()


@pytest.fixture(scope="session")
def probe():
    return load("probe")


@pytest.fixture(scope="session")
def workbench():
    bench = Workbench()
    yield bench
    bench.close()


@pytest.fixture
def report(request):
    """Takes the rows of the ratio table, to be printed at the end."""

    def keep(rows):
        request.config.stash[RATIOS] = rows

    return keep


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    rows = terminalreporter.config.stash.get(RATIOS, None)
    if rows is None:
        return
    terminalreporter.section("ratios")
    terminalreporter.line(f"Medians of {ROUNDS} rounds, each of which times everything in turn.")
    terminalreporter.line("")
    for line in table(rows):
        terminalreporter.line(line)
    terminalreporter.line("")
    terminalreporter.line(f"Written to {RESULT.relative_to(RESULT.parents[1])}")
