"""`Manifest`: what a generation is made of, what it was trained on, and why it may be served. JSON in `manifest.json`.

It is written last: a folder without a manifest is not a generation. Parsing is strict: a missing, unknown or odd field is a
`GenerationError` that names it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from contracts.errors import GenerationError
from contracts.rows import ENTRIES_KEPT
from contracts.rules import NO_RULES, Rules

FORMAT = 1
"""Raised when a reader of the old format would misread the new one."""

CONFIDENCE_RULE = "signed-rank-decay-1"
"""The rule of `embeddings/foldin.py`: c = ± (1 + α·|s|·g·(b₀ + (1 − b₀)·2^(−rank/h)))."""

GENERATION_ID = re.compile(r"(?!CURRENT$)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A folder's name: no separator, no leading dot."""

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9]+)+")
_PARTITION = re.compile(r"0|[1-9][0-9]{0,9}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the generation: `sha256` in hex, `size_bytes`."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Confidence:
    """The confidence rule and its parameters: `regularization` λ, `alpha` α, `decay_floor` b₀, `decay_half_life` h, `decay_gain` g."""

    rule: str
    regularization: float
    alpha: float
    decay_floor: float
    decay_half_life: float
    decay_gain: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's answer. `verdict`: passed, forced (held back, published all the same), unchecked (no evaluation was made)."""

    verdict: str
    reason: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A generation's manifest.

    `created_at_ms`: UTC milliseconds. `k`: length of an embedding. `stream`: `topic@epoch` that `cutoffs` (partition → first offset
    not in the training data) belong to. `inputs`: digest of everything that the training depended on; equal inputs are
    the same generation. `versions`: program → version. `metrics`: arm → metric → value. `ledger_lines`: how many lines of the
    erasure ledger the training data obeyed; whoever stands in a later line may still be in it. `rules`: what its rows obey (an older
    program's manifest names none).
    """

    generation_id: str
    created_at_ms: int
    k: int
    n_items: int
    n_users: int
    confidence: Confidence
    stream: str
    cutoffs: Mapping[int, int]
    inputs: str
    trainer: str
    versions: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, float]]
    decision: Decision
    files: Mapping[str, FileEntry]
    ledger_lines: int = 0
    rules: Rules = NO_RULES
    format: int = FORMAT


def to_json(manifest: Manifest) -> str:
    """The content of `manifest.json`. Errors: `GenerationError` if it could not be read back (NaN among the metrics)."""
    try:
        text = json.dumps(asdict(manifest), indent=2, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise GenerationError(
            f"manifest of {manifest.generation_id}: metrics: not finite; such a generation must not be published"
        ) from error
    if from_json(text, manifest.generation_id) != manifest:
        raise GenerationError(f"manifest of {manifest.generation_id}: does not survive a round trip; check its types")
    return text + "\n"


def from_json(text: str | bytes, where: str) -> Manifest:
    """Parse `manifest.json`. `where` names the file in messages. Errors: `GenerationError` naming the field."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GenerationError(f"{where}: not JSON ({type(error).__name__}); publish the generation again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise GenerationError(f"{where}: field format: found {found!r}, this program reads {FORMAT}; upgrade it")
    try:
        return Manifest(**_object({"rules": asdict(NO_RULES)} | content, _PARSERS))
    except _Bad as bad:
        raise GenerationError(f"{where}: field {bad.path}: {bad}; publish the generation again") from None


class _Bad(Exception):
    """A field's problem, before it is known where the field stands. `path`: inner keys."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.path = path


def _object(content: Any, parsers: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """A JSON object that holds exactly these fields, parsed."""
    if not isinstance(content, dict):
        raise _Bad(f"an object is wanted, found {type(content).__name__}")
    unknown = sorted(set(content) - set(parsers))
    if unknown:
        raise _Bad("not a field of this format", unknown[0])
    values = {}
    for name, parser in parsers.items():
        if name not in content:
            raise _Bad("missing", name)
        values[name] = _inside(name, parser, content[name])
    return values


def _inside(name: str, parser: Callable[[Any], Any], value: Any) -> Any:
    try:
        return parser(value)
    except _Bad as bad:
        raise _Bad(str(bad), f"{name}.{bad.path}" if bad.path else name) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Bad(f"text is wanted, found {type(value).__name__}")
    return value


def _generation_id(value: Any) -> str:
    if GENERATION_ID.fullmatch(_text(value)) is None:
        raise _Bad("not a folder name of A-Z a-z 0-9 . _ -")
    return str(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise _Bad("a whole number of at least 0 is wanted")
    return value


def _positive(value: Any) -> int:
    if _count(value) == 0:
        raise _Bad("must be above 0")
    return int(value)


def _number(value: Any) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        pass
    raise _Bad("a finite number is wanted")


def _above_zero(value: Any) -> float:
    if _number(value) <= 0:
        raise _Bad("must be above 0")
    return float(value)


def _share(value: Any) -> float:
    if not 0 <= _number(value) <= 1:
        raise _Bad("must be between 0 and 1")
    return float(value)


def _mapping(parser: Callable[[Any], T]) -> Callable[[Any], dict[str, T]]:
    def parse(value: Any) -> dict[str, T]:
        if not isinstance(value, dict):
            raise _Bad(f"an object is wanted, found {type(value).__name__}")
        return {key: _inside(key, parser, inner) for key, inner in value.items()}

    return parse


def _offsets(value: Any) -> dict[int, int]:
    offsets = _mapping(_count)(value)
    for key in offsets:
        if _PARTITION.fullmatch(key) is None:
            raise _Bad("not a partition number", key)
    return {int(key): offset for key, offset in offsets.items()}


def _confidence(value: Any) -> Confidence:
    parsers: dict[str, Callable[[Any], Any]] = {
        "rule": _rule,
        "regularization": _above_zero,
        "alpha": _above_zero,
        "decay_floor": _share,
        "decay_half_life": _above_zero,
        "decay_gain": _above_zero,
    }
    return Confidence(**_object(value, parsers))


def _rule(value: Any) -> str:
    if value != CONFIDENCE_RULE:
        raise _Bad(f"unknown rule; this program folds in by {CONFIDENCE_RULE}")
    return str(value)


def _decision(value: Any) -> Decision:
    return Decision(**_object(value, {"verdict": _text, "reason": _text}))


def _rules(value: Any) -> Rules:
    parsers: dict[str, Callable[[Any], Any]] = {
        "window": _window,
        "per_creator": _count,
        "per_topic": _count,
        "exploration": _share,
        "preference": _share,
        "repeats": _share,
        "repeat_gap": _count,
    }
    return Rules(**_object(value, parsers))


def _window(value: Any) -> int:
    if not 1 <= _count(value) <= ENTRIES_KEPT:
        raise _Bad(f"must be between 1 and {ENTRIES_KEPT}")
    return int(value)


def _files(value: Any) -> dict[str, FileEntry]:
    entry: dict[str, Callable[[Any], Any]] = {"sha256": _hex, "size_bytes": _count}
    parsed = _mapping(lambda one: FileEntry(**_object(one, entry)))(value)
    for name in parsed:
        if _FILE_NAME.fullmatch(name) is None:
            raise _Bad("not a plain file name", name)
    return parsed


def _hex(value: Any) -> str:
    if _SHA256.fullmatch(_text(value)) is None:
        raise _Bad("not a sha256 in hex")
    return str(value)


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "generation_id": _generation_id,
    "created_at_ms": _count,
    "k": _positive,
    "n_items": _positive,
    "n_users": _count,
    "confidence": _confidence,
    "stream": _text,
    "cutoffs": _offsets,
    "inputs": _text,
    "trainer": _text,
    "versions": _mapping(_text),
    "metrics": _mapping(_mapping(_number)),
    "decision": _decision,
    "files": _files,
    "ledger_lines": _count,
    "rules": _rules,
    "format": _positive,
}
