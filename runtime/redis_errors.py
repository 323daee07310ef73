"""What a store's refusal means and which setting mends it. Nothing here quotes an argument, a key or a password."""

from __future__ import annotations

import re
from socket import gaierror

from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from runtime.tls import explain_tls, find_tls_error

_URL = "NEARLINE_STORE__URL"
_RIGHTS = f"give the user of {_URL} the rights that docs/security.md lists for this process"
_SILENCE = f" (a port without TLS answers rediss:// with silence: see {_URL})"
_SPEAKS = f"a port that speaks TLS does that: rediss:// in {_URL}"
_ASKS = "a server that asks for a certificate does that: NEARLINE_STORE__SSL_CERT_FILE and NEARLINE_STORE__SSL_KEY_FILE"
_NO_PERMISSION = re.compile(
    r"no permissions?|NOPERM|ACL failure|can't run this|can't access at least one", re.IGNORECASE
)
_NOBODY = f"nobody listens there: start the store, or set {_URL} (nearline doctor looks)"
_HUNG_UP = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)


def explain(error: RedisError | OSError, *, encrypted: bool) -> str:
    """The end of a sentence that began with the address. `encrypted`: whether the URL is `rediss://`."""
    failed = find_tls_error(error)
    if failed is not None:
        return explain_tls(failed, "NEARLINE_STORE__", _URL)
    if isinstance(error, NoPermissionError | AuthorizationError) or (
        isinstance(error, ResponseError) and _NO_PERMISSION.search(str(error))
    ):
        return f"refuses: {error}; {_RIGHTS}"
    if isinstance(error, AuthenticationError):
        return f"refuses who we are ({error}): user and password stand in {_URL}, redis://user:password@host:port/0"
    if isinstance(error, ResponseError):
        return f"refuses: {error}"
    if isinstance(_origin(error), _HUNG_UP) or "closed by server" in str(error):
        return f"{error} (it hung up; {_ASKS if encrypted else _SPEAKS})"
    if isinstance(_origin(error), ConnectionRefusedError | gaierror):
        return f"{str(error).rstrip('.')}; {_NOBODY}"
    if encrypted and isinstance(error, RedisTimeoutError):
        return f"{error}{_SILENCE}"
    return str(error)


def explain_timeout(timeout_s: float, *, encrypted: bool) -> str:
    """No answer: a server without TLS waits for more when it is greeted with TLS."""
    return f"no answer within {timeout_s:g} s{_SILENCE if encrypted else ''}"


def _origin(error: BaseException) -> BaseException:
    """The innermost cause."""
    seen: set[int] = set()
    while id(error) not in seen and (inner := error.__cause__ or error.__context__) is not None:
        seen.add(id(error))
        error = inner
    return error
