"""What a refusal of Kafka means and which setting mends it. By the names of the client's errors, as only the seam imports the client."""

from __future__ import annotations

from socket import gaierror

from runtime.settings import KafkaSettings
from runtime.tls import explain_tls, find_tls_error

_PREFIX = "NEARLINE_KAFKA__"
_RIGHTS = "give it the rights that docs/security.md lists for this process"

_BY_NAME = {
    "SaslAuthenticationFailed": (
        "refuses user or password ({error}): NEARLINE_KAFKA__SASL_USERNAME, NEARLINE_KAFKA__SASL_PASSWORD(_FILE), and "
        "NEARLINE_KAFKA__SASL_MECHANISM={mechanism} if the user was made for another one"
    ),
    "UnsupportedSaslMechanismError": "does not offer NEARLINE_KAFKA__SASL_MECHANISM={mechanism} at this port",
    "IllegalSaslStateError": "asks for no user at this port: NEARLINE_KAFKA__SECURITY_PROTOCOL={protocol} does not fit it",
    "TopicAuthorizationFailedError": f"does not let {{user}} do this with the topic ({{error}}): {_RIGHTS}",
    "GroupAuthorizationFailedError": f"does not let {{user}} use the group ({{error}}): {_RIGHTS}, or set NEARLINE_KAFKA__GROUP_ID",
    "ClusterAuthorizationFailedError": f"lets {{user}} write to no topic at all: {_RIGHTS}",
}
_HUNG_UP = (
    "hung up on NEARLINE_KAFKA__SECURITY_PROTOCOL={protocol}: "
    "it must be what the listener at this port speaks, SASL_SSL for users over TLS"
)
_NOBODY = (
    "{error}: nobody listens there; start the broker, or set NEARLINE_KAFKA__BOOTSTRAP_SERVERS (nearline doctor looks)"
)
_SILENT = "{error} (a broker is silent to {user} also where rights are missing: docs/security.md)"


def explain(error: BaseException, kafka: KafkaSettings) -> str:
    """The end of a sentence that began with the address. Names settings, never their secret values."""
    failed = find_tls_error(error)
    if failed is not None:
        return explain_tls(failed, _PREFIX, f"{_PREFIX}BOOTSTRAP_SERVERS")
    name, text = type(error).__name__, str(error)
    told = text if name in text else f"{name}: {text}" if text else name
    template = _BY_NAME.get(name)
    if template is None and (isinstance(error, ConnectionResetError | BrokenPipeError) or text.endswith(" closed")):
        template = _HUNG_UP
    if template is None and isinstance(error, ConnectionRefusedError | gaierror):
        template = _NOBODY
    if template is None and "Timeout" in name and "SASL" in kafka.security_protocol:
        template = _SILENT
    if template is None:
        return told
    user = f"the user {kafka.sasl_username}" if kafka.sasl_username else "this client"
    return template.format(error=told, mechanism=kafka.sasl_mechanism, protocol=kafka.security_protocol, user=user)
