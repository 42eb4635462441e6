"""The registry's own key, kept in a file. Its id is pinned to it at every peer."""

import contextlib
import os
import tempfile
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from federation.ed25519 import PrivateKey


class IdentityError(Exception):
    """The identity of this registry cannot be used; says why, and what to do."""


def load_or_create_identity(folder: Path) -> PrivateKey:
    """The registry's own key, in `identity.key` (0600); made at the first start. Raises IdentityError."""
    path = folder / "identity.key"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _create_identity(path)
        path.chmod(0o600)
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise IdentityError(f"{path} cannot be used: {error.strerror or error}; check owner and permissions") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(
            f"{path} does not hold an Ed25519 key: restore it from a backup; without one delete it, and at a peer "
            "remove this registry's entry: dagi-registry members --forget <its id>"
        )
    return PrivateKey(key.private_bytes_raw())


def _create_identity(path: Path) -> None:
    """Whole or not at all; of several that create it at once, the first stands."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".identity-")  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
