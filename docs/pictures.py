# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Draws docs/map-light.png and docs/map-dark.png: python docs/pictures.py.

A real arena: a server and two workers share it. The server has a list of pages, from which
some have gone; the workers hold batches of their own, and a table together with the server.
One message is on its way.
"""

import pickle
import random
from multiprocessing import Pipe, Process
from pathlib import Path

import pageframe as pf
from pageframe.observe.arena_map import take_map
from pageframe.observe.picture import draw_map

PAGE = 4096
HERE = Path(__file__).parent


class CachedPage(pf.Link, pf.UntypedFrameMeta):
    """A page of a file."""

    inode: pf.u64


class Batch(pf.UntypedFrameMeta):
    """What a worker makes."""


def work(conn, seed, mem, shared):
    """Hold batches, and the frames that the server shares, until the server has its picture."""
    choice = random.Random(seed)
    batches = [mem.alloc_segment(choice.choice((8, 16, 40, 64)), Batch()) for _ in range(40)]
    kept = [batch for batch in batches if choice.random() < 0.6]
    del batches
    conn.send(len(kept) + len(shared))
    conn.recv()


def main():
    """Draw the pictures."""
    choice = random.Random(7)
    with pf.PhysicalMemory.create("20 MiB", regions=[(18 << 20, 256 * PAGE, "reserved")]) as mem:
        pages = pf.LinkedList(mem, CachedPage)
        for i in range(1500):
            pages.push_back(mem.alloc_frame(CachedPage(inode=i)).try_unique())
        cursor = pages.cursor_front()
        while cursor.current_meta is not None:
            if choice.random() < 0.3:
                cursor.take_current().drop()
            else:
                cursor.move_next()
        del cursor
        table = mem.alloc_segment(300)
        message = pickle.dumps(mem.alloc_segment(200, Batch()))
        workers = []
        for seed in (1, 2):
            conn, theirs = Pipe()
            process = Process(target=work, args=(theirs, seed, mem, table[:100]))
            process.start()
            conn.recv()
            workers.append((process, conn))
        taken = take_map(mem, "holder")
        for process, conn in workers:
            conn.send(None)
            process.join()
        for theme in ("light", "dark"):
            draw_map(taken, HERE / f"map-{theme}.png", dark=theme == "dark")
        mem.reap()
        pickle.loads(message).drop()
        table.drop()
        pages.drop()


if __name__ == "__main__":
    main()
