from __future__ import annotations

import io
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
from numpy.typing import NDArray

from handmade import (
    BAR,
    END_OF_TRACK,
    FOUR_FOUR,
    TPQ,
    chunk,
    groove,
    note,
    rows,
    several_tracks,
    smf,
    track,
    vlq,
)
from handmade import score as song_of
from midiloop.errors import MidiError
from midiloop.midi import pianoroll, score
from midiloop.midi.score import Meter, Score, Tempo, Track
from midiloop.mining import corpus

NOTE = note(0, 60)
PLAIN = smf(FOUR_FOUR + END_OF_TRACK, NOTE + END_OF_TRACK)


def test_a_plain_file_is_read() -> None:
    song = score.read(PLAIN)
    assert rows(song) == [("", 0, False, (0, 120, 60, 100))]
    assert song.meters == (Meter(0, 4, 4),)
    assert (song.ticks_per_quarter, song.length_ticks, song.n_notes) == (TPQ, 120, 1)


# What is wrong with a file, and the reason that `read` gives. Built byte by byte; the list follows
# the table of what parsers do with hostile files.
FAR = vlq(2**28 - 1)
HOSTILE = {
    "empty": (b"", "not_midi"),
    "a web page": (b"\n<!DOCTYPE html><html>", "not_midi"),
    "garbage": (bytes(range(256)) * 9, "not_midi"),
    "half a header": (PLAIN[:10], "truncated"),
    "cut inside the last track": (PLAIN[:-9], "truncated"),
    "false track length": (
        PLAIN.replace(struct.pack(">I", len(NOTE) + 4), struct.pack(">I", 9999)),
        "truncated",
    ),
    "no track at all": (smf(), "no_notes"),
    "division 0": (smf(NOTE + END_OF_TRACK, division=0), "bad_division"),
    "SMPTE division": (smf(NOTE + END_OF_TRACK, division=0xE728), "smpte_division"),
    "format 99": (smf(NOTE + END_OF_TRACK, kind=99), "bad_header"),
    "header of 2 bytes": (PLAIN.replace(b"\0\0\0\6", b"\0\0\0\2", 1), "bad_header"),
    "meter 4/2^255": (smf(b"\0\xff\x58\4\4\xff\x18\x08" + NOTE + END_OF_TRACK), "bad_meter"),
    "meter 0/4": (smf(b"\0\xff\x58\4\0\2\x18\x08" + NOTE + END_OF_TRACK), "bad_meter"),
    "tempo 0": (smf(b"\0\xff\x51\3\0\0\0" + NOTE + END_OF_TRACK), "bad_tempo"),
    "eight far deltas": (
        smf((FAR + b"\xff\x01\x00") * 8 + NOTE + END_OF_TRACK),
        "tick_out_of_range",
    ),
    "a far delta at 1 tick a quarter": (
        smf(FAR + b"\xff\x01\x00" + NOTE + END_OF_TRACK, division=1),
        "too_long",
    ),
    "a late note at 1 tick a quarter": (
        smf(note(0, 60, start=9_900_000) + END_OF_TRACK, division=1),
        "too_long",
    ),
    "600,000 notes at once": (
        smf(b"\0\x99\x24\x64" + b"\0\x24\0\0\x24\x64" * 300_000 + END_OF_TRACK),
        "too_many_notes",
    ),
    "more notes that never end": (
        smf(b"\0\x90\x3c\x64" * 250_001 + END_OF_TRACK),
        "too_many_notes",
    ),
    "a million tracks to be": (
        smf(
            *[
                b"".join(
                    bytes([0, 0xC0 | c, p, 0, 0x90 | c, 48, 64, 9, 0x80 | c, 48, 0])
                    for c in range(16)
                    for p in range(0, 128, 4)
                )
                + END_OF_TRACK
            ]
            * 500
        ),
        "too_many_tracks",
    ),
    "more bytes than a song": (PLAIN + bytes(score.MAX_FILE_BYTES), "too_large"),
    "a status byte that is none": (smf(b"\0\xf5\0\0" + END_OF_TRACK), "bad_event"),
    "running status of nothing": (smf(b"\0\x3c\x64" + END_OF_TRACK), "bad_event"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[name]
    with pytest.raises(MidiError) as caught:
        score.read(data)
    assert caught.value.reason == reason
    assert caught.value.detail
    assert reason in score.REASONS
    path = tmp_path / "hostile.mid"
    path.write_bytes(data)
    with pytest.raises(MidiError) as from_path:
        score.read(path)
    assert from_path.value.reason == reason


REPAIRABLE = {
    "the last byte is missing": PLAIN[:-1],
    "two bytes are missing": PLAIN[:-2],
    "the last event is missing": PLAIN[:-4],
    "a RIFF wrapper": b"RIFF" + struct.pack("<I", len(PLAIN) + 12) + b"RMIDdata"
    + struct.pack("<I", len(PLAIN)) + PLAIN,
    "junk before the header": b"\0" * 128 + PLAIN,
    "junk after the last track": PLAIN + b"\0\0\0",
    "a chunk of another kind at the end, cut": PLAIN + b"XFIH\0\0\1\0abc",
    "a header of 8 bytes": PLAIN[:7] + b"\x08" + PLAIN[8:14] + b"\0\0" + PLAIN[14:],
    "65,535 tracks declared": PLAIN[:10] + b"\xff\xff" + PLAIN[12:],
    "a controller value of 200": smf(
        FOUR_FOUR + END_OF_TRACK, b"\0\xb0\x07\xc8" + NOTE + END_OF_TRACK
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REPAIRABLE)
def test_damage_that_loses_no_music_is_repaired(name: str) -> None:
    song = score.read(REPAIRABLE[name])
    assert rows(song) == rows(score.read(PLAIN))
    assert song.meters == (Meter(0, 4, 4),)


def test_a_denominator_of_128_is_read() -> None:
    song = score.read(smf(b"\0\xff\x58\4\x40\7\x18\x08" + NOTE + END_OF_TRACK))
    assert song.meters == (Meter(0, 64, 128),)


def test_a_missing_path_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        score.read(tmp_path / "none.mid")


def test_program_and_channel_are_those_at_the_onset() -> None:
    song = score.read(
        smf(b"\0\xc0\x21" + note(0, 40) + b"\0\xc0\x05" + note(0, 64) + note(9, 36) + END_OF_TRACK)
    )
    found = {(t.program, t.is_drum): t.pitches.tolist() for t in song.tracks}
    assert found[(33, False)] == [40]
    assert found[(5, False)] == [64]
    assert [p for (_, drum), p in found.items() if drum] == [[36]]


def test_of_several_tempi_at_one_tick_the_last_counts() -> None:
    song = song_of(track([(0, 9 * BAR, 40)]), tempos=(Tempo(0, 90), Tempo(0, 100), Tempo(BAR, 60)))
    ticks = np.array([0, BAR - 1, BAR, 5 * BAR])
    np.testing.assert_array_equal(song.tempo_bpm_at(ticks), [100, 100, 60, 60])
    silent = song_of(track([(0, 9, 40)]), tempos=())
    np.testing.assert_array_equal(silent.tempo_bpm_at(ticks), [120] * 4)


def test_what_is_written_reads_back_the_same() -> None:
    song = several_tracks()
    back = score.read(score.to_bytes(song))
    assert rows(back) == rows(song)
    assert back.meters == song.meters
    assert [t.tick for t in back.tempos] == [0, 4 * BAR]
    np.testing.assert_allclose([t.bpm for t in back.tempos], [97.35, 140.0], rtol=1e-5)


def test_every_track_ends_at_the_bar_line_and_begins_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "loop.mid"
    score.write(several_tracks(), path)
    midi = mido.MidiFile(path, charset="utf-8")
    assert [sum(message.time for message in t) for t in midi.tracks] == [8 * BAR] * 4
    assert {t[-1].type for t in midi.tracks} == {"end_of_track"}
    assert [(m.type, m.time) for m in midi.tracks[0][:2]] == [
        ("set_tempo", 0),
        ("time_signature", 0),
    ]
    assert [(t[0].name, t[0].time) for t in midi.tracks[1:]] == [("Kit é", 0), ("Bass", 0), ("", 0)]
    channels = [{m.channel for m in t if m.type == "note_on"} for t in midi.tracks[1:]]
    assert channels == [{9}, {0}, {1}]
    assert [path.name for path in tmp_path.iterdir()] == ["loop.mid"]


def test_twenty_tracks_never_land_on_the_drum_channel() -> None:
    song = song_of(*[track([(0, 10, 40 + n)], program=n % 10) for n in range(20)])
    midi = mido.MidiFile(file=io.BytesIO(score.to_bytes(song)))
    assert all(m.channel != 9 for t in midi.tracks for m in t if m.type == "note_on")


def by_mido(song: Score, channels: list[int]) -> bytes:
    """What mido makes of a score's events; of one tick: controls, bends, ends, beginnings."""

    def timed(messages: list[tuple[int, mido.Message]]) -> mido.MidiTrack:
        found, now = mido.MidiTrack(), 0
        for tick, message in sorted(messages, key=lambda one: one[0]):
            found.append(message.copy(time=tick - now))
            now = tick
        end = mido.MetaMessage("end_of_track", time=max(0, song.length_ticks - now))
        return mido.MidiTrack([*found, end])

    meta = mido.MetaMessage
    conductor = [
        *((t.tick, meta("set_tempo", tempo=round(60e6 / t.bpm))) for t in song.tempos),
        *(
            (m.tick, meta("time_signature", numerator=m.numerator, denominator=m.denominator))
            for m in song.meters
        ),
    ]
    tracks = [timed(conductor)]
    for part, channel in zip(song.tracks, channels, strict=True):
        say = partial(mido.Message, channel=channel)
        messages = [(0, meta("track_name", name=part.name))]
        messages.append((0, say("program_change", program=part.program)))
        for tick, number, value in part.controls.tolist():
            messages.append((tick, say("control_change", control=number, value=value)))
        messages += [(tick, say("pitchwheel", pitch=bend)) for tick, bend in part.bends.tolist()]
        notes = np.stack([part.onsets, part.ends, part.pitches, part.velocities], 1).tolist()
        ended = [
            (end, say("note_off", note=n, velocity=0)) for start, end, n, _ in notes if end > start
        ]
        messages += ended
        for start, end, pitch, velocity in notes:
            messages.append((start, say("note_on", note=pitch, velocity=velocity)))
            if end == start:
                messages.append((end, say("note_off", note=pitch, velocity=0)))
        tracks.append(timed(messages))
    file = io.BytesIO()
    midi = mido.MidiFile(ticks_per_beat=song.ticks_per_quarter, charset="utf-8", tracks=tracks)
    midi.save(file=file)
    return file.getvalue()


def a_score(rng: np.random.Generator) -> Score:
    """Anything that a MIDI file can hold, and much at one tick."""
    span = int(rng.choice([4, 300, 40_000, 3_000_000]))

    def ticks(n: int) -> NDArray[np.int32]:
        return np.sort(rng.integers(0, span, n)).astype(np.int32)

    def a_track(number: int) -> Track:
        n, n_controls, n_bends = rng.integers(0, 40, 3)
        onsets = ticks(n)
        controls = np.stack([ticks(n_controls), *rng.integers(0, 128, (2, n_controls))], 1)
        bends = np.stack([ticks(n_bends), rng.integers(-8192, 8192, n_bends)], 1)
        return Track(
            name="".join(map(chr, rng.integers(32, 900, rng.integers(0, 150)))),
            program=int(rng.integers(0, 128)),
            is_drum=number % 3 == 1,
            onsets=onsets,
            durations=(rng.integers(0, 4, n) * rng.integers(0, 200, n)).astype(np.int32),
            pitches=rng.integers(0, 128, n).astype(np.int8),
            velocities=rng.integers(0, 128, n).astype(np.int8),
            controls=controls.astype(np.int32),
            bends=bends.astype(np.int32),
        )

    tempos = [Tempo(int(tick), float(rng.uniform(4, 1000))) for tick in ticks(3)]
    meters = [
        Meter(int(tick), int(rng.integers(1, 256)), int(2 ** rng.integers(0, 8)))
        for tick in ticks(2)
    ]
    n_tracks, tpq = int(rng.integers(0, 6)), int(rng.integers(1, 32_768))
    tracks = tuple(map(a_track, range(n_tracks)))
    return Score(tpq, tracks, tuple(tempos), tuple(meters), int(rng.integers(0, 2 * span)))


@pytest.mark.parametrize("seed", range(40))
def test_the_bytes_are_those_of_mido(seed: int) -> None:
    song = a_score(np.random.default_rng(seed))
    pitched = iter(range(9))
    channels = [9 if part.is_drum else next(pitched) for part in song.tracks]
    assert score.to_bytes(song) == by_mido(song, channels)


@pytest.mark.parametrize(
    "wrong",
    [
        {"program": 128},
        {"pitches": np.array([-1], np.int8)},
        {"velocities": np.array([-128], np.int8)},
        {"onsets": np.array([-5], np.int32)},
        {"controls": np.array([[0, 7, 128]], np.int32)},
        {"controls": np.array([[0, -1, 0]], np.int32)},
        {"bends": np.array([[0, 8192]], np.int32)},
    ],
)
def test_what_no_midi_file_can_state_is_not_written(wrong: dict[str, Any], tmp_path: Path) -> None:
    one = track([(0, 10, 40)])
    with pytest.raises(ValueError, match=r"MIDI file|below 0"):
        score.write(song_of(one._replace(**wrong)), tmp_path / "song.mid")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"tempos": (Tempo(0, 3.0),)},
        {"meters": (Meter(0, 4, 3),)},
        {"meters": (Meter(0, 4, 0),)},
        {"meters": (Meter(0, 256, 4),)},
    ],
)
def test_no_tempo_and_no_meter_is_bent_to_fit(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="MIDI file"):
        score.to_bytes(replace(groove(1), **wrong))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        score.write(groove(1), tmp_path / "none" / "loop.mid")
    assert not list(tmp_path.iterdir())


def test_real_files_survive_writing(real_files: list[corpus.Item]) -> None:
    """Reading what we wrote of a real song gives the same drums."""
    same = 0
    for item in real_files[::4]:
        try:
            song = score.read(item.read())
        except MidiError:
            continue
        back = score.read(score.to_bytes(song))
        assert back.length_ticks <= song.length_ticks
        steps = min(len(pianoroll.encode(song)), len(pianoroll.encode(back)))
        drums = slice(0, 9)
        np.testing.assert_array_equal(
            pianoroll.encode(song)[:steps, drums], pianoroll.encode(back)[:steps, drums]
        )
        same += 1
    assert same > len(real_files) / 6


def test_chunk_lengths_are_what_the_builder_says() -> None:
    assert chunk(b"abc")[4:8] == b"\0\0\0\3"
