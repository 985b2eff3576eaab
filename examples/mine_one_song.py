"""Mine one song from Python: its loops as arrays, the first one as a MIDI file and a picture.

python examples/mine_one_song.py SONG.mid OUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from midiloop.midi import pianoroll, score
from midiloop.mining import extract
from midiloop.plotting import plot


def main(song_path: Path, out: Path) -> None:
    song = score.read(song_path)
    rolls = extract.loops(song)  # bool (128, 93): 8 bars of 16 steps; 9 drums, then 84 bass pitches
    print(f"{song_path.name}: {song.n_notes} notes, {len(rolls)} loops")

    tempo_bpm = song.tempos[0].bpm
    out.mkdir(parents=True, exist_ok=True)
    score.write(pianoroll.decode(rolls[0], tempo_bpm), out / "loop.mid")
    plot.draw(plot.Picture(rolls[0], song_path.stem, tempo_bpm), out / "loop.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
