# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
from threading import RLock
from weakref import WeakValueDictionary

from pageframe._core.arena import Arena

private_arenas: WeakValueDictionary[int, Arena]
forking: RLock

def before_fork() -> None: ...
def after_in_parent() -> None: ...
def after_in_child() -> None: ...
