"""The manifest of a loop dataset, ``manifest.json``, checked when it is read.

Datasets come from other people too: after this check the rest of the code may trust its values.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from midiloop.common import configs, files
from midiloop.dataset.splits import SPLITS
from midiloop.errors import LoopError
from midiloop.grid import grid_from_json
from midiloop.midi.performance import OFFSETS_PER_STEP

FORMAT = "midiloop-loops"
FORMAT_VERSION = 1
REMEDY = "extract the dataset again"
MAX_LOOPS = 1 << 40  # so that figures of a manifest stay within what is computed and printed

SHARD_NAME = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
COUNTED = ("files", "songs", "loops", "distinct_loops")


def fingerprint(hashes: Iterable[str]) -> str:
    """Identity of a dataset: 32 hexadecimal digits, from the SHA-256 of its shards."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:32]


def read(folder: Path) -> dict[str, Any]:
    """The manifest of the dataset in a folder.

    Raises:
        LoopError: there is none, it is one of another version, or it is inconsistent.
    """
    name = files.printable(folder)
    try:
        manifest = files.read_json(folder / "manifest.json")
    except FileNotFoundError:
        raise LoopError(
            f"{name}: no manifest.json; give a folder that 'midiloop extract' wrote"
        ) from None
    except LoopError as error:
        raise LoopError(f"{error}: not a loop dataset, or damaged; {REMEDY}") from error
    if manifest.get("format") != FORMAT:
        raise LoopError(f"{name}: not a loop dataset; make one with 'midiloop extract'")
    configs.check_version(name, manifest, FORMAT_VERSION, "extract it again")
    try:
        _check(manifest)
    except LoopError as error:
        raise LoopError(f"{files.printable(folder / 'manifest.json')}: {error}; {REMEDY}") from None
    return manifest


def _check(manifest: dict[str, Any]) -> None:
    """Raise `LoopError` if a manifest is inconsistent; the message has no remedy."""
    _want(manifest, "midiloop_version", _is_text)
    _want(manifest, "sources", lambda found: isinstance(found, list) and all(map(_is_text, found)))
    _want(manifest, "stride_bars", _is_count)
    _want(manifest, "rules", lambda found: isinstance(found, dict) and _is_text(found.get("name")))
    _want(manifest, "grid", lambda found: isinstance(found, dict))
    grid_from_json(manifest["grid"])
    wants_offsets = {"offsets_per_step": OFFSETS_PER_STEP}
    _want(manifest, "performance", lambda found: found == wants_offsets, wants_offsets)
    counts = _want(manifest, "counts", lambda found: isinstance(found, dict))
    for name in COUNTED:
        _want(counts, name, _is_count)
    _want(counts, "rejects", _are_counts)
    of_splits = _want(counts, "splits", lambda found: _are_counts(found) and {*found} <= {*SPLITS})
    if sum(of_splits.values()) != counts["loops"] or counts["distinct_loops"] > counts["loops"]:
        raise LoopError("its counts do not add up")
    _check_shards(manifest, counts["loops"])


def _check_shards(manifest: dict[str, Any], n_loops: int) -> None:
    shards = _want(manifest, "shards", lambda found: isinstance(found, list))
    for shard in shards:
        if not isinstance(shard, dict):
            raise LoopError("a shard is not an object")
        _want(shard, "file", _is_inside)
        _want(shard, "loops", _is_count)
        _want(shard, "sha256", lambda found: _is_text(found) and bool(SHA256.fullmatch(found)), "")
        _want(shard, "split", lambda found: found in SPLITS, "")
    if len({shard["file"] for shard in shards}) < len(shards):
        raise LoopError("two shards have one name")
    if sum(shard["loops"] for shard in shards) != n_loops:
        raise LoopError("the loops of its shards are not as many as it counts")
    hashes = [shard["sha256"] for shard in shards if "sha256" in shard]
    stated = _want(manifest, "fingerprint", _is_text, "")
    if stated and len(hashes) == len(shards) and stated != fingerprint(hashes):
        raise LoopError("its fingerprint is not that of its shards")


def _want(found: dict[str, Any], key: str, good: Callable[[Any], bool], default: Any = None) -> Any:
    """The value of a key; one that has a default may be missing."""
    if key not in found:
        if default is None:
            raise LoopError(f"no {key!r} in it")
        return default
    if not good(found[key]):
        raise LoopError(f"{key!r} cannot be {files.shortened(repr(found[key]), 40)}")
    return found[key]


def _is_text(found: Any) -> bool:
    return isinstance(found, str)


def _is_count(found: Any) -> bool:
    return type(found) is int and 0 <= found <= MAX_LOOPS


def _are_counts(found: Any) -> bool:
    return isinstance(found, dict) and all(map(_is_count, found.values()))


def _is_inside(found: Any) -> bool:
    """Whether a shard's name cannot lead out of the dataset, on any system."""
    return isinstance(found, str) and bool(SHARD_NAME.fullmatch(found)) and len(found) < 256
