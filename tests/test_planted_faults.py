# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The faults of ``make planted``, which takes long and is run seldom, fit the core as it is."""

import pytest

from sanitized.planted import FAULTS, source_of


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in FAULTS for name in FAULTS[kind]])
def test_the_line_that_a_planted_fault_replaces_is_in_the_core(kind, name):
    assert FAULTS[kind][name].instead not in source_of(FAULTS[kind][name]).splitlines()
