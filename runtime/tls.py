"""TLS towards Kafka and Redis: one way to check the files that the settings name, and one to say why a handshake failed."""

from __future__ import annotations

import ssl
from pathlib import Path

from contracts.errors import SettingsError


def make_context(prefix: str, ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    """A client's context that verifies certificate and host name. `prefix` names the settings, e.g. `NEARLINE_KAFKA__`.

    Without `ca_file` the machine's authorities are trusted. Errors: `SettingsError`.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SettingsError(
            f"{prefix}SSL_CA_FILE={ca_file}: cannot be used ({_reason(error)}); it must hold the authority's certificates as PEM"
        ) from error
    if cert_file is None:
        if key_file is not None:
            raise SettingsError(
                f"{prefix}SSL_KEY_FILE is set and {prefix}SSL_CERT_FILE is not: a key needs its certificate"
            )
        return context
    try:
        # An encrypted key would make OpenSSL ask on the terminal, and hang a service: no password is refused at once.
        context.load_cert_chain(str(cert_file), None if key_file is None else str(key_file), password=lambda: "")
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{prefix}SSL_CERT_FILE={cert_file}, {prefix}SSL_KEY_FILE={key_file}: cannot be used ({_reason(error)}); PEM is wanted, "
            "the key that belongs to the certificate, without a password"
        ) from error
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no PEM").lower().replace("_", " ")
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else type(error).__name__


def find_tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS error that an exception comes from, if any."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, ssl.SSLError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def explain_tls(error: ssl.SSLError, prefix: str, address_setting: str) -> str:
    """What failed and which setting to look at."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message
        if "mismatch" in why:
            return f"{why} Name the server in {address_setting} as its certificate does, or give it a certificate for that name"
        if "expired" in why or "not yet valid" in why:
            return f"the server's certificate: {why}. Renew it; if it is good, a clock is wrong"
        return (
            f"the server's certificate is of an authority that is not trusted ({why}). "
            f"{prefix}SSL_CA_FILE must hold the authority that signed it"
        )
    reason = (error.reason or str(error)).upper()
    if "ALERT" in reason:
        return (
            f"the server ended the TLS handshake ({reason.lower().replace('_', ' ')}): if it asks for a certificate, "
            f"set {prefix}SSL_CERT_FILE and {prefix}SSL_KEY_FILE"
        )
    return f"what answers does not speak TLS ({reason.lower().replace('_', ' ')}): another port, or another protocol, in {address_setting}"
