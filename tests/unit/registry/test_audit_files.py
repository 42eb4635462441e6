"""The log on disk: files that go on from one another, kills, full disks, and whoever writes beside us."""

import os
from pathlib import Path

import pytest

from registry import audit_chain
from registry.audit_chain import START, Head
from registry.audit_files import AuditFiles, last_head, paths, read_lines
from registry.audit_reader import Wanted, page
from registry.audit_verify import Verifier

ALL = Wanted()


def chain(count: int, after: Head = START) -> list[bytes]:
    lines = []
    for number in range(count):
        entry = audit_chain.body(
            at=f"2026-01-0{number % 9 + 1}", action="a" if number % 2 else "b", by={"kind": "admin"}
        )
        after, line = audit_chain.link(after, entry)
        lines.append(line)
    return lines


def opened(folder: Path, keep_bytes: int = 10**9, file_bytes: int = 10**9) -> AuditFiles:
    made = AuditFiles(folder, keep_bytes, file_bytes)
    assert made.acquire()
    return made


def is_sound(folder: Path) -> bool:
    return not Verifier(None).check(read_lines(folder)).problems


def test_the_chain_goes_on_over_starts_and_files_and_the_oldest_go(tmp_path: Path) -> None:
    lines = chain(60)
    for start in range(0, 60, 6):  # a start each; a file takes two of them
        files = opened(tmp_path / "audit", keep_bytes=5_000, file_bytes=1_500)
        files.append(lines[start : start + 6])
        assert files.head.seq == start + 6
        files.close()
    kept = list(read_lines(tmp_path / "audit"))
    assert 1 < len(paths(tmp_path / "audit")) < 5
    assert kept == [line + b"\n" for line in lines[-len(kept) :]]
    assert len(kept) < 60
    assert is_sound(tmp_path / "audit")


def test_it_is_for_its_owner_only(tmp_path: Path) -> None:
    files = opened(tmp_path / "audit")
    files.append(chain(1))
    (path,) = paths(files.folder)
    assert (files.folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    files.close()


@pytest.mark.parametrize("torn", [1, 40, 200])
def test_what_a_kill_tore_is_written_again_whole(tmp_path: Path, torn: int) -> None:
    lines = chain(3)
    files = opened(tmp_path)
    files.append(lines[:2])
    files.close()
    (path,) = paths(tmp_path)
    with path.open("ab") as file:
        file.write(lines[2][:torn])
    assert last_head(tmp_path).seq == 2
    files = opened(tmp_path)
    assert files.head.seq == 2
    files.append(lines[2:])
    files.close()
    assert [line.rstrip() for line in read_lines(tmp_path)] == lines


def test_an_attempt_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = chain(4)
    files = opened(tmp_path)
    files.append(lines[:1])

    def full(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)  # as a disk does that is full
    with pytest.raises(OSError, match="No space"):
        files.append(lines[1:3])
    assert files.head.seq == 1
    monkeypatch.undo()
    files.append(lines[1:])
    files.close()
    assert [line.rstrip() for line in read_lines(tmp_path)] == lines


@pytest.mark.parametrize("what", ["removed", "replaced", "cut"])
def test_a_file_that_somebody_took_away_is_not_written_to_for_ever(tmp_path: Path, what: str) -> None:
    lines = chain(4)
    files = opened(tmp_path)
    files.append(lines[:2])
    assert files.find_again()
    (path,) = paths(tmp_path)
    whole = path.read_bytes()
    if what == "cut":
        os.truncate(path, len(lines[0]) + 1)
    else:
        path.unlink()
    if what == "replaced":
        path.write_bytes(whole)
    assert not files.find_again()
    assert files.head.seq == {"removed": 0, "replaced": 2, "cut": 1}[what]
    files.append(lines[files.head.seq :])
    files.close()
    assert [line.rstrip() for line in read_lines(tmp_path)] == lines


def test_one_process_writes_and_everybody_reads(tmp_path: Path) -> None:
    files, other = opened(tmp_path), AuditFiles(tmp_path, 1)
    files.append(chain(2))
    assert not other.acquire()
    assert last_head(tmp_path).seq == 2
    files.close()
    assert other.acquire()
    assert other.head.seq == 2
    other.close()


def test_a_log_that_somebody_filled_with_rubbish_is_not_written_for_ever(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.append([b"rubbish", b"more"])
    assert files.head.seq == 2
    files.close()
    assert last_head(tmp_path) == START
    assert not is_sound(tmp_path)


def test_pages_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    lines = chain(30)
    files = opened(tmp_path, file_bytes=2_000)
    for start in range(0, 30, 5):
        files.append(lines[start : start + 5])
    files.close()
    found, after = [], 0
    while True:
        got = page(tmp_path, after, 4, ALL)
        found += got.lines
        if got.after is None:
            break
        after = got.after
    assert found == lines
    assert page(tmp_path, 28, 10, ALL).lines == lines[28:]
    assert page(tmp_path, 999, 10, ALL) == ([], None)
    assert len(page(tmp_path, 0, 100, Wanted(action="b", since="2026-01-05")).lines) == 8
    assert page(tmp_path, 0, 100, Wanted(actor="node")).lines == []
    assert page(tmp_path / "none", 0, 100, ALL) == ([], None)
