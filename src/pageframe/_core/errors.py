# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The exceptions of pageframe.

Every exception derives from `PageFrameError` and, where Python has a built-in
exception for the same thing, from that one too.  Messages carry the values.
"""


class PageFrameError(Exception):
    """Base of all exceptions that pageframe raises on its own account."""


class GetFrameError(PageFrameError):
    """A frame could not be had at a physical address."""


class FrameInUseError(GetFrameError):
    """The frame is in use: somebody holds at least one reference."""


class FrameReservedError(FrameInUseError):
    """The frame belongs to the arena itself, or to a reserved or bad region."""


class FrameUnusedError(GetFrameError):
    """The frame is unused: nobody holds it."""


class FrameBusyError(GetFrameError):
    """The frame is being built or torn down at this moment."""


class FrameUniqueError(GetFrameError):
    """The frame belongs to a unique frame or to a linked list."""


class FrameGoneError(GetFrameError):
    """The frame that was borrowed has been released since."""


class OutOfBoundError(GetFrameError, IndexError):
    """An address or offset lies outside the arena, segment or memory."""


class NotAlignedError(GetFrameError, ValueError):
    """An address or offset is not a multiple of the alignment it needs."""


class NotRawError(GetFrameError):
    """No raw reference to the frame was given out that could be taken back."""


class RefCountOverflowError(GetFrameError, OverflowError):
    """The reference count of the frame is at its maximum."""


class OutOfFramesError(PageFrameError, MemoryError):
    """The arena has not enough free frames, or no free run that is long enough."""


class QuotaExceededError(OutOfFramesError):
    """The allocation would go beyond the limit of a `LimitAdaptor`; the arena may have frames."""


class FrameTypeError(PageFrameError, TypeError):
    """The metadata type is not the one asked for, or can't be used here."""


class MovedError(PageFrameError, ValueError):
    """The handle was dropped, or what it held was moved elsewhere."""


class AddressInUseError(PageFrameError, ValueError):
    """Something is mapped at the address already."""


class NotMappedError(PageFrameError, LookupError):
    """Nothing is mapped at the address, or nothing that may be read."""


class RangeLockedError(PageFrameError, RuntimeError):
    """Another cursor has addresses of the range to itself."""


class RangeInUseError(PageFrameError, BufferError):
    """A view rests on addresses of the range."""


class CopyOnWriteError(PageFrameError, ValueError):
    """A snapshot may share the page: it must be copied before it is written."""


class SpaceClosedError(PageFrameError, ValueError):
    """The address space, or the cursor, is closed."""


class MapBudgetError(PageFrameError, MemoryError):
    """The process would have more kernel mappings than it may have."""


class ArenaClosedError(PageFrameError, ValueError):
    """The arena is closed."""


class ArenaInUseError(PageFrameError, BufferError):
    """The arena can't be closed: somebody still holds its frames or views."""


class ArenaNameError(PageFrameError, ValueError):
    """No arena can have this name."""


class ArenaExistsError(PageFrameError, FileExistsError):
    """There is an arena, or another file, of that name."""


class ArenaNotFoundError(PageFrameError, FileNotFoundError):
    """There is no arena of that name or at that path."""


class ArenaPermissionError(PageFrameError, PermissionError):
    """The arena belongs to another user."""


class ArenaFullError(PageFrameError, OSError):
    """The file system has no room for the arena."""


class ArenaGoneError(PageFrameError):
    """The arena of a pickle is not on this machine, or no longer."""


class ClientsFullError(PageFrameError):
    """As many processes as the arena has room for are attached."""


class TicketsFullError(PageFrameError):
    """As many messages as the arena has room for are in transit."""


class WriteAfterReleaseWarning(RuntimeWarning):
    """A frame of a poisoned arena was written while nobody held it."""


class BadArenaError(PageFrameError, ValueError):
    """The file is no arena that can be used."""


class ArenaForeignError(BadArenaError):
    """The file is no arena at all."""


class ArenaByteOrderError(BadArenaError):
    """The arena was made on a machine with another byte order."""


class ArenaVersionError(BadArenaError):
    """The arena has another version of the format."""


class ArenaTruncatedError(BadArenaError):
    """The arena's file is too short."""


class ArenaDamagedError(BadArenaError):
    """What the arena's tables say can't be true."""
