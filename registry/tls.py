"""TLS of the registry's own port and of what it dials, mutual when a CA is given."""

import ssl

from registry.settings import ConfigurationError, Settings


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """What connections are secured with; None without TLS. Raises ConfigurationError."""
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        if settings.tls_ca is not None:
            context.load_verify_locations(settings.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ConfigurationError(f"--tls-cert, --tls-key or --tls-ca cannot be used: {error}") from None
    return context


def peer_context(settings: Settings) -> ssl.SSLContext:
    """What links to peers at https:// are secured with: the system's authorities, or the given one, to which we
    show our own certificate. Raises ConfigurationError."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if settings.tls_ca is None or settings.tls_cert is None:
        return context
    try:
        context.load_verify_locations(settings.tls_ca)
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as error:
        raise ConfigurationError(f"--tls-cert, --tls-key or --tls-ca cannot be used: {error}") from None
    return context
