"""The files of a watched folder, as the file system has them: which there are, and what is in them. Blocking calls."""

import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# Written next to what a person saves, and gone again soon.
TEMPORARY = ("*~", "*.swp", "*.swx", "*.tmp", "*.part", "*.crdownload")
_RACY_NS = 2_000_000_000  # no file system's clock is coarser


class FolderGoneError(Exception):
    """The folder itself is not there (any more), which says nothing about its files. The message says why."""


class Stat(NamedTuple):
    """What tells cheaply that a file has not changed."""

    mtime_ns: int
    size: int


UNSURE = -1
"""In place of a file's time: it was so young when it was read that a later change might have the same time."""


class Listing(NamedTuple):
    """The files of a folder.

    Attributes:
        found: paths within the folder, with `/`, of the files that are wanted.
        unreadable: paths of folders and files that could not be looked at: nothing is known about what is below.
        too_large: paths of files that are longer than allowed.
    """

    found: dict[str, Stat]
    unreadable: list[str]
    too_large: list[str]


class Selection:
    """Which paths are wanted: those that match a pattern to include and none to exclude, and are not hidden."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include, self._exclude = _pattern(include), _pattern((*exclude, *TEMPORARY))

    def wants(self, path: str) -> bool:
        """Whether a file is wanted, by its path within the folder."""
        name = path.rpartition("/")[2]
        if is_hidden(path) or self._exclude.fullmatch(name) or self._exclude.fullmatch(path):
            return False
        return bool(self._include.fullmatch(name) or self._include.fullmatch(path))


def is_hidden(path: str) -> bool:
    """Whether a part of a path begins with a dot."""
    return path.startswith(".") or "/." in path


def _pattern(patterns: Sequence[str]) -> re.Pattern[str]:
    # `**/` also stands for no folder at all, as in a shell.
    forms = [form for pattern in patterns for form in (pattern, pattern.removeprefix("**/"))]
    return re.compile("|".join(fnmatch.translate(form) for form in forms))


def identity(root: Path) -> tuple[int, int]:
    """Tells one folder from another that takes its place, such as the empty one below a mount that went away.

    Raises:
        FolderGoneError: there is no folder.
    """
    try:
        status = root.stat()
    except OSError as error:
        raise FolderGoneError(f"{root} is not there ({error.strerror})") from error
    if not stat.S_ISDIR(status.st_mode):
        raise FolderGoneError(f"{root} is not a folder")
    return status.st_dev, status.st_ino


def list_files(root: Path, selection: Selection, bytes_max: int, below: str = "") -> Listing:
    """The wanted files of a folder, or of the part `below` a path within it.

    Symbolic links to files are followed as long as they stay within the folder; links to folders are not.

    Raises:
        FolderGoneError: the folder is not there.
    """
    listing = Listing({}, [], [])
    real_root = os.path.realpath(root)
    identity(root)
    pending = [below]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            if not folder:
                raise FolderGoneError(f"{root} cannot be read ({error.strerror})") from error
            listing.unreadable.append(folder)
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if not _is_text(entry.name):
                listing.unreadable.append(repr(path))
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    pending.extend(() if entry.name.startswith(".") else (path,))
                elif selection.wants(path) and entry.is_file() and _inside(entry, real_root):
                    _list_file(listing, path, entry.stat(), bytes_max)
            except OSError:
                listing.unreadable.append(path)
    return listing


def _list_file(listing: Listing, path: str, status: os.stat_result, bytes_max: int) -> None:
    if status.st_size > bytes_max:
        listing.too_large.append(path)
    else:
        listing.found[path] = Stat(status.st_mtime_ns, status.st_size)


def _is_text(name: str) -> bool:
    """Whether a name is text; file systems allow any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _inside(entry: "os.DirEntry[str]", real_root: str) -> bool:
    return not entry.is_symlink() or os.path.realpath(entry.path).startswith(real_root + os.sep)


def look_at(root: Path, selection: Selection, bytes_max: int, paths: Sequence[str]) -> Listing:
    """The wanted files among paths, each of a file or a folder, of which some may not be there."""
    listing = Listing({}, [], [])
    real_root = os.path.realpath(root)
    for path in paths:
        full = root / path
        if full.is_dir() and not full.is_symlink():
            if not is_hidden(path):
                _merge(listing, list_files(root, selection, bytes_max, path))
        elif selection.wants(path):
            try:
                if full.is_file() and os.path.realpath(full).startswith(real_root + os.sep):
                    _list_file(listing, path, full.stat(), bytes_max)
            except FileNotFoundError:
                continue
            except OSError:
                listing.unreadable.append(path)
    return listing


def _merge(listing: Listing, other: Listing) -> None:
    listing.found.update(other.found)
    listing.unreadable.extend(other.unreadable)
    listing.too_large.extend(other.too_large)


class Content(NamedTuple):
    """A file's content and what was true of it at that time; None when it could not be read."""

    path: str
    content: bytes | None
    stat: Stat
    mtime_ns: int


def read_files(root: Path, paths: Sequence[str], bytes_max: int, batch_bytes: int, now_ns: int) -> Iterator[Content]:
    """Read files one after the other, until they are gone through or hold more than `batch_bytes`."""
    total = 0
    for path in paths:
        try:
            with (root / path).open("rb") as file:
                status = os.fstat(file.fileno())
                content = file.read(bytes_max + 1)
        except OSError:
            yield Content(path, None, Stat(UNSURE, 0), 0)
            continue
        young = now_ns - status.st_mtime_ns < _RACY_NS
        known_as = Stat(UNSURE if young else status.st_mtime_ns, len(content))
        # A file that has grown beyond the limit since it was listed is left to the next look at it.
        yield Content(path, content if len(content) <= bytes_max else None, known_as, status.st_mtime_ns)
        total += len(content)
        if total > batch_bytes:
            return
