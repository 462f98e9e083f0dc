# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Where the bytes of a shared arena are, and the locks that tell who lives.

An arena without a name lies in a memfd, sealed so that nobody can change its
size; one with a name in a file under /dev/shm or at a path of the user's own.
A named arena is complete before it gets its name, so nobody ever meets half an
arena, and a creator that is killed leaves nothing behind.

Locks are open-file-description locks on bytes of that file.  Each attached
process opens the file for itself and holds the lock on its own record in the
table of clients; the kernel drops it when the process is gone, however it went.
Three more bytes are locked for moments: byte 0 while a client comes or goes, so
that the last one to go knows that it is the last, byte 1 while a process repairs
the arena, and the first byte of the type registry while a type is added.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pageframe._core.errors import (
    ArenaByteOrderError,
    ArenaDamagedError,
    ArenaExistsError,
    ArenaForeignError,
    ArenaFullError,
    ArenaNameError,
    ArenaNotFoundError,
    ArenaPermissionError,
    ArenaTruncatedError,
    ArenaVersionError,
    BadArenaError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SHM = Path("/dev/shm")
PREFIX = "pageframe-"
MEMFD = "/memfd:" + PREFIX
NAME_MAX = 200

MAGIC = b"PGFRAME\0"
VERSION = 3
BYTE_ORDER = 0x01020304
HEADER_SIZE = 576
CHECKED = 224  # bytes that the checksum covers; it follows them
TABLES = ("header", "types", "clients", "tickets", "bits", "chunks", "slots", "areas")
OWN_TYPES = 6  # that any arena has
UNLINK_ON_LAST = 1
TRACE = 8
RINGS_SIZE = 64 * 256 * 32  # at the end of an area, if there is a trace
GONE = 520  # offset of the word that says so
MEMBERSHIP = 0  # offset of the byte that is locked while a client comes or goes
REPAIR = 1  # of the byte that is locked while a process repairs

# struct flock: type, whence, start, length, pid
_FLOCK = struct.Struct("hhqqi0q")


class Header(NamedTuple):
    """What the header of an arena says that never changes, and whether it is gone."""

    size: int
    frames: int
    page_size: int
    slot_size: int
    type_capacity: int
    client_capacity: int
    tables: dict[str, tuple[int, int]]
    id: bytes
    own_frames: int
    area_size: int
    ticket_capacity: int
    flags: int
    created: int
    gone: bool
    raw: bytes


_HEADER = struct.Struct("=8sIIQQIIII16Q16sQQIIQQ")


def fnv1a(data: bytes) -> int:
    """Return the FNV-1a hash of some bytes, 64 bits wide."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def read_header(fd: int, where: str) -> Header:
    """Read and check the header of an arena.

    Raises
    ------
    ArenaForeignError
        If the file is empty or holds something else.
    ArenaByteOrderError, ArenaVersionError
        If it was made by a machine or a version that this one can't understand.
    ArenaTruncatedError
        If the file is shorter than the header says.
    ArenaDamagedError
        If the header contradicts its checksum, or itself.
    """
    data = os.pread(fd, HEADER_SIZE, 0)
    if not data:
        raise ArenaForeignError(f"{where} is empty: no arena")
    if len(data) < HEADER_SIZE:
        if data[:8] == MAGIC[: len(data[:8])]:
            raise ArenaTruncatedError(f"{where} has {len(data)} bytes, less than the header of an arena")
        raise ArenaForeignError(f"{where} is no arena: it has {len(data)} bytes")
    magic, version, order, size, frames, page, slot, types, clients, *rest = _HEADER.unpack(
        data[: _HEADER.size]
    )
    offsets, (arena_id, own, area, tickets, flags, created, checksum) = rest[:16], rest[16:]
    if magic != MAGIC:
        if magic == MAGIC[::-1]:
            raise ArenaByteOrderError(f"{where} is an arena of a machine with another byte order")
        raise ArenaForeignError(f"{where} is no arena: it begins with {magic!r}")
    if order != BYTE_ORDER:
        if order == int.from_bytes(BYTE_ORDER.to_bytes(4, "little"), "big"):
            raise ArenaByteOrderError(f"{where} is an arena of a machine with another byte order")
        raise ArenaDamagedError(f"{where} is damaged: its byte order is {order:#x}")
    if version != VERSION:
        raise ArenaVersionError(f"{where} has version {version} of the format, this is version {VERSION}")
    if checksum != fnv1a(data[:CHECKED]):
        raise ArenaDamagedError(f"{where} is damaged: the checksum of its header is wrong")
    tables = {name: (offsets[2 * i], offsets[2 * i + 1]) for i, name in enumerate(TABLES)}
    header = Header(
        size, frames, page, slot, types, clients, tables, arena_id, own, area, tickets, flags,
        created, data[GONE : GONE + 4] != b"\0\0\0\0", data,
    )  # fmt: skip
    check_geometry(header, where)
    length = os.fstat(fd).st_size
    if length < size + tables["areas"][1]:
        raise ArenaTruncatedError(
            f"{where} has {length} bytes of {size + tables['areas'][1]}: it was truncated"
        )
    return header


def check_geometry(header: Header, where: str) -> None:
    """Refuse a header whose figures can't be true together, whatever its checksum says."""
    chunks = -(-header.frames // 512)
    least = {
        "header": HEADER_SIZE,
        "types": 256 * header.type_capacity,
        "clients": 128 * header.client_capacity,
        "tickets": 64 * header.ticket_capacity,
        "bits": 64 * chunks,
        "chunks": 8 * chunks,
        "slots": header.slot_size * header.frames,
    }
    sound = (
        header.page_size.bit_count() == header.slot_size.bit_count() == 1
        and 4096 <= header.page_size <= 1 << 30
        and 64 <= header.slot_size <= 256
        and 0 < header.frames < 1 << 32
        and header.size == header.frames * header.page_size
        and header.own_frames < header.frames
        and OWN_TYPES <= header.type_capacity < 128
        and 0 < header.client_capacity <= 4096
        and header.area_size % 4096 == 0
        and header.area_size >= 4096 + 4 * header.frames + (RINGS_SIZE if header.flags & TRACE else 0)
        and header.tables["areas"] == (header.size, header.client_capacity * header.area_size)
        and header.tables["header"][0] == 0
    )
    for name, size in least.items():
        offset, given = header.tables[name]
        sound = sound and offset % 4096 == 0 and size <= given and offset + given <= header.size
    ranges = sorted((offset, offset + size) for offset, size in header.tables.values() if size)
    sound = sound and all(stop <= start for (_, stop), (start, _) in pairwise(ranges))
    if not sound:
        raise ArenaDamagedError(f"{where} is damaged: the sizes in its header contradict each other")


# -- files -------------------------------------------------------------------------------------


def path_of(name: str) -> Path:
    """Return where the arena of a name lies.

    Raises
    ------
    ArenaNameError
        If the name can't be that of a file in one folder.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of an arena is a string, not {type(name).__name__}")
    if not name or "/" in name or "\0" in name or len(os.fsencode(name)) > NAME_MAX:
        raise ArenaNameError(
            f"{name!r} is no name for an arena: it must have 1 to {NAME_MAX} bytes and no slash"
        )
    return SHM / (PREFIX + name)


def name_of(path: Path) -> str | None:
    """Return the name of an arena under /dev/shm; None for a file elsewhere."""
    return path.name.removeprefix(PREFIX) if path.parent == SHM else None


def create_file(path: Path | None, label: str, total: int, reserved: int) -> int:
    """Return a descriptor of a new file, which has no name yet.

    Parameters
    ----------
    path
        Where it will lie; None for a memfd.
    label
        Shown by the system for a memfd.
    total
        Bytes of the file.
    reserved
        Bytes from its start that the file system must set aside now.

    Raises
    ------
    ArenaFullError
        If the file system has not that much room.
    """
    if path is None:
        return create_memfd(PREFIX + label, total)
    fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)  # whatever the umask
        set_size(fd, total, str(path))
        reserve(fd, 0, reserved, str(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def create_private(size: int) -> int:
    """Return a descriptor of the memory of a private arena, which nobody can find."""
    return create_memfd("pageframe", size)


def create_memfd(label: str, size: int) -> int:
    """Return a descriptor of a memfd, sealed so that nobody can change its size."""
    fd = os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        set_size(fd, size, "a memfd")
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def set_size(fd: int, size: int, where: str) -> None:
    """Make a file so large, with a hole for all that it does not have."""
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        raise no_room(error, size, where) from None


def reserve(fd: int, offset: int, size: int, where: str) -> None:
    """Have the file system set memory aside, so that touching it can't fail later."""
    try:
        os.posix_fallocate(fd, offset, size)
    except OSError as error:
        raise no_room(error, size, where) from None


def no_room(error: OSError, size: int, where: str) -> OSError:
    """Return the error to raise where a file could not be made larger."""
    if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return error
    return ArenaFullError(
        error.errno, f"the file system can't hold {size} bytes more: {error.strerror}", where
    )


def publish(fd: int, path: Path) -> None:
    """Give a file its name.

    Raises
    ------
    ArenaExistsError
        If there is a file of that name.
    """
    folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # With a folder given Python calls linkat(2), which alone follows the link to the file.
        os.link(str(fd), path, src_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        raise ArenaExistsError(errno.EEXIST, "there is an arena or a file of that name", str(path)) from None
    finally:
        os.close(folder)


def place_of(name: str | None, path: str | bytes | os.PathLike[str] | None) -> Path | None:
    """Return the file of an arena that has a name or a path; None if it has neither.

    Raises
    ------
    ArenaNameError
        If there can be no such file.
    """
    if name is not None and path is not None:
        raise TypeError("an arena has a name or a path, not both")
    if path is not None:
        where = os.fsdecode(path)
        if "\0" in where:
            raise ArenaNameError(f"{where!r} is no path for an arena: it has a NUL")
        return Path(where).absolute()
    return None if name is None else path_of(name)


def open_file(path: Path, mode: int = os.O_RDWR) -> int:
    """Open the file of an arena, to be read and written or in another mode.

    Raises
    ------
    ArenaNotFoundError
        If there is none.
    ArenaPermissionError
        If it belongs to another user.
    ArenaForeignError
        If it is no regular file.
    """
    try:
        # Who may write to /dev/shm could put a link there to any file of ours.
        follow = 0 if path.parent != SHM else os.O_NOFOLLOW
        fd = os.open(path, mode | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | follow)
    except FileNotFoundError:
        raise ArenaNotFoundError(errno.ENOENT, "there is no such arena", str(path)) from None
    except PermissionError as error:
        raise ArenaPermissionError(
            error.errno, "this arena belongs to another user, or is not writable", str(path)
        ) from None
    except IsADirectoryError:
        raise ArenaForeignError(f"{path} is a directory: no arena") from None
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ELOOP):
            raise
        raise ArenaForeignError(f"{path} is no regular file: no arena") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ArenaForeignError(f"{path} is no regular file: no arena")
    return fd


def check_owner(fd: int, where: str) -> None:
    """Refuse an arena of another user, who could damage it under our hands.

    Raises
    ------
    ArenaPermissionError
    """
    if os.fstat(fd).st_uid != os.geteuid():
        raise ArenaPermissionError(errno.EPERM, "this arena belongs to another user", where)


def open_again(fd: int, mode: int = os.O_RDWR) -> int:
    """Open a file once more: another open file description, with locks of its own."""
    return os.open(f"/proc/self/fd/{fd}", mode | os.O_CLOEXEC)


def remove_name(fd: int, path: Path) -> bool:
    """Remove a name if it still is that of an open file."""
    try:
        if os.path.samestat(path.stat(), os.fstat(fd)):
            path.unlink()
            return True
    except FileNotFoundError:
        return False
    return False


# -- locks -------------------------------------------------------------------------------------


def lock(fd: int, offset: int, wait: bool) -> bool:
    """Lock a byte; return whether it could be had."""
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(fd, command, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(fd: int, offset: int) -> None:
    """Unlock a byte."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0))


def locked(fd: int, offset: int, size: int) -> bool:
    """Whether somebody else has a lock within a range."""
    flock = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, size, 0))
    kind: int = _FLOCK.unpack(flock)[0]
    return kind != fcntl.F_UNLCK


def clients_live(fd: int, header: Header) -> bool:
    """Whether any other client is attached."""
    return locked(fd, *header.tables["clients"])


# -- finding and sweeping ----------------------------------------------------------------------


def named_files() -> Iterator[Path]:
    """Yield the files under /dev/shm that may be arenas."""
    yield from sorted(SHM.glob(PREFIX + "*"))


def sweep_file(path: Path) -> bool:
    """Remove a named arena that processes which were killed have left; return whether it was."""
    try:
        fd = open_file(path)
    except (OSError, BadArenaError):
        return False
    try:
        check_owner(fd, str(path))
        header = read_header(fd, str(path))
        if not header.flags & UNLINK_ON_LAST or not lock(fd, MEMBERSHIP, wait=False):
            return False
        if clients_live(fd, header):
            return False
        os.pwrite(fd, b"\1\0\0\0", GONE)
        return remove_name(fd, path)
    except (ArenaPermissionError, BadArenaError):
        return False  # not ours to remove
    finally:
        os.close(fd)


def sweep() -> None:
    """Remove all named arenas that killed processes have left."""
    for path in named_files():
        sweep_file(path)


def unnamed_files(pids: Iterable[int]) -> Iterator[tuple[bytes, Path]]:
    """Yield the arenas without a name that processes of this user have open: id, file."""
    for pid in pids:
        try:
            links = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue  # the process is gone or another user's
        for link in links:
            arena_id = unnamed_id(link)
            if arena_id is not None:
                yield arena_id, link


def unnamed_id(link: Path) -> bytes | None:
    """Return the id of the arena in an open file, if it is one and has no name, or none any more."""
    try:
        target = str(link.readlink())
        if target.startswith(MEMFD):
            return bytes.fromhex(target[len(MEMFD) :][:32])
        status = link.stat() if target.endswith(" (deleted)") else None
        # A file that was made without a name shows as deleted though it has got one.
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_nlink:
            return None
        with open(open_file(link, os.O_RDONLY), "rb") as file:
            data = file.read(HEADER_SIZE)
        return data[176:192] if data.startswith(MAGIC) else None
    except (OSError, ValueError):
        return None  # closed meanwhile or another file by now, or a stranger's is called alike


def all_pids() -> Iterator[int]:
    """Yield the processes of this machine."""
    yield from (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def find_unnamed(arena_id: bytes, pid: int, mode: int = os.O_RDWR) -> int | None:
    """Open an arena without a name that a process of this user has; return a descriptor.

    Parameters
    ----------
    arena_id
        Which arena.
    pid
        The process that is asked first.
    mode
        How to open it.
    """
    for found, link in unnamed_files(chain((pid,), all_pids())):
        if found == arena_id:
            try:
                fd = open_file(link, mode)
            except (OSError, BadArenaError):
                continue  # closed meanwhile: perhaps another process has it
            if unnamed_id(Path(f"/proc/self/fd/{fd}")) == arena_id:
                return fd
            os.close(fd)  # the descriptor was closed and is another file's
    return None


def unnamed_ids() -> set[bytes]:
    """Return the ids of the arenas without a name that processes of this user have."""
    return {arena_id for arena_id, _ in unnamed_files(all_pids())}


def open_by_id(digits: str, mode: int = os.O_RDONLY) -> int:
    """Open an arena without a name, by the first digits of its id.

    Raises
    ------
    ArenaNotFoundError
        If there is none.
    ArenaNameError
        If there are more.
    """
    if not isinstance(digits, str):
        raise TypeError(f"the id of an arena is a string, not {type(digits).__name__}")
    found = sorted(arena_id for arena_id in unnamed_ids() if arena_id.hex().startswith(digits.lower()))
    if len(found) > 1:
        raise ArenaNameError(f"{len(found)} arenas have an id that begins with {digits!r}")
    fd = find_unnamed(found[0], os.getpid(), mode) if found else None
    if fd is None:
        raise ArenaNotFoundError(errno.ENOENT, "no arena without a name has such an id", digits)
    return fd
