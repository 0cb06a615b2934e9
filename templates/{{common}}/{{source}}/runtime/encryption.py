"""Mutual TLS with the certificates that JAX's variables name. Opens no connection."""

import os
import ssl
from typing import Any

from ..errors import UserError

ENCRYPTION = ("JAX_MTLS_CERT_FILE", "JAX_MTLS_KEY_FILE", "JAX_MTLS_CA_FILE")
PREFIX = "JAX_MTLS_PEER_URI_PREFIX"  # of a URI in the certificate, instead of the host's name


def encryption(protocol: int) -> ssl.SSLContext | None:
    """Both sides show a certificate of the same authority; None where JAX does not encrypt."""
    cert, key, authority = (os.environ.get(name, "") for name in ENCRYPTION)
    if not cert:
        return None
    context = ssl.SSLContext(protocol)
    # As JAX does: a process knows the coordinator by its name, or all by a URI.
    context.check_hostname = protocol == ssl.PROTOCOL_TLS_CLIENT and not os.environ.get(PREFIX)
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise wrong_certificates(f"{cert}, {key}, {authority}: {error}") from error
    return context


def wrong_certificates(got: str) -> UserError:
    """What a user can do about it."""
    return UserError(
        got=got,
        expected="PEM files: a certificate, its key, and that of the authority; the coordinator's "
        f"certificate names its address, or all begin with {PREFIX}",
        do=f"correct {', '.join(ENCRYPTION)} in every process",
    )


def check_peer(link: ssl.SSLSocket) -> None:
    """SSLError where PREFIX is set and the certificate of the other side has no such URI."""
    prefix = os.environ.get(PREFIX, "")
    names: Any = (link.getpeercert() or {}).get("subjectAltName", ())
    if prefix and not any(kind == "URI" and name.startswith(prefix) for kind, name in names):
        raise ssl.SSLError(f"a certificate without a URI that begins with {prefix}: {names}")
