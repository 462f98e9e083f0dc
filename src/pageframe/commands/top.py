# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""`pageframe top`: watch an arena live."""

from __future__ import annotations

import importlib.util
import sys
from typing import Annotated

import typer

from pageframe.commands.common import ArenaName, fail, open_view
from pageframe.observe.words import shown


def top(
    arena: ArenaName,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="How long to rest between two looks.")
    ] = 1.0,
) -> None:
    """Watch an arena: its map, rates, clients, types and messages, on the whole screen."""
    if importlib.util.find_spec("textual") is None:
        fail("top needs textual: pip install 'pageframe[top]'")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        fail("top needs a terminal: 'pageframe stat' prints the figures once")
    from pageframe.observe.live import LiveApp

    with open_view(arena) as view:
        LiveApp(view, shown(view.name or view.path or arena), interval).run()
