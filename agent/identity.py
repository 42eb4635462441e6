"""Who this node is: its id and key under `~/.dagi`, and which machine it runs on."""

import base64
import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import uuid
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from agent.wire import ID_CHARACTERS, is_node_id, secret

_MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_MACHINE_ID = re.compile("[0-9a-fA-F]{32}")
_CLAIM = re.compile("[A-Za-z0-9_-]{22,128}")
_LEGACY = (".dagi/node-id", ".dagi_node_id")
_APPLICATION_CONTAINER = ("/.dockerenv", "/run/.containerenv")  # docker, podman
SEED_BYTES = 32
LEAST_CLAIM_S = 180.0
CLAIM_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the registry gave this node. `token` is the newest; it goes with the next request. `machine_id`: where."""

    node_id: str
    api_key: str | None = None
    token: str | None = None
    machine_id: str | None = None

    def are_of(self, machine_id: str | None) -> bool:
        """Whether they may have been made on that machine; where either is not known, they may."""
        return self.machine_id is None or machine_id is None or self.machine_id == machine_id


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The node's private Ed25519 key, 32 bytes, and the counter of the newest document that it signed."""

    seed: bytes
    counter: int


class Home:
    """The folder that holds a node's identity; another folder is another node.

    Reading and writing raise OSError; `credentials` alone answers None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        given = os.environ.get("DAGI_HOME")
        self._folder = folder or (Path(os.path.expanduser(given)) if given else None)
        self._locked: int | None = None

    @property
    def folder(self) -> Path:
        """Where the identity is: the folder given, DAGI_HOME, or `.dagi` in the user's home."""
        return self._folder or _user_home() / ".dagi"

    def kept_id(self) -> str | None:
        """The node's id, or None when there is none yet.

        A file that holds no id is set aside as `node_id.bad`. Legacy files are read for the
        default folder alone: two folders must never share one.
        """
        path = self.folder / "node_id"
        kept = _read_id(path)
        if kept is None and path.exists():
            path.replace(path.with_name("node_id.bad"))
        if kept is None and self._folder is None:
            kept = next((found for name in _LEGACY if (found := _read_id(_user_home() / name))), None)
        return kept

    def peek_id(self) -> str | None:
        """The node's id as it stands; nothing is set aside or moved."""
        return _read_id(self.folder / "node_id")

    def node_id(self, certified: str | None = None) -> str:
        """The node's id: the one kept here, else the one that its certificate names or a new one, kept from now on.

        An id that no registry ever took, as of a try before the certificate was there, gives way to the certificate's.
        """
        _check_readable(self.folder / "credentials.json")  # without them the id is of no use, and they are not ours
        kept = self.kept_id()
        if kept is None or (certified is not None and self.credentials() is None):
            kept = certified or new_node_id()
        self.keep_id(kept)
        return kept

    def keep_id(self, node_id: str) -> None:
        """Make this the node's id."""
        path = self.folder / "node_id"
        if _read_id(path) != node_id:
            _write_private(path, node_id + "\n")

    def credentials(self) -> Credentials | None:
        """What the registry gave, or None."""
        try:
            data = json.loads((self.folder / "credentials.json").read_text(encoding="utf-8"))
            given = (secret(data.get(name)) for name in ("api_key", "token", "machine_id"))
            return Credentials(str(data["node_id"]), *given)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def keep_credentials(self, credentials: Credentials) -> None:
        """Keep what the registry gave, readable by this user alone."""
        path = self.folder / "credentials.json"
        _check_readable(path)
        if self.credentials() != credentials:
            _write_private(path, json.dumps(asdict(credentials)))

    def signing_key(self) -> SigningKey | None:
        """The node's signing key; None when there is none yet. A file that holds none is set aside as `.bad`."""
        path = self.folder / "signing_key"
        try:
            data = json.loads(path.read_text(encoding="utf-8", errors="replace"))
            seed, counter = base64.b64decode(data["key"], validate=True), data["counter"]
            if len(seed) == SEED_BYTES and type(counter) is int and 0 <= counter < 2**62:
                return SigningKey(seed, counter)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        path.replace(path.with_name("signing_key.bad"))
        return None

    def keep_signing_key(self, key: SigningKey) -> None:
        """Keep the key, readable by this user alone."""
        path = self.folder / "signing_key"
        _check_readable(path)
        _write_private(path, json.dumps({"key": base64.b64encode(key.seed).decode(), "counter": key.counter}))

    def approval_claim(self) -> str:
        """What shows that an approval is for this machine: made once, and kept. Raises OSError."""
        path = self.folder / "claim"
        with contextlib.suppress(FileNotFoundError):
            kept = path.read_text(encoding="ascii", errors="replace").strip()
            if _CLAIM.fullmatch(kept):
                return kept
        made = new_claim()
        _write_private(path, made + "\n")
        return made

    def registries(self) -> object:
        """What was kept of other registries, as it was given to `keep_registries`; None where there is nothing."""
        try:
            return json.loads((self.folder / "registries.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def keep_registries(self, listed: object) -> None:
        """Keep that, as JSON, for the next start."""
        if self.registries() != listed:
            _write_private(self.folder / "registries.json", json.dumps(listed))

    def lock(self) -> bool:
        """Make sure that no other agent runs for this home while this process lives; False: one does.

        Where there can be no folder, or no lock, nobody can know, and it may run.
        """
        if self._locked is not None:
            return True
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)  # the folder itself: no file to leave behind
        except OSError:
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        self._locked = handle
        return True

    def unlock(self) -> None:
        """Let another agent run for this home."""
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    def forget(self) -> None:
        """Remove the identity."""
        for name in ("node_id", "credentials.json", "signing_key", "claim", "registries.json"):
            (self.folder / name).unlink(missing_ok=True)


class Claim:
    """One run's claim to its id, once a registry has said that another run registered after it.

    Told so for the first time it registers again. If the other run is no more (its registration was under way for
    long), that was all. If it is alive it does the same, and this run is told again within a few heartbeats.
    """

    def __init__(self) -> None:
        self._told_at_s: float | None = None

    def is_lost(self, now_s: float, interval_s: float) -> bool:
        """The registry says that another run registered: whether that is to be given way to. `now_s`: monotonic."""
        before, self._told_at_s = self._told_at_s, now_s
        return before is not None and now_s - before <= max(LEAST_CLAIM_S, CLAIM_INTERVALS * interval_s)


def new_node_id() -> str:
    """An id that no other node has: `node-{host}-{8 hex}`."""
    return f"node-{_host_part()}-{uuid.uuid4().hex[:8]}"


def new_claim() -> str:
    """A claim that nobody else has."""
    return secrets.token_urlsafe(24)


def machine_id() -> str | None:
    """A keyed hash that is the same for every node of this machine; the raw id never leaves it.

    None where it is not known, and in containers of applications: there it would be their image's.
    """
    if any(os.path.exists(name) for name in _APPLICATION_CONTAINER) or "KUBERNETES_SERVICE_HOST" in os.environ:
        return None
    raw = _raw_machine_id()
    if raw is None:
        return None
    return blake2b(raw.encode(), digest_size=16, key=b"dagi-machine-id").hexdigest()


def new_instance_id() -> str:
    """One run of one agent: what tells a restarted agent from a second one with the same id."""
    return uuid.uuid4().hex


def _raw_machine_id() -> str | None:
    for name in _MACHINE_ID_FILES:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if _MACHINE_ID.fullmatch(text):  # images that never booted say "uninitialized", all of them
            return text
    if sys.platform == "darwin":
        return _mac_platform_uuid()
    return None


def _mac_platform_uuid() -> str | None:
    command = ["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout  # noqa: S603 - fixed
    except (OSError, subprocess.SubprocessError):
        return None
    line = next((x for x in found.splitlines() if "IOPlatformUUID" in x), "")
    return line.rpartition("=")[2].strip().strip('"') or None


def _host_part() -> str:
    name = socket.gethostname().split(".")[0].casefold()
    return "".join(c if c in ID_CHARACTERS else "-" for c in name).strip("-")[:200] or "unnamed"


def _user_home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder; set DAGI_HOME") from None


def _read_id(path: Path) -> str | None:
    """The id in a file; None when there is no file, or no id in it. Raises OSError when it may not be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    return text if is_node_id(text) else None


def _check_readable(path: Path) -> None:
    """Raise OSError for a file that is there and may not be read: another user's, who may need it."""
    with contextlib.suppress(FileNotFoundError), path.open("rb"):
        pass


def _write_private(path: Path, text: str) -> None:
    """Write all of it or nothing, mode 0600 from the first byte."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
