"""`dagi-registry audit list|verify|export`: of a running registry, or offline of its data folder.

Exit status: 0 all is well, 1 the log is not the one that was written (or could not be checked against a peer), 2 it
could not be read.
"""

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import urlencode

import typer

from registry.federation_cli import AsJson, EnvFile, TlsCa, Url

if TYPE_CHECKING:  # `serve` imports this module too, and needs none of these
    from registry.admin_client import AdminClient
    from registry.audit_reader import Wanted
    from registry.audit_verify import Sighting

UNSOUND, NOT_READ = 1, 2
AUDIT, NDJSON, PAGE = "/api/v1/audit", "application/x-ndjson", 1_000

app = typer.Typer(no_args_is_help=True, help="Who did what, when, from where, with which key.")


def _flag(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False)


DataDir = Annotated[Path | None, _flag("Read the log of this data folder instead of asking a registry.")]
Since = Annotated[str, _flag("Only from then on: 2026-01-31, or 2026-01-31T12:00 (UTC).")]
Action = Annotated[str, _flag("Only what begins so: key., node.deregistered, checkpoint.")]
Actor = Annotated[str, _flag("Only what that kind of key, key id or node did.")]


@app.command("list")
def list_command(
    data_dir: DataDir = None,
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    since: Since = "",
    action: Action = "",
    actor: Actor = "",
    limit: Annotated[int, typer.Option(help="So many of the newest.", min=1, max=1_000_000)] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the newest entries. The key comes from REGISTRY_ADMIN_KEY."""

    def run() -> int:
        source = _Source(data_dir, url, env_file, tls_ca)
        newest = deque(source.lines(_wanted(since, action, actor)), maxlen=limit)
        _show(newest, as_json)
        return 0

    _do(run)


@app.command("export")
def export_command(
    data_dir: DataDir = None,
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    since: Since = "",
    action: Action = "",
    actor: Actor = "",
) -> None:
    """Write the log to standard output, one JSON object a line, byte for byte: whole, `verify --witness` and
    `verify --file` take it. The key comes from REGISTRY_ADMIN_KEY."""

    def run() -> int:
        source = _Source(data_dir, url, env_file, tls_ca)
        for line in source.lines(_wanted(since, action, actor)):
            sys.stdout.buffer.write(line)
        return 0

    _do(run)


@app.command("verify")
def verify_command(
    data_dir: DataDir = None,
    url: Url = None,
    env_file: EnvFile = None,
    tls_ca: TlsCa = None,
    file: Annotated[Path | None, _flag("Verify this exported log.")] = None,
    witness: Annotated[list[Path] | None, _flag("Another registry's exported log; may be repeated.")] = None,
    peer: Annotated[list[str] | None, _flag("Another registry to ask what it saw; may be repeated.")] = None,
    registry_id: Annotated[str | None, _flag("Whose log it is; else the log says it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that the log is the one that was written: its chain, its signatures, and what other registries saw of
    it. The key comes from REGISTRY_ADMIN_KEY; a peer has to take it too."""

    def run() -> int:
        from registry.audit_verify import Verifier, sightings_in

        source = _Source(data_dir, url, env_file, tls_ca, file)
        about = registry_id or source.registry_id()
        seen: list[Sighting] = []
        faults: list[str] = []
        others = [(str(path), _Source(None, None, None, None, path)) for path in witness or ()]
        others += [(address, _Source(None, address, env_file, tls_ca)) for address in peer or ()]
        for name, other in others:
            found, wrong = sightings_in(other.lines(), about, name)
            if not found:
                wrong.append(f"{name} has seen nothing of {about}'s log")
            seen, faults = seen + found, faults + wrong
        verdict = Verifier(source.identity(), seen).check(source.lines())
        verdict.registry_id = about
        verdict.problems += faults
        _tell(verdict.summary(), as_json)
        return UNSOUND if verdict.problems else 0

    _do(run)


class _Source:
    """Where a log comes from."""

    def __init__(
        self,
        data_dir: Path | None,
        url: str | None,
        env_file: Path | None,
        tls_ca: Path | None,
        file: Path | None = None,
    ) -> None:
        self._data_dir = data_dir.expanduser() if data_dir is not None else None
        self._file = file
        self._client: AdminClient | None = None
        if data_dir is None and file is None:
            from registry import admin_client

            self._client = admin_client.AdminClient(admin_client.target(url, env_file, tls_ca, os.environ))

    def lines(self, wanted: "Wanted | None" = None) -> Iterator[bytes]:
        """Lines with their ends, as they stand."""
        if self._client is not None:
            return self._asked(self._client, wanted)
        return self._kept(wanted)

    def registry_id(self) -> str:
        """Whose log it is: the target of what a registry notes of itself."""
        for line in self.lines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("action") in ("writer.began", "registry.started"):
                return str(entry.get("target"))
        raise _CannotRead("the log does not say whose it is; give --registry-id")

    def identity(self) -> bytes | None:
        """The registry's public key, where its data folder is at hand."""
        path = self._data_dir / "identity.key" if self._data_dir is not None else None
        if path is None or not path.exists():
            return None
        from federation.identity import IdentityError, load_or_create_identity

        try:
            key = load_or_create_identity(path.parent)
        except IdentityError as error:
            raise _CannotRead(str(error)) from None
        return key.public

    def _kept(self, wanted: "Wanted | None") -> Iterator[bytes]:
        from registry.audit_files import AUDIT_FOLDER, paths, read_lines
        from registry.audit_reader import decoded

        if self._data_dir is not None and not paths(self._data_dir / AUDIT_FOLDER):
            raise _CannotRead(f"there is no audit log in {self._data_dir}; is it a registry's --data-dir?")
        lines: Iterable[bytes]
        if self._file is not None:
            lines = _lines_of(self._file)
        else:
            assert self._data_dir is not None
            lines = read_lines(self._data_dir / AUDIT_FOLDER)
        if wanted is None:
            yield from lines
            return
        for _, raw, entry in decoded(lines):
            if entry is not None and wanted.has(entry):
                yield raw + b"\n"

    @staticmethod
    def _asked(client: "AdminClient", wanted: "Wanted | None") -> Iterator[bytes]:
        after: str = "0"
        while after:
            asked = {"after": after, "limit": str(PAGE)}
            if wanted is not None:
                asked |= {name: value for name in ("since", "action", "actor") if (value := getattr(wanted, name))}
            answer = client.get(f"{AUDIT}?{urlencode(asked)}", accept=NDJSON)
            if answer.status != 200:
                raise _CannotRead(f"{client.url}: {answer.detail}")
            yield from answer.raw.splitlines(keepends=True)
            after = answer.headers.get("X-Next-After", "")


def _lines_of(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        yield from opened


class _CannotRead(Exception):
    """Says why, and what to do."""


def _wanted(since: str, action: str, actor: str) -> "Wanted":
    from registry.audit_reader import Wanted

    return Wanted(since, action, actor)


def _do(command: Callable[[], int]) -> NoReturn:
    from registry.admin_client import CannotAsk

    try:
        result = command()
    except (CannotAsk, _CannotRead) as error:
        typer.echo(f"dagi-registry: {error}", err=True)
        result = NOT_READ
    except BrokenPipeError:  # as with `| head`
        sys.stderr.close()
        result = 0
    except OSError as error:
        typer.echo(f"dagi-registry: {error.filename or 'the log'} cannot be read: {error.strerror}", err=True)
        result = NOT_READ
    raise typer.Exit(result)


def _show(lines: Iterable[bytes], as_json: bool) -> None:
    entries = [json.loads(line) for line in lines]
    if as_json:
        typer.echo(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    for entry in entries:
        by = entry["by"]
        who = " ".join(str(by[name]) for name in ("kind", "node_id", "key_id") if by.get(name))
        told = {"target": entry["target"], "from": entry["from"], **entry["detail"]}
        rest = " ".join(f"{name}={_plain(value)}" for name, value in told.items() if value not in ("", None))
        outcome = "" if entry["outcome"] == "ok" else f" REFUSED {_plain(entry['outcome'])}"
        typer.echo(f"{entry['seq']:>6} {entry['at']} {_plain(entry['action'])}{outcome} by {_plain(who)} {rest}")


def _plain(value: Any) -> str:
    """On one line, and nothing in it that a terminal would obey: callers choose ids."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)
    return text if text.isascii() and text.isprintable() else json.dumps(text, ensure_ascii=True)


def _tell(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        typer.echo(
            f"{_plain(found['registry_id'])}: {found['entries']} entries, {found['first']} to {found['last']} "
            f"({found['first_at']} to {found['last_at']}), {found['checkpoints']} own signatures, "
            f"{found['witnesses']} heads that others saw"
        )
        for note in found["notes"]:
            typer.echo(f"note: {_plain(note)}")
        if found["ok"]:
            typer.echo(f"sound. Its head, to be kept elsewhere: {found['last']} {found['hash']}")
    for problem in found["problems"]:
        typer.echo(f"dagi-registry: {_plain(problem)}", err=True)
