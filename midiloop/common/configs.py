"""Configs of models: frozen dataclasses whose fields say in their types which values they may have.

Configs come from other people too. A size out of its range is refused before anything is built of
it::

    @dataclass(frozen=True)
    class PriorConfig:
        layers: Layers = 2      # Annotated[int, Range(1, 128)]
"""

from __future__ import annotations

import types
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from midiloop.common import files
from midiloop.errors import LoopError

MAX_ITEMS = 16  # of a field that is a list
MAX_TEXT = 256  # characters

C = TypeVar("C")


@dataclass(frozen=True)
class Range:
    """Values that a number may have, both ends included."""

    low: float
    high: float


Width = Annotated[int, Range(1, 16_384)]  # of a layer: channels, hidden, latent
Depth = Annotated[int, Range(1, 128)]  # layers or blocks, one after the other
Heads = Annotated[int, Range(1, 256)]
Widening = Annotated[int, Range(1, 16)]  # of a layer, and back
Kernel = Annotated[int, Range(1, 1023)]
CodebookSize = Annotated[int, Range(1, 65_536)]
Codebooks = Annotated[int, Range(1, 64)]
Steps = Annotated[int, Range(1, 4096)]  # of a loop, in whatever it is counted
Frames = Annotated[int, Range(0, 65_536)]
SampleRate = Annotated[int, Range(1000, 384_000)]
Samples = Annotated[int, Range(1, 65_536)]  # of a frame or a window
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 1e6)]


def from_json(kind: type[C], found: dict[str, Any], *, may_lack: frozenset[str] = frozenset()) -> C:
    """A config of what a file says.

    Args:
        may_lack: fields that have their defaults where the file does not say them.

    Raises:
        LoopError: other fields than those of the config, or a value out of its range; the message
            names neither file nor remedy.
    """
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    odd = (found.keys() - names) | (names - may_lack - found.keys())
    if odd:
        shown = files.shortened(", ".join(sorted(odd)))
        raise LoopError(f"another version wrote this config (it differs in {shown})")
    hints = get_type_hints(kind, include_extras=True)
    for name, value in found.items():
        if not _fits(value, hints[name]):
            raise LoopError(f"{name} is {quoted(value)}, and not {_said(hints[name])}")
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in found.items()})


def checked(kind: type[C], found: dict[str, Any]) -> C:
    """The same of a file that also says other things; what it does not say is as by default.

    Raises:
        LoopError: see `from_json`; or it lacks what has no default.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    usual = {name for name, field in known.items() if field.default is not MISSING}
    told = {name: value for name, value in found.items() if name in known}
    return from_json(kind, told, may_lack=frozenset(usual))


def check_version(name: str, found: dict[str, Any], version: int, remedy: str) -> None:
    """Raise `LoopError` where the file ``name`` is of another format version than is read here."""
    stated = found.get("format_version")
    if type(stated) is not int or stated != version:
        raise LoopError(
            f"{name}: format version {quoted(stated)}, this midiloop reads {version}; {remedy}"
        )


def quoted(value: object) -> str:
    """A value of a file, as a message shows it."""
    if isinstance(value, dict | list | tuple):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value):,}"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a very large number"
    return "null" if value is None else files.shortened(repr(value))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, and in its range."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, span = inner
        return _fits(value, base) and bool(span.low <= value <= span.high)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is tuple:
        return (
            isinstance(value, list | tuple)
            and len(value) <= MAX_ITEMS
            and all(_fits(one, inner[0]) for one in value)
        )
    if hint is float:
        return type(value) in (int, float)
    if hint is str:
        return isinstance(value, str) and len(value) <= MAX_TEXT
    return value is None if hint is type(None) else type(value) is hint


def _said(hint: Any) -> str:
    """What a value has to be, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, span = inner
        kind = "a whole number" if base is int else "a number"
        return f"{kind} from {span.low:,} to {span.high:,}"
    if origin in (Union, types.UnionType):
        return " or ".join(_said(one) for one in inner)
    if origin is Literal:
        return " or ".join(repr(one) for one in inner)
    if origin is tuple:
        return f"a list of up to {MAX_ITEMS}, each {_said(inner[0])}"
    names = {str: f"a text of up to {MAX_TEXT} characters", bool: "true or false"}
    return names.get(hint, "null")
