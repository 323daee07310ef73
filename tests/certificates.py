"""Certificates made for a test, and the rights that docs/security.md lists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

SECURITY_PAGE = Path(__file__).parent.parent / "docs" / "security.md"


@dataclass(frozen=True)
class Certificate:
    """PEM files: the chain, the key (PKCS 8), and both in one."""

    cert: Path
    key: Path
    both: Path


class Certificates:
    """An authority of the test's own, and another one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority, stranger = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = folder / "ca.pem", folder / "other-ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))
        stranger.cert_pem.write_to_path(str(self.other_ca))
        self.good = self._issue("good", "127.0.0.1", "localhost")
        self.elsewhere = self._issue("elsewhere", "redis.example")
        self.expired = self._issue("expired", "127.0.0.1", not_after=datetime.now(UTC) - timedelta(hours=1))
        self.client = self._issue("client", "client.example")

    def _issue(self, name: str, *names: str, not_after: datetime | None = None) -> Certificate:
        issued = self._authority.issue_cert(*names, not_before=datetime(2000, 1, 1, tzinfo=UTC), not_after=not_after)
        cert, key, both = (self._folder / f"{name}.{kind}.pem" for kind in ("cert", "key", "both"))
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        loaded = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
        pkcs8 = loaded.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        for path, content in ((cert, chain), (key, pkcs8), (both, pkcs8 + chain)):
            path.write_bytes(content)
        return Certificate(cert, key, both)


def documented(language: str) -> list[str]:
    """The lines of the page's block of this language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", SECURITY_PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return block.splitlines()
