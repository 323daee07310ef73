"""Who asks the home page: tokens of every bad kind are refused, and a good one names the viewer."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from contracts.errors import SettingsError
from homepage.identity import (
    LOOK_AT_KEYS_EVERY_S,
    MAX_TOKEN_CHARS,
    RefusedToken,
    TokenVerifier,
)
from runtime.sections import HomepageSettings

SECRET = "a secret of the identity provider, long enough for every kind of HMAC"
ISSUER, AUDIENCE = "https://login.example", "home"
OPTIONS = {"token_issuer": ISSUER, "token_audience": AUDIENCE, "token_leeway_s": 5}
RSA, OTHER_RSA = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
EC = ec.generate_private_key(ec.SECP256R1())


def claims(viewer: Any = "ana", **changes: Any) -> dict[str, Any]:
    good = {"sub": viewer, "exp": int(time.time()) + 600, "iss": ISSUER, "aud": AUDIENCE}
    return {name: value for name, value in (good | changes).items() if value is not None}


def token(
    viewer: Any = "ana", key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **changes: Any
) -> str:
    """Signed with `jwt`'s own claims checks off, so that wrong ones can be made."""
    payload = json.dumps(claims(viewer, **changes)).encode()
    return jwt.PyJWS().encode(payload, key, algorithm, headers={} if kid is None else {"kid": kid})


def by_hand(header: dict[str, Any], payload: bytes, secret: bytes) -> str:
    """What no library would sign."""
    parts = [base64.urlsafe_b64encode(part).rstrip(b"=") for part in (json.dumps(header).encode(), payload)]
    signature = hmac.new(secret, b".".join(parts), hashlib.sha256).digest() if secret else b""
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def jwk(key: Any, **fields: Any) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), **fields}


def verifier(**options: Any) -> TokenVerifier:
    return TokenVerifier(HomepageSettings(**({"token_secret": SECRET} | OPTIONS | options)))


def with_key(path: Path, content: bytes | dict[str, Any], **options: Any) -> TokenVerifier:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return TokenVerifier(HomepageSettings(token_key_file=path, **(OPTIONS | options)))


def reason(check: TokenVerifier, bad: str) -> str:
    with pytest.raises(RefusedToken) as caught:
        check.viewer_of(bad)
    said = str(caught.value)
    assert bad not in said
    assert "ana" not in said
    return caught.value.reason


def test_a_good_token_names_its_viewer_with_each_kind_of_key(tmp_path: Path) -> None:
    assert verifier().viewer_of(token()) == "ana"
    assert with_key(tmp_path / "rsa", public_pem(RSA)).viewer_of(token("ben", RSA, "RS256")) == "ben"
    assert with_key(tmp_path / "ec", public_pem(EC)).viewer_of(token("cleo", EC, "ES256", kid="any")) == "cleo"
    both = with_key(tmp_path / "jwks", {"keys": [jwk(RSA, kid="r"), jwk(EC, kid="e"), jwk(RSA, kid="x", use="enc")]})
    assert both.viewer_of(token("dan", RSA, "RS256", kid="r")) == "dan"
    assert both.viewer_of(token("eve", EC, "ES256", kid="e")) == "eve"
    assert reason(both, token("dan", RSA, "RS256")) == "key"  # which of the two?
    assert reason(both, token("dan", RSA, "RS256", kid="x")) == "key"  # for encryption
    assert reason(both, token("dan", RSA, "RS256", kid="e")) == "invalid"


def test_another_claim_may_hold_the_viewer() -> None:
    assert verifier(token_viewer_claim="profile").viewer_of(token(None, profile="kids.7")) == "kids.7"
    assert reason(verifier(token_viewer_claim="profile"), token()) == "claim"


@pytest.mark.parametrize(
    ("why", "make"),
    [
        ("expired", lambda: token(exp=int(time.time()) - 60)),
        ("invalid", lambda: token(nbf=int(time.time()) + 60)),
        ("invalid", lambda: token(iat=int(time.time()) + 60)),
        ("claim", lambda: token(exp=None)),
        ("claim", lambda: token(sub=None)),
        ("claim", lambda: token(aud=None)),
        ("claim", lambda: token(iss=None)),
        ("claim", lambda: token("")),
        ("claim", lambda: token("a{b}")),
        ("claim", lambda: token("x" * 129)),
        ("invalid", lambda: token(17)),
        ("invalid", lambda: token(["ana"])),
        ("invalid", lambda: token(exp="tomorrow")),
        ("audience", lambda: token(aud="billing")),
        ("issuer", lambda: token(iss="https://login.example.evil")),
        ("invalid", lambda: token(key="another secret that is long enough too")),
        ("invalid", lambda: token(key=SECRET.encode(), algorithm="HS512")),
        ("invalid", lambda: by_hand({"alg": "none", "typ": "JWT"}, json.dumps(claims()).encode(), b"")),
        ("invalid", lambda: by_hand({"alg": "None"}, json.dumps(claims()).encode(), SECRET.encode())),
        ("invalid", lambda: by_hand({"alg": "HS256", "crit": ["exp"]}, json.dumps(claims()).encode(), SECRET.encode())),
        ("invalid", lambda: by_hand({"alg": "HS256", "kid": 7}, json.dumps(claims()).encode(), SECRET.encode())),
        ("invalid", lambda: by_hand({"alg": "HS256"}, b'{"exp": 1e999, "sub": "ana"}', SECRET.encode())),
        ("invalid", lambda: by_hand({"alg": "HS256"}, b"[" * 5_000, SECRET.encode())),
        ("invalid", lambda: by_hand({"alg": "HS256"}, b"\xff\xfe", SECRET.encode())),
        ("invalid", lambda: base64.urlsafe_b64encode(b"[" * 5_000).decode() + ".e30.AA"),
        ("invalid", lambda: token(key=RSA, algorithm="RS256")),
        ("invalid", lambda: token()[:-4] + "AAAA"),
        ("invalid", lambda: "a.b.c"),
        ("invalid", lambda: "...."),
        ("invalid", lambda: "\udcff"),
        ("oversized", lambda: token(padding="x" * MAX_TOKEN_CHARS)),
    ],
)  # fmt: skip
def test_a_bad_token_is_refused_without_being_quoted(why: str, make: Callable[[], str]) -> None:
    assert reason(verifier(), make()) == why


def test_a_public_key_is_no_secret_to_sign_with(tmp_path: Path) -> None:
    """The classic confusion: HS256 over the RSA key that everybody may read."""
    pem = public_pem(RSA)
    forged = by_hand({"alg": "HS256", "typ": "JWT"}, json.dumps(claims()).encode(), pem)
    assert reason(with_key(tmp_path / "pem", pem), forged) == "invalid"
    assert reason(with_key(tmp_path / "jwks", {"keys": [jwk(RSA)]}), forged) == "invalid"
    with pytest.raises(ValueError, match="NEARLINE_HOMEPAGE__TOKEN_KEY_FILE"):
        HomepageSettings(token_secret=pem.decode())
    assert reason(with_key(tmp_path / "other", public_pem(OTHER_RSA)), token(key=RSA, algorithm="RS256")) == "invalid"


def test_a_token_without_audience_is_taken_where_none_is_asked_for_and_one_for_others_is_not() -> None:
    assert verifier(token_audience=None).viewer_of(token(aud=None)) == "ana"
    assert reason(verifier(token_audience=None), token()) == "audience"


@given(st.text(max_size=300) | st.builds(lambda *p: ".".join(p), st.text(max_size=60), st.text(max_size=60), st.text()))
@settings(max_examples=300)
def test_any_text_is_refused_as_a_token(text: str) -> None:
    with pytest.raises(RefusedToken):
        verifier().viewer_of(text)


def test_a_verified_token_costs_its_signature_once_until_it_expires() -> None:
    now = [time.time()]
    check = TokenVerifier(HomepageSettings(token_secret=SECRET, **OPTIONS), now_s=lambda: now[0])
    mine = token(exp=int(now[0]) + 100)
    assert [check.viewer_of(mine) for _ in range(50)] == ["ana"] * 50
    assert check.verified == 1
    now[0] += 104  # within the leeway
    check.viewer_of(mine)
    assert check.verified == 1
    now[0] += 2
    check.viewer_of(mine)  # asked again, by the library's own clock
    assert check.verified == 2


def test_remembered_tokens_are_bounded_and_refused_ones_not_remembered() -> None:
    check = TokenVerifier(HomepageSettings(token_secret=SECRET, **OPTIONS), max_remembered=3)
    good = [token(f"v{n}") for n in range(5)]
    for one in good:
        check.viewer_of(one)
    for _ in range(4):
        reason(check, "a.b.c")
    assert len(check._remembered) == 3
    check.viewer_of(good[4])
    assert check.verified == 5 + 4
    check.viewer_of(good[0])
    assert check.verified == 5 + 4 + 1


def test_keys_are_rotated_while_it_runs_and_a_broken_file_leaves_the_old_ones(tmp_path: Path) -> None:
    now, path = [1.0], tmp_path / "jwks"
    path.write_text(json.dumps({"keys": [jwk(RSA, kid="old")]}))
    check = TokenVerifier(HomepageSettings(token_key_file=path, **OPTIONS), now_s=lambda: now[0])
    old, new = token(key=RSA, algorithm="RS256", kid="old"), token(key=EC, algorithm="ES256", kid="new")
    assert check.viewer_of(old) == "ana"
    assert reason(check, new) == "key"

    def rotate(text: str) -> None:
        path.write_text(text)
        os.utime(path, ns=(int(now[0] * 1e9), int(now[0] * 1e9)))
        now[0] += LOOK_AT_KEYS_EVERY_S

    with capture_logs() as logs:
        rotate("not JSON")
        assert check.viewer_of(old) == "ana"
        path.unlink()
        now[0] += LOOK_AT_KEYS_EVERY_S
        assert check.viewer_of(old) == "ana"
        rotate(json.dumps({"keys": [jwk(EC, kid="new")]}))
        assert check.viewer_of(new) == "ana"
        assert reason(check, old) == "key"  # remembered, and yet gone with its key
    assert [one["event"] for one in logs] == ["token_keys_unreadable", "token_keys_unreadable", "token_keys_changed"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b'{"keys": []}', b'{"keys": [7]}', b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', b"[" * 100_000, b"\xff",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        public_pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        public_pem(ec.generate_private_key(ec.SECP384R1())),
        RSA.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        json.dumps({"keys": [jwk(RSA, kid="a"), jwk(EC, kid="a")]}).encode(),
        json.dumps({"keys": [{**jwk(RSA), "alg": "RSA-OAEP"}]}).encode(),
    ],
)  # fmt: skip
def test_a_key_file_that_is_none_is_refused_by_its_setting(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(SettingsError, match="NEARLINE_HOMEPAGE__TOKEN_KEY_FILE="):
        TokenVerifier(HomepageSettings(token_key_file=tmp_path / "key"))
    with pytest.raises(SettingsError, match="cannot be read"):
        TokenVerifier(HomepageSettings(token_key_file=tmp_path / "gone"))
