"""Certificates for tests, made on the spot: self-signed ones by openssl, others by an authority of ours."""

import contextlib
import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from federation.tls import Files
from registry import ca

NOW = datetime.now(UTC).replace(microsecond=0)


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate of 127.0.0.1, to trust, and a server's side of it."""
    folder.mkdir(parents=True, exist_ok=True)
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(cert), "-days", "30", "-subj", "/CN=store.example.org"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


class Authority:
    """An authority of ours, in a folder, and what it issues there."""

    def __init__(self, folder: Path, *permit: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.ca = folder, folder / "ca.crt"
        self._key = ca.new_key()
        pem = ca.new_authority("tests", self._key, NOW, 30, permit)
        self.ca.write_bytes(pem)
        self.authority = ca.authority_of(pem, ca.key_pem(self._key))

    def issue(
        self, kind: ca.Kind, name: str, *hosts: str, made: datetime = NOW, days: int = 20, to: str | None = None
    ) -> Files:
        """A certificate's files. `made`: when; `to`: their stem, where files that are there are replaced."""
        key = ca.new_key()
        pem = ca.issued(self.authority, kind, name, key.public_key(), hosts, made, days)
        cert = self.folder / f"{to or f'{kind}-{name}'}.crt"
        cert.with_suffix(".key").write_bytes(ca.key_pem(key))
        cert.write_bytes(pem)
        return Files(cert, cert.with_suffix(".key"), self.ca)


def flags(files: Files) -> tuple[str, ...]:
    """What `serve` is to be told."""
    return "--tls-cert", str(files.cert), "--tls-key", str(files.key), "--tls-ca", str(files.ca)


def dialling(files: Files) -> ssl.SSLContext:
    """A client's side, which trusts the authority and shows the certificate, if there is one. Python's own, so that
    nothing of ours stands on both ends."""
    context = ssl.create_default_context(cafile=str(files.ca))
    if files.cert is not None and files.key is not None:
        context.load_cert_chain(files.cert, files.key)
    return context


def shaken(client: ssl.SSLContext, server: ssl.SSLContext, host: str = "127.0.0.1") -> tuple[Any, Any]:
    """Both ends after a handshake in memory. Raises what either end does; the client hears alerts."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=host)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    done: set[object] = set()
    for _ in range(8):
        for end in (near, far):
            with contextlib.suppress(ssl.SSLWantReadError):
                if end not in done:
                    end.do_handshake()
                    done.add(end)
                elif end is near:
                    near.read()
    assert done == {near, far}
    return near, far
