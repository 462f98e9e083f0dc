# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How much the tests that draw at random do: ``make test LONG=10`` does ten times as much.

The normal run is the same every time.  A longer one draws anew, and prints the seed that repeats it:
``make test LONG=10 SEED=7``.
"""

import os
import random

LONG = int(os.environ.get("PAGEFRAME_TEST_LONG") or 1)
SEED = os.environ.get("PAGEFRAME_TEST_SEED")


def chosen_seed(normal: int = 1) -> int:
    """Return the seed of a run, and print it."""
    number = int(SEED) if SEED else random.SystemRandom().randrange(2**32) if LONG > 1 else normal
    print(f"PAGEFRAME_TEST_SEED={number}")
    return number
