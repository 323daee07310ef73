"""Who asks: the viewer named by a verified token, or, behind a gateway that has checked it, by the path.

A token is a JWT in `Authorization: Bearer …`. The configured key alone decides how it must be signed, never the token: a secret
means HS256, an RSA key RS256, a P-256 key ES256. So neither `alg: none` nor a public key used as a secret gets anywhere.
Verified tokens are remembered until they expire, a bounded number of them: the next page of the same viewer costs a hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from starlette.exceptions import HTTPException
from starlette.requests import Request

from contracts.errors import SettingsError
from contracts.events import valid_id
from runtime.sections import HomepageSettings

MAX_TOKEN_CHARS = 8_192
"""Longer ones are refused unread; a token of an identity provider has one or two thousand."""

MAX_REMEMBERED = 20_000
"""Verified tokens kept: some 5 MB."""

LOOK_AT_KEYS_EVERY_S = 2.0
"""How often it is looked whether the key file changed: keys are rotated while services run."""

MIN_RSA_BITS = 2_048

_KEY_FILE = "NEARLINE_HOMEPAGE__TOKEN_KEY_FILE"

log = structlog.get_logger()


class RefusedToken(Exception):
    """A token that names nobody. `reason` is a label for the metric, the text is for whoever holds the token; neither quotes it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Key:
    """`kid` None: good for tokens whatever they say about it."""

    kid: str | None
    algorithm: str
    key: Any


def read_keys(path: Path) -> tuple[_Key, ...]:
    """The public keys of a PEM or JWKS file. Errors: `SettingsError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{_KEY_FILE}={path}: cannot be read ({error.strerror})") from error
    try:
        found = (_pem(data),) if b"-----BEGIN" in data else _jwks(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UnsupportedAlgorithm, jwt.PyJWTError) as e:
        raise SettingsError(
            f"{_KEY_FILE}={path}: neither a PEM public key (-----BEGIN PUBLIC KEY-----) nor a JWKS "
            '({"keys": [...]}) with public RSA keys of at least 2048 bits or P-256 keys'
        ) from e
    if not found or len({key.kid for key in found}) < len(found):
        raise SettingsError(f"{_KEY_FILE}={path}: holds no RS256 or ES256 key, or several of the same `kid`")
    return found


def _pem(data: bytes) -> _Key:
    key = load_pem_public_key(data)
    return _Key(None, _algorithm_of(key), key)


def _jwks(document: Any) -> tuple[_Key, ...]:
    """The keys that sign; those for encryption and of other kinds are passed over."""
    found = []
    for one in document["keys"]:
        if one.get("use", "sig") != "sig" or one.get("kty") not in ("RSA", "EC"):
            continue
        key = jwt.PyJWK(one).key
        algorithm = _algorithm_of(key)
        if one.get("alg", algorithm) == algorithm:
            found.append(_Key(one.get("kid"), algorithm, key))
    return tuple(found)


def _algorithm_of(key: object) -> str:
    if isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    raise ValueError("neither a public RSA key that is long enough nor a public P-256 key")


class TokenVerifier:
    """Turns a token into the id of a viewer. Errors at the start: `SettingsError`."""

    def __init__(
        self,
        settings: HomepageSettings,
        *,
        max_remembered: int = MAX_REMEMBERED,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._max_remembered = max_remembered
        self._now_s = now_s
        self._remembered: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # digest → viewer, expiry
        self._looked_s = now_s()
        self._stamp = self._read_stamp()
        self.verified = 0
        """Signatures checked, for tests and curiosity."""
        if settings.token_secret is not None:
            self._keys: tuple[_Key, ...] = (_Key(None, "HS256", settings.token_secret.get_secret_value()),)
        else:
            assert settings.token_key_file is not None
            self._keys = read_keys(settings.token_key_file)

    def viewer_of(self, token: str) -> str:
        """The viewer. Errors: `RefusedToken`."""
        if len(token) > MAX_TOKEN_CHARS:
            raise RefusedToken("oversized", f"longer than {MAX_TOKEN_CHARS} characters")
        now_s = self._now_s()
        self._follow_keys(now_s)
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = self._remembered.get(digest)
        if known is not None and now_s < known[1]:
            self._remembered.move_to_end(digest)
            return known[0]
        viewer, expires_s = self._verify(token)
        self._remembered[digest] = viewer, expires_s
        self._remembered.move_to_end(digest)
        if len(self._remembered) > self._max_remembered:
            self._remembered.popitem(last=False)
        return viewer

    def _verify(self, token: str) -> tuple[str, float]:
        settings = self._settings
        self.verified += 1
        try:
            key = self._key_for(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                issuer=settings.token_issuer,
                audience=settings.token_audience,
                leeway=settings.token_leeway_s,
                options={"require": ["exp", settings.token_viewer_claim]},
            )
            viewer, expires_s = claims[settings.token_viewer_claim], float(claims["exp"]) + settings.token_leeway_s
        except jwt.ExpiredSignatureError:
            raise RefusedToken("expired", "expired") from None
        except jwt.InvalidAudienceError:
            raise RefusedToken("audience", "not for this audience") from None
        except jwt.InvalidIssuerError:
            raise RefusedToken("issuer", "not of the expected issuer") from None
        except jwt.MissingRequiredClaimError as error:
            raise RefusedToken("claim", f"without the claim `{error.claim}`") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            # Also what the parsers below say to hostile bytes. No details: they may quote the token.
            raise RefusedToken("invalid", "not a token that was signed for us") from None
        if not isinstance(viewer, str) or not valid_id(viewer):
            raise RefusedToken("claim", f"the claim `{settings.token_viewer_claim}` is not a viewer's id")
        return viewer, expires_s

    def _key_for(self, kid: object) -> _Key:
        if len(self._keys) == 1 and (kid is None or self._keys[0].kid is None):
            return self._keys[0]
        for key in self._keys:
            if key.kid is not None and key.kid == kid:
                return key
        raise RefusedToken("key", "signed by a key that is not known here")

    def _follow_keys(self, now_s: float) -> None:
        """Take up changed keys. A file that cannot be read leaves the old ones in force."""
        path = self._settings.token_key_file
        if path is None or 0 <= now_s - self._looked_s < LOOK_AT_KEYS_EVERY_S:
            return
        self._looked_s = now_s
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(path)
        except SettingsError as error:
            log.error("token_keys_unreadable", problem=str(error), remedy="the keys read before stay in force")
            return
        self._remembered.clear()  # a key that was taken away takes its tokens with it
        log.info("token_keys_changed", keys=len(self._keys))

    def _read_stamp(self) -> tuple[int, ...] | None:
        path = self._settings.token_key_file
        try:
            seen = None if path is None else os.stat(path)
        except OSError:
            return None
        return None if seen is None else (seen.st_mtime_ns, seen.st_size, seen.st_ino)


def viewer_from_path(request: Request) -> str:
    """The viewer named in the path: for the sandbox and behind a gateway that has checked who asks."""
    viewer = request.path_params.get("viewer")
    if viewer is None:
        raise HTTPException(400, "viewer: name one in the path, /v1/home/{viewer}: no token tells who asks")
    return str(viewer)


def viewer_from_token(verifier: TokenVerifier, refused: Callable[[str], None]) -> Callable[[Request], str]:
    """An `identify` for the service: 401 without a good token, 403 where the path names somebody else. `refused` is told why."""

    def identify(request: Request) -> str:
        try:
            viewer = verifier.viewer_of(_bearer(request))
        except RefusedToken as error:
            refused(error.reason)
            challenge = "Bearer" if error.reason == "missing" else 'Bearer error="invalid_token"'
            raise HTTPException(401, f"token: {error}", {"WWW-Authenticate": challenge}) from None
        if request.path_params.get("viewer", viewer) != viewer:
            refused("other_viewer")
            raise HTTPException(403, "viewer: the path names another viewer than the token; leave it out: /v1/home")
        return viewer

    return identify


def _bearer(request: Request) -> str:
    given = request.headers.getlist("authorization")
    if not given:
        raise RefusedToken("missing", "none; send Authorization: Bearer TOKEN")
    scheme, _, token = given[0].partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise RefusedToken("missing", "send one header, Authorization: Bearer TOKEN")
    return token.strip()


def choose_identity(settings: HomepageSettings, refused: Callable[[str], None]) -> Callable[[Request], str]:
    """How this service learns who asks. Errors: `SettingsError` where anyone could ask for anyone's row."""
    if settings.with_token:
        return viewer_from_token(TokenVerifier(settings), refused)
    if settings.auth != "none" and not settings.on_loopback:
        raise SettingsError(
            f"NEARLINE_HOMEPAGE__HOST={settings.host}: beyond loopback anyone could read anyone's row by its path. Set "
            f"NEARLINE_HOMEPAGE__TOKEN_SECRET (HS256) or {_KEY_FILE} (RS256, ES256), so that a verified token names the viewer; "
            "or, only behind a gateway that checks the path itself, NEARLINE_HOMEPAGE__AUTH=none"
        )
    return viewer_from_path
