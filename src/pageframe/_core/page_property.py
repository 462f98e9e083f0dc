# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a mapped page may be used for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PageProperty:
    """What a mapped page may be used for.

    Attributes
    ----------
    read, write, execute
        Whether loads, stores and instruction fetches are allowed. A page that can be
        written can be read, too: the processors have no other kind.

    Raises
    ------
    ValueError
        If the page could be written and not read.
    """

    read: bool = True
    write: bool = True
    execute: bool = False

    def __post_init__(self) -> None:
        for name in ("read", "write", "execute"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, not {getattr(self, name)!r}")
        if self.write and not self.read:
            raise ValueError("a page that can be written can be read, too")
