"""Keys: names that people write, signatures, and what is claimed."""

from __future__ import annotations

import io

import mido
import numpy as np
import pytest

from handmade import groove
from midiloop.errors import CallError
from midiloop.midi import key, score
from midiloop.midi.key import MODES, Key, parse_key

EVERY = [Key(tonic, mode) for tonic in range(12) for mode in MODES]


def test_names() -> None:
    assert str(Key(0, "major")) == "C"
    assert str(Key(6, "minor")) == "F#m"
    flats = [str(one) for one in EVERY if "b" in str(one)]
    assert flats == ["Db", "Eb", "Ab", "Bb", "Bbm"]


@pytest.mark.parametrize("one", EVERY, ids=str)
def test_a_name_is_read_as_the_key_it_is_of(one: Key) -> None:
    assert parse_key("--key", str(one)) == one


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A#", "Bb"), ("Dbm", "C#m"), ("am", "Am"), ("Cb", "B"), ("E#m", "Fm"), ("B♭", "Bb"),
        ("F♯m", "F#m"), ("Amin", "Am"), ("Gmaj", "G"), ("bb", "Bb"), ("b", "B"), ("Gb", "F#"),
        ("Ebm", "D#m"),
    ],
)  # fmt: skip
def test_other_spellings(text: str, name: str) -> None:
    assert str(parse_key("--key", text)) == name


@pytest.mark.parametrize("text", ["", "H", "m", "Amm", "A m", "AM", "C##", "#", "Am\n", "8A", "A1"])
def test_what_is_no_key_is_one_line(text: str) -> None:
    with pytest.raises(CallError, match="no such key") as caught:
        parse_key("--key", text)
    assert "--key" in str(caught.value)


@pytest.mark.parametrize("one", EVERY, ids=str)
def test_a_confident_key_is_a_signature_that_others_read(one: Key) -> None:
    for confidence in (0.04, key.CONFIDENT, 1.0):
        song = groove(2)
        object.__setattr__(song, "key", one._replace(confidence=confidence))
        data = score.to_bytes(song)
        found = [m for m in mido.MidiFile(file=io.BytesIO(data)).tracks[0] if "key" in m.type]
        if confidence < key.CONFIDENT:
            assert found == []
        else:
            (signature,) = found
            assert signature.time == 0
            assert parse_key("key", signature.key) == one
        assert score.read(data).key is None, "what files state is not read"


def test_one_fifth_is_one_sharp() -> None:
    assert [Key(7 * n % 12, "major").sharps for n in range(-5, 7)] == [*range(-5, 7)]
    for one in EVERY:
        relative = Key((one.tonic + 3) % 12, "major") if one.mode == "minor" else one
        assert one.sharps == relative.sharps


def test_json_has_a_key_that_is_certain_and_the_confidence() -> None:
    assert key.as_json(None) == {"key": None, "key_confidence": None}
    assert key.as_json(Key(9, "minor", 0.2)) == {"key": "Am", "key_confidence": 0.2}
    assert key.as_json(Key(9, "minor", 0.02)) == {"key": None, "key_confidence": 0.02}


def test_a_profile_is_its_own_key_in_any_unit() -> None:
    for one in EVERY:
        profile = np.roll(key.PROFILES[MODES.index(one.mode)], one.tonic)
        found = key.estimate(profile[None] * 480).key(0)
        assert found[:2] == one[:2]
        assert key.confident(found)
