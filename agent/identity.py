"""Who this node is: its id and key under `~/.dagi`, and which machine it runs on."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

_MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_LEGACY = (".dagi/node-id", ".dagi_node_id")
_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the registry gave this node. `token` is the newest; it goes with the next request."""

    node_id: str
    api_key: str | None = None
    token: str | None = None


class Home:
    """The folder that holds a node's identity; another folder is another node."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(os.environ.get("DAGI_HOME") or Path.home() / ".dagi")

    def node_id(self) -> str:
        """The node's id: the one kept here, else a new one, kept from now on.

        A file that holds no id is set aside as `node_id.bad`. Raises OSError when nothing can
        be written and there is nothing to read.
        """
        kept = self._read_id(self.folder / "node_id")
        if kept is None:
            kept = next((found for name in _LEGACY if (found := self._read_id(Path.home() / name))), None)
            kept = kept or f"node-{_host_part()}-{uuid.uuid4().hex[:8]}"
            self.keep_id(kept)
        return kept

    def keep_id(self, node_id: str) -> None:
        """Make this the node's id."""
        _write_private(self.folder / "node_id", node_id + "\n")

    def credentials(self) -> Credentials | None:
        """What the registry gave, or None."""
        try:
            data = json.loads((self.folder / "credentials.json").read_text(encoding="utf-8"))
            return Credentials(str(data["node_id"]), data.get("api_key"), data.get("token"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep_credentials(self, credentials: Credentials) -> None:
        """Keep what the registry gave, readable by this user alone."""
        _write_private(self.folder / "credentials.json", json.dumps(asdict(credentials)))

    def forget(self) -> None:
        """Remove the identity."""
        for name in ("node_id", "credentials.json"):
            (self.folder / name).unlink(missing_ok=True)

    @staticmethod
    def _read_id(path: Path) -> str | None:
        try:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None
        if 1 <= len(text) <= 255 and set(text) <= _ID_CHARACTERS:
            return text
        path.replace(path.with_name(path.name + ".bad"))
        return None


def machine_id() -> str | None:
    """A keyed hash that is the same for every node of this machine; the raw id never leaves it."""
    raw = _raw_machine_id()
    if raw is None:
        return None
    return blake2b(raw.encode(), digest_size=16, person=b"dagi-machine-id").hexdigest()


def new_instance_id() -> str:
    """One run of one agent: what tells a restarted agent from a second one with the same id."""
    return uuid.uuid4().hex


def _raw_machine_id() -> str | None:
    for name in _MACHINE_ID_FILES:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text:
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
    return "".join(c if c in _ID_CHARACTERS else "-" for c in name).strip("-")[:200] or "unnamed"


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
