"""The store's append-only file: which one grows, and cutting it where it stops making sense."""

from __future__ import annotations

from pathlib import Path


def newest_log(folder: Path) -> Path:
    """The append-only file that grows."""
    return max(folder.glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))


def cut_at_nonsense(path: Path) -> int:
    """Keep the commands (transactions whole) before the first byte that is none; the size now."""
    data = path.read_bytes()
    at = whole = 0
    depth = 0
    while at < len(data):
        if data[at : at + 1] == b"#":
            at = data.find(b"\n", at) + 1 or len(data)
        elif (command := _command_at(data, at)) is None:
            break
        else:
            word, at = command
            depth += {b"MULTI": 1, b"EXEC": -1}.get(word.upper(), 0)
        whole = at if depth == 0 else whole
    with path.open("r+b") as file:
        file.truncate(whole)
    return whole


def _command_at(data: bytes, at: int) -> tuple[bytes, int] | None:
    """The first word of the command that starts here, and where the next begins; None if there is none."""
    try:
        end = data.index(b"\r\n", at)
        if data[at : at + 1] != b"*":
            return None
        words, at = int(data[at + 1 : end]), end + 2
        first = b""
        for i in range(words):
            end = data.index(b"\r\n", at)
            length = int(data[at + 1 : end])
            word = data[end + 2 : end + 2 + length]
            at = end + 2 + length
            if data[at : at + 2] != b"\r\n":
                return None
            at += 2
            first = word if i == 0 else first
    except ValueError:
        return None
    return first, at
