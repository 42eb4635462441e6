"""The audit log on disk: `<data dir>/audit/<number of its first entry>.jsonl`, one after another.

A file only ever grows, is synchronised to disk after each batch, and is readable by its owner alone. The oldest go
when all together are too large. A line that a kill tore is not there: the store has it, and it is written again.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from registry import audit_chain
from registry.audit_chain import MAX_LINE_BYTES, START, BrokenLine, Head

AUDIT_FOLDER = "audit"  # in the data folder
FILE_BYTES = 16 * 2**20  # 40,000 entries: what a reader looks through for one
_NAME = re.compile(r"[0-9]{12}\.jsonl")
_CLAIM = re.compile(rb'^\{"seq":([0-9]{1,15}),.*"hash":"([0-9a-f]{64})"\}$', re.DOTALL)


class AuditFiles:
    """One registry's files. Of several processes the one that holds the lock writes; everyone may read."""

    def __init__(self, folder: Path, keep_bytes: int, file_bytes: int = FILE_BYTES) -> None:
        self.folder = folder
        self._keep_bytes = keep_bytes
        self._file_bytes = file_bytes
        self._lock: int | None = None
        self._current: int | None = None  # the file that grows
        self._size = 0  # of it, up to the end of its last whole line
        self.head = START

    def acquire(self) -> bool:
        """Become the one that writes; False: another process is. Raises OSError."""
        if self._lock is not None:
            return True
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.head = last_head(self.folder)
        except BlockingIOError:
            os.close(lock)
            return False
        except OSError:
            os.close(lock)
            raise
        self._lock = lock
        return True

    def find_again(self) -> bool:
        """Whether the file that grows is the one in the folder, as long as we left it. Where it is not (somebody
        removed, replaced or cut it) begin anew with what is there. Raises OSError."""
        if self._current is None:
            return True
        ours = os.fstat(self._current)
        newest = self._newest()
        there = newest.stat() if newest is not None else None
        if there is not None and there.st_ino == ours.st_ino and ours.st_size >= self._size:
            return True
        os.close(self._current)
        self._current = None
        self.head = last_head(self.folder)
        return False

    def append(self, lines: Sequence[bytes]) -> None:
        """Write lines, and have them on disk. Raises OSError: then nothing of them counts as written."""
        if self._current is None:
            self._open(self._newest() or self._path(_claimed(lines[0]).seq))
        if self._size >= self._file_bytes:
            self._open(self._path(_claimed(lines[0]).seq))
            self._trim()
        assert self._current is not None
        os.ftruncate(self._current, self._size)  # what an attempt left that failed half way
        left = memoryview(b"".join(line + b"\n" for line in lines))
        written = len(left)
        while left:
            left = left[os.write(self._current, left) :]
        os.fsync(self._current)
        self._size += written
        claimed = _claimed(lines[-1])  # what is no line must not be asked for again and again
        self.head = claimed if claimed.seq > self.head.seq else Head(self.head.seq + len(lines), claimed.hash)

    def close(self) -> None:
        """Let another process write."""
        for descriptor in (self._current, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._current = self._lock = None

    def _open(self, path: Path) -> None:
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._current is not None:
            os.close(self._current)
        self._current = made
        self._size = _whole_size(path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _trim(self) -> None:
        files = paths(self.folder)
        total = sum(path.stat().st_size for path in files)
        for path in files[:-1]:
            if total <= self._keep_bytes:
                return
            total -= path.stat().st_size
            path.unlink()

    def _newest(self) -> Path | None:
        files = paths(self.folder)
        return files[-1] if files else None

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:012d}.jsonl"


def paths(folder: Path) -> list[Path]:
    """The log's files, oldest first. Raises OSError."""
    try:
        return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []


def read_lines(folder: Path, after: int = 0) -> Iterator[bytes]:
    """The lines that come after that number, as they stand; a last one that was torn does not end with a line feed.
    Raises OSError."""
    files = paths(folder)
    first = [int(path.stem) for path in files]
    begin = max((number for number, start in enumerate(first) if start <= after + 1), default=0)
    skipping = after > 0
    for path in files[begin:]:
        with path.open("rb") as file:
            while raw := file.readline(MAX_LINE_BYTES * 4):
                if skipping and _claimed(raw.rstrip(b"\n")).seq <= after:
                    continue
                skipping = False
                yield raw


def last_head(folder: Path) -> Head:
    """Where the files have come to, by what their last whole line says. Raises OSError."""
    for path in reversed(paths(folder)):
        size = _whole_size(path)
        if size:
            with path.open("rb") as file:
                file.seek(max(0, size - MAX_LINE_BYTES * 2))
                return _claimed(file.read(size - file.tell())[:-1].rpartition(b"\n")[2])
    return START


def _whole_size(path: Path) -> int:
    """Up to the end of the last whole line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        at = max(0, size - MAX_LINE_BYTES * 2)
        file.seek(at)
        return at + file.read(size - at).rfind(b"\n") + 1


def _claimed(raw: bytes) -> Head:
    """Where a line says that it stands; the start for what is no line. Whether that is true `audit verify` tells."""
    try:
        return audit_chain.read(raw).head
    except BrokenLine:
        found = _CLAIM.match(raw)
        return Head(int(found[1]), found[2].decode()) if found is not None else START
