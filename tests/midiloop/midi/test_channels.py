"""What plays each note depends on port, channel and time, never on how tracks are cut."""

from __future__ import annotations

import io
from pathlib import Path

import mido
import numpy as np
import pytest

from audioloop.pipelines.masks import InpaintMask
from audioloop.rendering import piece
from handmade import BAR, END_OF_TRACK, FOUR_FOUR, STEP, TPQ, groove, smf, vlq
from midiloop.errors import LoopError, MidiError
from midiloop.midi import channels, score
from midiloop.midi.events import Events
from midiloop.mining import extract, midi_loop, rules
from midiloop.mining.corpus import walk

OPEN = extract.Settings(rules.preset("open"))
XG = b"\0\xf0\x08\x43\x10\x4c\0\0\x7e\0\xf7"
GM2 = b"\0\xf0\x05\x7e\x7f\x09\x03\xf7"


def rhythm_part(block: int, mode: int = 1) -> bytes:
    """The SysEx by which a GS synth makes a part one of drums, or none."""
    return b"\0\xf0\x0a\x41\x10\x42\x12\x40" + bytes([0x10 + block, 0x15, mode, 0]) + b"\xf7"


def playing(
    channel: int, hits: list[tuple[int, int]], before: bytes = b"", off: int = STEP
) -> bytes:
    """Events of a track: notes at ticks and pitches, as long as ``off``, or without an end."""
    timed = [(tick, bytes([0x90 | channel, pitch, 100])) for tick, pitch in hits]
    if off:
        timed += [(tick + off, bytes([0x90 | channel, pitch, 0])) for tick, pitch in hits]
    out, now = before, 0
    for tick, message in sorted(timed, key=lambda row: (row[0], row[1][2] > 0)):
        out, now = out + vlq(tick - now) + message, tick
    return out + vlq(max(0, 8 * BAR - now)) + END_OF_TRACK[1:]


HITS = [(beat * TPQ, 36 if beat % 2 == 0 else 38) for beat in range(32)]
HITS = sorted([*HITS, (0, 49), (4 * BAR, 49)])
LINE = [(beat * TPQ, 33 + beat % 4) for beat in range(32)]


def tracks_of(
    drums: bytes = b"", bass: bytes = b"", setup: bytes = b"", on: int = 9
) -> list[bytes]:
    return [
        FOUR_FOUR + setup + END_OF_TRACK,
        playing(on, HITS, drums),
        playing(1, LINE, bass),
    ]


WAYS = {
    "set up on another track": tracks_of(setup=b"\0\xc1\x21"),
    "XG bank on another channel": tracks_of(XG + b"\0\xba\0\x7f\0\xca\0", b"\0\xc1\x21", on=10),
    "XG bank, running status": tracks_of(XG + b"\0\xba\0\x7f\0\x20\0\0\xca\0",
        b"\0\xc1\x21", on=10),
    "XG reset on a later track": [
        *tracks_of(b"\0\xba\0\x7e\0\xca\0", b"\0\xc1\x21", on=10), XG + END_OF_TRACK
    ],
    "GM2 bank": tracks_of(GM2 + b"\0\xba\0\x78\0\xca\0", b"\0\xc1\x21", on=10),
    "GS rhythm part": tracks_of(rhythm_part(10), b"\0\xc1\x21", on=10),
    "XG part mode": tracks_of(b"\0\xf0\x08\x43\x10\x4c\x08\x0a\x07\x02\xf7", b"\0\xc1\x21", on=10),
}  # fmt: skip


def merged(data: bytes) -> bytes:
    """The same file with all events on one track, as another library merges them."""
    midi = mido.MidiFile(file=io.BytesIO(data))
    one = mido.MidiFile(type=0, ticks_per_beat=midi.ticks_per_beat)
    one.tracks.append(mido.merge_tracks(midi.tracks))
    out = io.BytesIO()
    one.save(file=out)
    return out.getvalue()


@pytest.mark.parametrize("name", WAYS)
def test_loops_of_a_file_are_those_of_its_merge(name: str) -> None:
    data = smf(*WAYS[name])
    found = extract.mine("x", data, extract.PAPER)
    same = extract.mine("x", merged(data), extract.PAPER)
    assert found.start_bars.tolist() == [0]
    np.testing.assert_array_equal(found.rolls, same.rolls)


@pytest.mark.parametrize("name", WAYS)
def test_what_plays_is_what_the_file_says(name: str) -> None:
    song = score.read(smf(*WAYS[name]))
    assert {(t.is_drum, t.is_drum or t.program == 33, t.n_notes) for t in song.tracks} == {
        (True, True, len(HITS)),
        (False, True, len(LINE)),
    }


def test_a_port_has_channels_of_its_own() -> None:
    other = b"\0\xff\x21\x01\x01" + b"\0\xc1\x05" + b"\0\x91\x40\x40\x0a\x91\x40\0" + END_OF_TRACK
    song = score.read(smf(*WAYS["set up on another track"], other))
    assert sorted(t.program for t in song.tracks if not t.is_drum) == [5, 33]


def test_a_kit_is_never_bass_and_melody_on_channel_10_no_drums() -> None:
    kit = tracks_of(b"", XG + b"\0\xb1\0\x7f\0\xc1\x20")  # program 32 of a drum bank
    with pytest.raises(MidiError, match="no_bass"):
        extract.mine("x", smf(*kit), extract.PAPER)
    with pytest.raises(MidiError, match="no_drums"):
        extract.mine("x", smf(*tracks_of(rhythm_part(0, 0), b"\0\xc1\x21")), extract.PAPER)


def test_notes_without_an_end_count() -> None:
    whole = smf(*tracks_of(bass=b"\0\xc1\x21"))
    open_drums = smf(FOUR_FOUR + END_OF_TRACK, playing(9, HITS, off=0),
                     playing(1, LINE, b"\0\xc1\x21"))  # fmt: skip
    expected = extract.mine("x", whole, extract.PAPER).rolls
    np.testing.assert_array_equal(extract.mine("x", open_drums, extract.PAPER).rolls, expected)
    line = score.read(smf(playing(0, [(0, 40), (BAR, 40), (2 * BAR, 40)], off=0))).tracks[0]
    assert line.ends.tolist() == [BAR, 2 * BAR, 8 * BAR]
    hits = score.read(smf(playing(9, [(0, 36), (10, 36), (BAR, 36)], off=0))).tracks[0]
    assert hits.durations.max() <= STEP


def test_tracks_that_use_no_channel_of_another_are_left_to_the_parser() -> None:
    plain = tracks_of(bass=b"\0\xc1\x21")
    assert not channels.shared(plain)
    assert all(channels.shared(tracks) for tracks in WAYS.values())
    late = [(2048 * n, 60) for n in range(1, 8)]  # times whose bytes look like notes of a channel
    assert not channels.shared([*plain, playing(5, late, b"\0\xc5\x03")])


def test_all_tracks_are_read_however_many_are_declared() -> None:
    data = smf(*tracks_of(bass=b"\0\xc1\x21"))
    assert len(score.read(data[:11] + b"\1" + data[12:]).tracks) == 2


def test_patterns_that_stand_alone_are_no_song() -> None:
    patterns = tracks_of(bass=b"\0\xc1\x21")
    with pytest.raises(MidiError, match="format_2"):
        score.read(smf(*patterns, kind=2))
    assert score.read(smf(patterns[1], kind=2)).n_notes == len(HITS)


@pytest.mark.parametrize("meters", ["\1\2", "\3\2", "\5\3"])
def test_a_time_signature_begins_a_bar(meters: str) -> None:
    """A pickup moves the loop by a bar, and costs the paper's rules all of it."""
    top, bottom = (ord(letter) for letter in meters)
    pickup = 4 * TPQ * top // 2**bottom
    stated = b"\0\xff\x58\4" + bytes([top, bottom, 24, 8]) + vlq(pickup) + FOUR_FOUR[1:]
    song = [stated + END_OF_TRACK]
    for channel, hits, before in ((9, HITS, b""), (1, LINE, b"\0\xc1\x21")):
        later = [(tick + pickup, pitch) for tick, pitch in hits]
        song.append(playing(channel, later, before))
    found = extract.mine("x", smf(*song), OPEN)
    straight = extract.mine("x", smf(*tracks_of(bass=b"\0\xc1\x21")), OPEN)
    assert found.start_bars.tolist() == [1]
    np.testing.assert_array_equal(found.rolls, straight.rolls)
    with pytest.raises(MidiError, match="not_4_4"):
        extract.mine("x", smf(*song), extract.PAPER)


@pytest.mark.parametrize("meter", [b"\2\1", b"\x08\3", b"\4\2"])
def test_bars_of_four_quarters_are_alike(meter: bytes) -> None:
    stated = b"\0\xff\x58\4" + meter + b"\x18\x08" + END_OF_TRACK
    song = smf(stated, *tracks_of(bass=b"\0\xc1\x21")[1:])
    assert extract.mine("x", song, OPEN).start_bars.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "counts"),
    [("Bass", True), ("E-BASS 1", True), ("Fingerbass", True), ("Bass Drum", False),
     ("Bassoon", False), ("Piano", False)],
)  # fmt: skip
def test_a_track_called_bass_counts_under_open(name: str, counts: bool) -> None:
    named = b"\0\xff\x03" + bytes([len(name)]) + name.encode()
    song = smf(*tracks_of(bass=named + b"\0\xc1\x05"))
    with pytest.raises(MidiError, match="no_bass"):
        extract.mine("x", song, extract.PAPER)
    if counts:
        assert len(extract.mine("x", song, OPEN).start_bars) == 1
    else:
        with pytest.raises(MidiError, match="no_bass"):
            extract.mine("x", song, OPEN)


@pytest.mark.parametrize("late", [0, 1, TPQ])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_track_may_end_a_little_behind_the_bar_line(late: int, wrapped: bool) -> None:
    ends = [track[:-3] for track in tracks_of(bass=b"\0\xc1\x21")[1:]]
    tail = b"\xff\x01\0" + vlq(late) + b"\xff\x2f\0"
    data = smf(*(track + tail for track in ends))
    if wrapped:
        data = b"RIFF" + len(data).to_bytes(4, "little") + b"RMIDdata" + data
    assert piece.read(data, "x").label.bars == 8


def test_a_note_rings_over_the_bar_line() -> None:
    ringing = smf(FOUR_FOUR + END_OF_TRACK, b"\0\x91\x28\x40" + vlq(4 * BAR + 5) + b"\x91\x28\0"
                  + END_OF_TRACK)  # fmt: skip
    for bars in (None, 4):
        loop = piece.read(ringing, "x", bars=bars)
        assert loop.label.bars == 4
        assert loop.score.tracks[0].ends.max() == 4 * BAR + 5
        assert loop.score.cut().tracks[0].ends.max() == 4 * BAR


def test_a_tempo_that_is_rounded_again_is_one_tempo() -> None:
    def at(*microseconds: int) -> bytes:
        tempos = [b"\xff\x51\3" + us.to_bytes(3, "big") for us in microseconds]
        conductor = b"\0" + vlq(BAR).join(tempos) + END_OF_TRACK
        return smf(conductor, *tracks_of(bass=b"\0\xc1\x21")[1:])

    assert piece.read(at(500_000, 500_001, 500_000), "x").label.tempo_bpm == 120
    with pytest.raises(LoopError, match="its tempo changes"):
        piece.read(at(500_000, 500_002), "x")


@pytest.mark.parametrize("typed", [97.5, 120.0, 93.7, 174.0, 61.25])
def test_a_tempo_comes_back_as_it_was_typed(typed: float) -> None:
    assert score.typed_bpm(round(60_000_000 / typed)) == typed


def test_channels_are_shared_by_tracks_of_one_program_alone() -> None:
    base = groove(1).tracks[1]
    many = [base._replace(program=n % 9) for n in range(40)]
    given = score.channels_of(many)
    assert 9 not in given
    owners = {(channel, track.program) for channel, track in zip(given, many, strict=True)}
    assert len(owners) == len({channel for channel, _ in owners}) == 9
    with pytest.raises(LoopError, match="16 programs"):
        score.channels_of([base._replace(program=n) for n in range(16)])


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.75])
def test_a_share_of_one_bar_is_counted_in_beats(keep: float) -> None:
    conditioning = type("", (), {"steps": 16, "roll": None})()
    opened = InpaintMask(keep=keep).inpaint_mask(conditioning, 1, 100, 50.0)
    assert opened.float().mean().item() == pytest.approx(1 - keep)
    assert not opened[: round(100 * keep)].any()


def test_eight_bars_are_a_loop_to_vary_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "own.mid"
    odd = [(tick, pitch + tick // BAR) for tick, pitch in LINE]
    path.write_bytes(smf(*tracks_of()[:2], playing(1, odd, b"\0\xc1\x21")))
    with pytest.raises(MidiError, match="no_loop"):
        extract.mine("x", path.read_bytes(), OPEN)
    assert midi_loop.read(path, search=True).roll.any()


def test_an_archive_in_a_folder_is_read_and_one_in_an_archive_is_named(tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as archive:
        archive.writestr("12:30 take.mid", b"MThd")
        archive.writestr("C:/evil.mid", b"MThd")
        archive.writestr("inner.zip", b"")
    found = {item.name: item.problem and item.problem.reason for item in walk([tmp_path / "in"])}
    assert found == {
        "a.zip/12:30 take.mid": None,
        "a.zip/C:/evil.mid": "unsafe_path",
        "a.zip/inner.zip": "nested_archive",
    }


def one_by_one(track: bytes) -> list[tuple[int, int, int, int]]:
    """Tick, status and the two bytes after it of each event, read as the standard tells it."""
    found: list[tuple[int, int, int, int]] = []
    at, tick, running = 0, 0, 0

    def number(at: int) -> tuple[int, int]:
        value = 0
        while track[at] >= 0x80:
            value, at = value << 7 | track[at] & 0x7F, at + 1
        return (value << 7 | track[at]) & (1 << 28) - 1, at + 1

    def byte(at: int) -> int:
        return min(127, track[at]) if at < len(track) else 0

    try:
        while at < len(track):
            delta, at = number(at)
            status, at = (track[at], at + 1) if track[at] >= 0x80 else (running, at)
            running = status if status < 0xF0 else running
            end = at + {0xC0: 1, 0xD0: 1}.get(status & 0xF0, 2)
            if status in (0xFF, 0xF0, 0xF7):
                length, end = number(at + (status == 0xFF))
                end += length
            elif status >= 0xF0:
                end = at + {0xF1: 1, 0xF2: 2, 0xF3: 1}.get(status, 0)
            if not status or end > len(track):
                break
            tick += delta
            found.append((tick, status, byte(at), byte(at + 1)))
            if status == 0xFF and track[at] == 0x2F:
                break
            at = end
    except IndexError:
        pass  # cut off inside a number
    return found


PIECES = [
    b"\x90\x40\x40", b"\x40\x40", b"\x90\x40\x90", b"\xc1\x20", b"\x20", b"\xe0\x00\x40",
    b"\xff\x01\x03abc", b"\xff\x01\x02\xff\x90", b"\xff\x01\x81\x00" + bytes(128),
    b"\xf0\x03\x41\x10\xf7", b"\xf7\x00", b"\xf2\x01\x02", b"\xf8",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_events_are_those_that_reading_one_by_one_finds(seed: int) -> None:
    """Running status, odd data and events that are cut off: wherever they stand, and any bytes."""
    rng = np.random.default_rng(seed)
    for _ in range(200):
        times = [vlq(int(2 ** rng.uniform(0, 27))) for _ in range(rng.integers(40))]
        common = rng.choice([2, len(PIECES)])
        track = b"".join(time + PIECES[rng.integers(common)] for time in times)
        track += [b"", END_OF_TRACK, rng.bytes(int(rng.integers(40)))][rng.integers(3)]
        track = track[: rng.integers(len(track) + 1)] if rng.integers(2) else track
        events = Events(track)
        rows = zip(events.ticks, events.statuses, events.first, events.second, strict=True)
        assert [tuple(map(int, row)) for row in rows] == one_by_one(track)
