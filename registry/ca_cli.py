"""`dagi-registry ca init|issue|renew`: a private authority in a folder, for mutual TLS.

Exit status: 0 done, 2 it was not, and nothing was written. Works without a registry, best on a machine that is none.
"""

import contextlib
import json
import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # `serve` imports this module too, and needs none of it
    from registry.ca import Authority, Kind

NOT_DONE = 2
DEFAULT_DIR = Path("~/.dagi/ca")
CERTIFICATE, KEY = "ca.crt", "ca.key"
_SETTINGS = {
    "node": ("NODE_CERT", "NODE_KEY", "CA_CERT"),
    "registry": ("REGISTRY_TLS_CERT", "REGISTRY_TLS_KEY", "REGISTRY_TLS_CA"),
}

app = typer.Typer(add_completion=False, no_args_is_help=True, help="A private authority for mutual TLS.")


def _flag(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, show_default=False, **more)


AsJson = Annotated[bool, _flag("For programs.", "--json")]
Force = Annotated[bool, _flag("Replace files that are there.", "--force")]
CaDir = Annotated[Path, _flag("The authority's folder (~/.dagi/ca).", "--ca")]
Days = Annotated[int | None, _flag("For how many days it is good (365).", min=1, max=36_500)]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where it is kept (~/.dagi/ca).", show_default=False)] = DEFAULT_DIR,
    name: Annotated[str, _flag("What people will see that it is called.")] = "dagi private CA",
    permit: Annotated[list[str] | None, _flag("Only such hosts' names, or networks; repeat. All by default.")] = None,
    days: Annotated[int | None, _flag("For how many days it is good (3650).", min=1, max=36_500)] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make an authority: a key, and the certificate that everybody is to trust."""
    from registry import ca

    folder = folder.expanduser().absolute()
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_existing([folder / KEY, folder / CERTIFICATE], force)
        key = ca.new_key()
        pem = ca.new_authority(name, key, _now(), days or ca.CA_DAYS, permit or ())
        _write(folder / KEY, ca.key_pem(key), 0o600)
        _write(folder / CERTIFICATE, pem, 0o644)
    report = {"certificate": str(folder / CERTIFICATE), "key": str(folder / KEY), "expires_at": _until(pem)}
    where = "" if folder == DEFAULT_DIR.expanduser().absolute() else f" --ca {shlex.quote(str(folder))}"
    _show(report, as_json, [
        f"Authority in {folder}, good until {report['expires_at']}.",
        f"{CERTIFICATE} goes to every node and registry; {KEY} stays here: who has it can be any of them.",
        f"Next, for each: dagi-registry ca issue{where} --registry eu --host registry-eu.example.org",
        f"                dagi-registry ca issue{where} --node <node id>",
    ])  # fmt: skip


@app.command()
def issue(
    node: Annotated[str | None, _flag("For the node of this id.")] = None,
    registry: Annotated[str | None, _flag("For the registry of this id.")] = None,
    host: Annotated[list[str] | None, _flag("A name or address under which it is dialled; repeat.")] = None,
    days: Days = None,
    ca: CaDir = DEFAULT_DIR,
    out: Annotated[Path, _flag("Folder for certificate and key (this one).")] = Path(),
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make a key and a certificate for one node or one registry."""
    from registry import ca as core

    if (node is None) == (registry is None):
        raise _refused("name one: --node ID or --registry ID")
    kind: Kind = "node" if node is not None else "registry"
    identity = (node if node is not None else registry) or ""
    with _explained(ca):
        authority = _authority(ca)
        key = core.new_key()
        public = key.public_key()
        pem = core.issued(authority, kind, identity, public, host or (), _now(), days or core.HOLDER_DAYS)
        stem = out.expanduser().absolute() / (identity if kind == "node" else f"registry-{identity}")
        certificate, secret = Path(f"{stem}.crt"), Path(f"{stem}.key")
        _refuse_existing([secret, certificate], force)
        _write(secret, core.key_pem(key), 0o600)
        _write(certificate, pem, 0o644)
    files = (str(certificate), str(secret), str(ca.expanduser().absolute() / CERTIFICATE))
    settings = dict(zip(_SETTINGS[kind], files, strict=True))
    if kind == "registry" and not host:
        typer.echo(
            "warning: without --host nobody can dial this registry: TLS wants the name that is dialled", err=True
        )
    report = {"kind": kind, "id": identity, "certificate": files[0], "key": files[1], "ca": files[2]}
    _show({**report, "expires_at": _until(pem), "settings": settings}, as_json, [
        f"Certificate of {kind} {identity}, good until {_until(pem)}.",
        "Bring these three files to its machine, the key to nobody else, and set there what they are called:",
        *(f"    {name}={value}" for name, value in settings.items()),
    ])  # fmt: skip


@app.command()
def renew(
    file: Annotated[Path, typer.Argument(help="The certificate; the authority's own ca.crt too.")],
    days: Annotated[int | None, _flag("For how many days (as the one before).", min=1, max=36_500)] = None,
    ca: CaDir = DEFAULT_DIR,
    as_json: AsJson = False,
) -> None:
    """Put a new certificate for the same key in a certificate's place. What uses the file takes it up by itself."""
    from registry import ca as core

    file = file.expanduser().absolute()
    with _explained(file):
        old = file.read_bytes()
        if old.count(b"-----BEGIN") > 1:
            raise _refused(f"{file} holds more than a certificate, which would be lost; renew a file of its own")
        pem = core.renewed(_authority(ca), old, _now(), days)
        _write(file, pem, file.stat().st_mode & 0o777)
    _show({"certificate": str(file), "expires_at": _until(pem)}, as_json, [
        f"{file} is good until {_until(pem)}; its key is the same.",
        "If the machine that uses it is another one, bring it there; nothing has to be restarted.",
    ])  # fmt: skip


def _authority(folder: Path) -> "Authority":
    from registry.ca import authority_of

    folder = folder.expanduser().absolute()
    try:
        return authority_of((folder / CERTIFICATE).read_bytes(), (folder / KEY).read_bytes())
    except FileNotFoundError as error:
        raise _refused(
            f"{error.filename}: there is no authority here; make one: dagi-registry ca init {folder}"
        ) from None


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Say what cannot be done, and end with 2."""
    from registry.ca import CannotIssueError, WrongNameError

    try:
        yield
    except CannotIssueError as error:
        at_fault = "" if isinstance(error, WrongNameError) else f"{place}: "
        raise _refused(f"{at_fault}{error}") from None
    except OSError as error:
        raise _refused(f"{error.filename or place}: {error.strerror or error}") from None


def _refused(sentence: str) -> typer.Exit:
    typer.echo(f"dagi-registry: {sentence}", err=True)
    return typer.Exit(NOT_DONE)


def _refuse_existing(paths: Sequence[Path], force: bool) -> None:
    """Before anything is written: a key that is gone is gone."""
    for path in paths:
        if not force and (path.exists() or path.is_symlink()):
            raise _refused(f"{path} is there already; --force replaces it, and what it was good for is lost")


def _write(path: Path, content: bytes, mode: int) -> None:
    """All of it or nothing, and never readable by more than it should be."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _until(pem: bytes) -> str:
    from registry.ca import expires

    return f"{expires(pem):%Y-%m-%dT%H:%M:%SZ}"


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _show(report: dict[str, Any], as_json: bool, lines: Sequence[str]) -> None:
    typer.echo(json.dumps(report, indent=2) if as_json else "\n".join(lines))
