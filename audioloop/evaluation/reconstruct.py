"""Reconstruction of loops by a codec, from latents and from tokens, with metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from audioloop.codec import compression, fidelity
from audioloop.codec.compression import CompressionModel, TokenFormat
from audioloop.evaluation.plots import reconstruct_plot
from audioloop.io import metadata, sources, wave
from audioloop.io.label import LoopLabel, Names, legal
from audioloop.io.metadata import Metadata
from audioloop.io.wave import SILENT, Format, Wave
from audioloop.nn.circular import pad
from audioloop.signal import seam
from midiloop.common.files import printable, working_in, write
from midiloop.errors import LoopError, counted

DECODED_FROM = ("latent", "codes")
RECORD = "reconstruct.json"
SILENCE_DB = -200.0
CONTEXT_S = 4.0  # on each side, more than the receptive field of any codec
MEANING = {
    "si_sdr_db": "scale-invariant signal-to-distortion ratio, dB; higher is better",
    "stft_distance": "spectral distance at three resolutions (auraloss); 0: equal",
    "mel_distance": "the same of 128 mel bands (auraloss); 0: equal",
    "high_gap_db": "energy above 8 kHz, dB relative to the original; 0: as much",
    "wrap_error_db": "difference from the loop decoded as a part of its own endless repetition, dB",
    "jump": "sample discontinuity at the seam over the median step nearby; about 1 cannot be heard",
    "flux_percentile": "percentile of the spectral flux at the seam among all places; 50 is chance",
}


class Figures(NamedTuple):
    """Metrics of one reconstruction, see `MEANING`; None for silent or very short loops."""

    si_sdr_db: float | None
    stft_distance: float | None
    mel_distance: float | None
    high_gap_db: float | None
    wrap_error_db: float | None
    jump: float | None
    flux_percentile: float | None


@dataclass(frozen=True)
class Reconstructed:
    """One reconstructed file.

    Attributes:
        source: the file.
        files: names of the written files, by `DECODED_FROM` and "picture".
        figures: by `DECODED_FROM`.
        tokens: int64 (K, T).
        notes: conversions and warnings.
    """

    source: Path
    files: dict[str, str]
    figures: dict[str, Figures]
    tokens: np.ndarray[Any, np.dtype[np.int64]]
    notes: list[str]


class Summary(NamedTuple):
    """All files together.

    Attributes:
        median: of each figure, by `DECODED_FROM`.
        use: share of each codebook's entries that occur.
        kilobits_per_s: bit rate of the tokens.
    """

    median: dict[str, Figures]
    use: list[float]
    kilobits_per_s: float


def measure(
    loop: Wave, codec: CompressionModel
) -> tuple[dict[str, Figures], dict[str, Wave], Tensor]:
    """Figures, waves (at the codec's rate) and tokens (K, T) of a loop.

    Raises:
        LoopError: see `compression.to_frames`.
    """
    encoded = compression.encode(loop, codec)
    shape = codec.config
    ring = compression.to_frames(loop, shape)
    latents = {"latent": encoded.latent, "codes": compression.dequantize(encoded.codes, codec)}
    figures, waves = {}, {"original": Wave(ring[0].numpy(), shape.rate)}
    with torch.inference_mode():
        for way, latent in latents.items():
            found = codec.decode(latent, circular=True)
            waves[way] = Wave(found[0].numpy(), shape.rate)
            error = wrap_error_db(latent, found, codec)
            figures[way] = _figures(waves[way], waves["original"], error)
    return figures, waves, encoded.codes[0]


def wrap_error_db(latent: Tensor, found: Tensor, codec: CompressionModel) -> float:
    """Error of circular decoding against the middle of a long repetition, in dB of the loop."""
    context = math.ceil(CONTEXT_S * codec.config.rate / codec.config.frame)
    line = codec.decode(pad(latent, context, context, circular=True), circular=False)
    start = context * codec.config.frame
    middle = line[..., start : start + found.shape[-1]]
    error, power = ((x.double() ** 2).mean().item() for x in (middle - found, found))
    if power == 0 or error == 0:
        return SILENCE_DB
    return max(SILENCE_DB, 10 * math.log10(error / power))


def _figures(found: Wave, wanted: Wave, error_db: float) -> Figures:
    x, y = wanted.samples[0], found.samples[0]
    long_enough = wanted.duration_s >= seam.MIN_S
    if wanted.peak < SILENT or not long_enough:
        return Figures(None, None, None, None, error_db, None, None)
    return Figures(
        fidelity.si_sdr_db(y, x),
        fidelity.stft_distance(y, x),
        fidelity.mel_distance(y, x, found.rate),
        fidelity.high_gap_db(y, x, found.rate),
        error_db,
        seam.jump(found, 0),
        seam.flux_percentile(found, 0),
    )


def run(
    files: Sequence[Path],
    out: Path,
    codec: CompressionModel,
    *,
    on_file: Callable[[Reconstructed | LoopError], None] = lambda _: None,
) -> tuple[list[Reconstructed], list[LoopError]]:
    """Write each loop decoded from its latent and from its tokens, pictures and a record.

    Reconstructions are mono, with the file's sample rate and exact number of samples.

    Args:
        on_file: called with each file's outcome.

    Raises:
        CallError: ``out`` is a file, or another run is at work there.
    """
    done: list[Reconstructed] = []
    failed: list[LoopError] = []
    names = Names()
    with working_in(out):
        for path in files:
            try:
                stem = legal(path.stem)
                name = stem + names.own(stem.__add__)
                with sources.errors_named(path):
                    done.append(_one(path, out, name, codec))
                on_file(done[-1])
            except LoopError as error:
                failed.append(error)
                on_file(error)
        if done:
            record = json.dumps(as_json(done, failed, codec.config), indent=2) + "\n"
            write(out / RECORD, record.encode())
    return done, failed


def _one(path: Path, out: Path, name: str, codec: CompressionModel) -> Reconstructed:
    found = metadata.read(path)
    loop = found.repeats
    figures, waves, tokens = measure(loop, codec)
    notes = [*found.remarks, *_notes(loop, codec.config)]
    label = _label(found, name)
    written: dict[str, str] = {}
    for way in DECODED_FROM:
        back = compression.from_frames(
            torch.from_numpy(waves[way].samples)[None], len(loop), loop.rate
        )
        if back.peak > 1:
            notes.append(f"{way}: turned down by {20 * math.log10(back.peak):.1f} dB, or it clips")
            back = Wave(back.samples / np.float32(back.peak), back.rate)
        written[way] = f"{name}_{way}.wav"
        wave.write(out / written[way], back, label, Format())
    headings = {way: reconstruct_plot.heading(figures[way]) for way in DECODED_FROM}
    try:
        reconstruct_plot.draw(waves, headings, out / f"{name}.png", name)
        written["picture"] = f"{name}.png"
    except ImportError:
        notes.append("no picture; for one: pip install matplotlib")
    return Reconstructed(path, written, figures, tokens.numpy(), notes)


def _notes(loop: Wave, shape: TokenFormat) -> list[str]:
    notes = []
    if len(loop.samples) > 1:
        notes.append(f"{len(loop.samples)} channels mixed to one")
    if loop.rate != shape.rate:
        notes.append(f"{loop.rate:,} Hz, resampled to {shape.rate:,}")
    if loop.peak < SILENT:
        notes.append("silent")
    clipped = int((np.abs(loop.samples) >= 1).sum())
    if clipped:
        notes.append(f"{counted(clipped, 'sample')} at full scale or beyond")
    return notes


def _label(found: Metadata, name: str) -> LoopLabel | None:
    """The file's tempo and bars, if they agree with its length."""
    if found.tempo_bpm is None or found.bars is None:
        return None
    try:
        label = LoopLabel(found.tempo_bpm, found.bars, found.meter, name=name)
    except LoopError:
        return None
    return label if label.samples(found.wave.rate) == len(found.repeats) else None


def summary(done: Sequence[Reconstructed], shape: TokenFormat) -> Summary:
    """Medians of all figures, and use of the codebooks."""
    median = {}
    for way in DECODED_FROM:
        columns = zip(*(one.figures[way] for one in done), strict=True)
        median[way] = Figures(*(_median(column) for column in columns))
    rows = np.concatenate([one.tokens for one in done], axis=1)
    use = [len(np.unique(row)) / shape.codebook_size for row in rows]
    bits = shape.codebooks * math.log2(shape.codebook_size) * shape.rate / shape.frame
    return Summary(median, use, bits / 1000)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def as_json(done: Sequence[Reconstructed], failed: Sequence[LoopError], shape: TokenFormat) -> Any:
    """Files, failures and summary as JSON values."""
    files = [
        {
            "file": printable(one.source),
            "written": one.files,
            "figures": {way: figures._asdict() for way, figures in one.figures.items()},
            "notes": one.notes,
        }
        for one in done
    ]
    found: dict[str, Any] = {"files": files, "failed": [str(error) for error in failed]}
    if done:
        whole = summary(done, shape)
        found["median"] = {way: figures._asdict() for way, figures in whole.median.items()}
        found["codebook_use"] = whole.use
        found["kilobits_per_s"] = whole.kilobits_per_s
    return found
