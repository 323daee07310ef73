"""Lists of ids in few bytes: as many bits a character as the characters that occur need. Pure.

Ids of one catalogue use few different characters (`tt0133093`: eleven), so four bits a character do for them, half of ASCII:

    alphabet size u8 (0: more than 64 different characters, which then stand for themselves)
    the alphabet, ascending | length of every id u8, or 0 and one u8 each
    codes: 4, 5, 6 or 8 bits a character (the fewest that do), most significant bit first, filled up with zero bits

The number of ids is known from elsewhere; no ids are no bytes. A list has one spelling. `viewers/kernel_bytes.py` is the compiled twin.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence

MAX_ID_BYTES = 255
MAX_ALPHABET = 64

_DIGITS = {
    4: "0123456789ABCDEF",
    5: "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
    6: "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
}
"""Bits a character → the digits that the standard library's base 16, 32 and 64 write for the codes 0, 1, …"""

_GROUP_DIGITS = {4: 2, 5: 8, 6: 4}
"""Base 16, 32 and 64 work in groups of so many digits."""


def width_of(alphabet_size: int) -> int:
    """Bits a character: 4, 5, 6, or 8 for characters that stand for themselves."""
    return 4 if alphabet_size <= 16 else 5 if alphabet_size <= 32 else 6 if alphabet_size <= 64 else 8


def pack_ids(ids: Sequence[str]) -> bytes:
    """The bytes of some ids. Errors: ValueError unless each is 1-255 ASCII characters."""
    if not ids:
        return b""
    text = "".join(ids)
    lengths = [len(one) for one in ids]
    if not text.isascii() or min(lengths) == 0 or max(lengths) > MAX_ID_BYTES:
        raise ValueError("packed ids are ASCII, 1-255 characters each")
    uniform = lengths[0] if min(lengths) == max(lengths) else 0
    measure = bytes([uniform]) if uniform else b"\x00" + bytes(lengths)
    alphabet = "".join(sorted(set(text)))
    if len(alphabet) > MAX_ALPHABET:
        return b"\x00" + measure + text.encode()
    width = width_of(len(alphabet))
    return bytes([len(alphabet)]) + alphabet.encode() + measure + _to_bits(text.translate(_tables(alphabet)[0]), width)


def unpack_ids(data: bytes, at: int, count: int) -> tuple[list[str], int]:
    """`count` ids from `data[at:]`, and where they end. Errors: ValueError, IndexError if that is not how `pack_ids` writes them."""
    if count == 0:
        return [], at
    size = data[at]
    alphabet = data[at + 1 : at + 1 + size].decode("ascii")
    at += 1 + size
    uniform = data[at]
    at += 1
    if uniform:
        total = uniform * count
    else:
        lengths = data[at : at + count]
        total, at = sum(lengths), at + count
    width = width_of(size) if size else 8
    end = at + (total * width + 7) // 8
    if end > len(data):
        raise ValueError("fewer bytes than the ids need")
    codes = data[at:end]
    digits = _from_bits(codes, width) if size else codes.decode("ascii")
    text = digits[:total].translate(_tables(alphabet)[1]) if size else digits
    # What `pack_ids` would write differently, told without writing it.
    if len(text) != total or digits[total:].strip(_DIGITS[width][0] if size else ""):
        raise ValueError("digits without a character, or bits behind the last")
    if not (all(map(text.__contains__, alphabet)) if size else len(set(text)) > MAX_ALPHABET):
        raise ValueError("not the alphabet of these ids")
    if uniform:
        return [text[i : i + uniform] for i in range(0, total, uniform)], end
    if len(lengths) != count or min(lengths) == 0 or min(lengths) == max(lengths):
        raise ValueError("not the lengths of so many ids, or equal ones")
    ids, i = [], 0
    for length in lengths:
        ids.append(text[i : i + length])
        i += length
    return ids, end


@functools.lru_cache(maxsize=256)
def _tables(alphabet: str) -> tuple[dict[int, int], dict[int, int | None]]:
    """Characters to digits, and digits to characters (those without one vanish, and the ids come out too short)."""
    if len(alphabet) > MAX_ALPHABET or list(alphabet) != sorted(set(alphabet)):
        raise ValueError("an alphabet that is too large or does not ascend")
    digits = _DIGITS[width_of(len(alphabet))]
    forth = {ord(character): ord(digit) for character, digit in zip(alphabet, digits, strict=False)}
    back: dict[int, int | None] = dict.fromkeys(map(ord, digits))
    back.update((digit, character) for character, digit in forth.items())
    return forth, back


def _to_bits(digits: str, width: int) -> bytes:
    group, size = _GROUP_DIGITS[width], (len(digits) * width + 7) // 8
    filled = digits + _DIGITS[width][0] * (-len(digits) % group)
    if width == 4:
        return bytes.fromhex(filled)
    return (base64.b32decode(filled) if width == 5 else base64.b64decode(filled))[:size]


def _from_bits(codes: bytes, width: int) -> str:
    if width == 4:
        return codes.hex().upper()
    return (base64.b32encode(codes) if width == 5 else base64.b64encode(codes)).decode().rstrip("=")
