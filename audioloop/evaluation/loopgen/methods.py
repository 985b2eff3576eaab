"""Every way to make a loop of codes: naive lines, lines cut at a bar, tiles, and the ring.

LoopGen's (Marincione et al. 2025, arXiv:2504.04466, table 2) and our own, of our own models. What
is drawn in a way depends on its name and on the seed of what is asked, and on no other way.
"""

from __future__ import annotations

import functools
import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from audioloop.codec import compression
from audioloop.codec.model import Codec
from audioloop.conditioning import ConditioningTensors
from audioloop.evaluation import reconstruct
from audioloop.io.wave import Wave
from audioloop.pipelines.inpaint import Inpainter, SamplingConfig
from audioloop.tokens import prefix
from audioloop.tokens.magnet import decode, loops
from audioloop.tokens.magnet.decode import DecodeConfig, Predict, Rescoring, TokenProbabilities
from audioloop.tokens.model import Causal
from midiloop.grid import BEATS_PER_BAR

SETTINGS = {
    "unconditioned": "the models are told beat, kit and bass, and no notes",
    "conditioned": "they are told the notes as well",
}


class Method(NamedTuple):
    """A way to make a loop.

    Attributes:
        paper: its seam perplexity in table 2 of the paper (loops of 30 s by published models).
    """

    model: str
    how: str
    paper: str = ""


RENDER, CODES = "render", "codes"
ALIGNED, CUT, SPLICED = "render, beat-aligned", "render, cut", "render, spliced"
METHODS = {
    RENDER: Method("none", "the true render, through the codec's latent"),
    CODES: Method("none", "its codes, decoded: what the codec alone does"),
    ALIGNED: Method(
        "none", "a control: a true render of these bars and those after, cut at a bar line"
    ),
    CUT: Method("none", "a control: the true render, cut half a beat before its end"),
    SPLICED: Method("none", "a control: the true render, its first beat out of another loop's"),
    "causal naive": Method("causal", "a line of the window's length, repeated", "2512.39 ± 903.16"),
    "causal beat-aligned": Method("causal", "that line, cut at a bar line", "507.07 ± 163.67"),
    "masked naive": Method("masked", "a line of the window's length, repeated", "1549.06 ± 556.03"),
    "masked beat-aligned": Method("masked", "that line, cut at a bar line", "153.22 ± 47.69"),
    "LoopGen tiled": Method(
        "masked", "tiles in the window, by LoopGen's procedure", "56.17 ± 11.78"
    ),
    "LoopGen": Method("masked", "the same, its first half by the causal model", "84.29 ± 22.66"),
    "tiled": Method("masked", "tiles in the window, LoopGen's procedure mended"),
    "hybrid tiled": Method("masked", "the same, its first half by the causal model, played in"),
    "ring": Method("masked", "on the ring"),
    "hybrid ring": Method("masked", "the same, its first half by the causal model, played in"),
}
REFERENCES = (RENDER, CODES, ALIGNED, CUT, SPLICED)

Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class MethodInput:
    """An item in one of `SETTINGS`, and what it is made with.

    Attributes:
        condition: what is told of the item's ring.
        window: frames.
        seed: of everything that is drawn.
    """

    inpainter: Inpainter
    condition: ConditioningTensors
    n_frames: int
    bars: int
    window: int
    sampling: SamplingConfig
    seed: str

    @property
    def causal(self) -> Causal:
        """The model that goes on."""
        assert self.inpainter.causal is not None  # as it was loaded
        return self.inpainter.causal

    @property
    def config(self) -> DecodeConfig:
        """How codes are drawn on a ring."""
        return self.sampling.config(conditioned=self.condition.notes)

    @property
    def mask_token(self) -> int:
        """What stands for a code that is not known."""
        return self.inpainter.masked.config.mask_token

    def generator(self, row: str) -> torch.Generator:
        """Of one row."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {row}".encode()))

    def frames_at(self, start: int, n_frames: int) -> ConditioningTensors:
        """What is told of a line that goes round the ring."""
        return self.condition.at(torch.arange(start, start + n_frames))


class MethodOutput(NamedTuple):
    """A loop that was made.

    Attributes:
        bar_lines: samples at which its other bars begin.
        condition: what is told of its frames, as a ring.
    """

    wave: Wave
    wrap_error_db: float
    seconds: float
    bar_lines: list[int]
    condition: ConditioningTensors


def references(
    method_input: MethodInput, ring: Tensor, longer: Tensor, other: Tensor
) -> Iterator[tuple[str, MethodOutput]]:
    """A true render (1, 1, samples), and what has been done to it: the rows of `REFERENCES`.

    Args:
        longer: a render that goes on as long again, (1, 1, 2 · samples).
        other: a render of another loop, which lasts a beat or longer.
    """
    codec = method_input.inpainter.codec
    latent, foreign = (codec.encode(samples, circular=True) for samples in (ring, other))
    yield RENDER, _on_ring(method_input, latent, 0.0)
    yield CODES, _on_ring(method_input, codec.dequantize(codec.quantize(latent)), 0.0)
    line = codec.encode(longer, circular=True)
    aligned, aligned_samples = (
        line[..., : method_input.n_frames],
        codec.decode(line, circular=True)[..., : method_input.n_frames * codec.config.frame],
    )
    yield ALIGNED, _as_made(method_input, aligned, aligned_samples, method_input.bars, 0.0)
    samples, foreign_samples = (codec.decode(one, circular=True) for one in (latent, foreign))
    frame, beat = (
        codec.config.frame,
        round(method_input.n_frames / (method_input.bars * BEATS_PER_BAR)),
    )

    n_cut = method_input.n_frames - beat // 2
    cut = _as_made(
        method_input,
        latent[..., :n_cut],
        samples[..., : n_cut * frame],
        method_input.bars * n_cut / method_input.n_frames,
        0.0,
    )
    yield CUT, cut

    def begun_otherwise(one: Tensor, another: Tensor, n: int) -> Tensor:
        return torch.cat([another[..., :n], one[..., n:]], -1)

    spliced = _as_made(
        method_input,
        begun_otherwise(latent, foreign, beat),
        begun_otherwise(samples, foreign_samples, beat * frame),
        method_input.bars,
        0.0,
    )
    yield SPLICED, spliced


def methods(method_input: MethodInput) -> Iterator[tuple[str, MethodOutput]]:
    """The loops of all rows but the references."""
    for name, write in (("causal", _causal_line), ("masked", _masked_line)):
        line, seconds = _timed(functools.partial(write, method_input))
        yield f"{name} naive", _cut(method_input, line, 0, method_input.window, seconds)
        yield f"{name} beat-aligned", _cut(method_input, line, 0, method_input.n_frames, seconds)
    half, n_codebooks = method_input.n_frames // 2, method_input.inpainter.masked.config.codebooks
    open_ = torch.full((1, n_codebooks, method_input.n_frames), method_input.mask_token)

    def begun(write: Callable[[MethodInput, int], Tensor]) -> tuple[Tensor, float]:
        prompt, seconds = _timed(functools.partial(write, method_input, half))
        return torch.cat([prompt, open_[..., half:]], -1), seconds

    from_nothing, in_music = (begun(write) for write in (_prompt, _played_in))
    for name, (codes, before_s) in (("LoopGen tiled", (open_, 0.0)), ("LoopGen", from_nothing)):
        left = loops.margin(codes, method_input.window, method_input.mask_token)
        tile, seconds = _timed(functools.partial(_loopgen, method_input, name, codes, left))
        window = tile[..., (torch.arange(method_input.window) - left) % method_input.n_frames]
        yield name, _cut(method_input, window, left, method_input.n_frames, before_s + seconds)
    masked, condition = method_input.inpainter.masked, method_input.condition
    line_ = loops.line_predictor(masked, condition)
    for name, predict in (
        ("tiled", loops.tiled(line_, method_input.n_frames, method_input.window)),
        ("ring", loops.ring(masked, condition)),
    ):
        for row, (codes, before_s) in ((name, (open_, 0.0)), (f"hybrid {name}", in_music)):
            ring, seconds = _timed(
                functools.partial(_goes_round, method_input, row, predict, codes)
            )
            latent = compression.dequantize(ring, method_input.inpainter.codec)
            yield row, _on_ring(method_input, latent, before_s + seconds)


def _causal_line(method_input: MethodInput) -> Tensor:
    """The window's codes (1, K, T) by the causal model."""
    condition = method_input.frames_at(0, method_input.window)
    return prefix.continuation(method_input.causal, condition, method_input.generator("causal"))


def _prompt(method_input: MethodInput, n_frames: int) -> Tensor:
    """The ring's first codes, by the causal model and out of nothing, as LoopGen has them."""
    condition = method_input.frames_at(0, n_frames)
    return prefix.continuation(method_input.causal, condition, method_input.generator("prompt"))


def _played_in(method_input: MethodInput, n_frames: int) -> Tensor:
    """The same as they are where the ring has gone round before."""
    generator = method_input.generator("prompt")
    return prefix.prefix(method_input.causal, method_input.condition, n_frames, generator)


def _masked_line(method_input: MethodInput) -> Tensor:
    """The window's codes by the masked model, which knows of no ring."""
    condition = method_input.frames_at(0, method_input.window)
    masked = method_input.inpainter.masked
    codes = torch.full((1, masked.config.codebooks, method_input.window), method_input.mask_token)
    predict = loops.predictor(masked, condition, circular=False)
    config = replace(method_input.config, ring=False)
    generator = method_input.generator("masked")
    rescoring = _rescoring(method_input, _line_judge(method_input.causal, condition))
    return decode.decode(predict, codes, method_input.mask_token, generator, config, rescoring)


def _loopgen(method_input: MethodInput, row: str, codes: Tensor, left: int) -> Tensor:
    condition = method_input.frames_at(-left, method_input.window)
    return loops.loopgen(
        loops.predictor(method_input.inpainter.masked, condition, circular=False),
        codes,
        method_input.window,
        method_input.mask_token,
        method_input.generator(row),
        replace(method_input.config, ring=False),
        _rescoring(method_input, _line_judge(method_input.causal, condition)),
    )


def _goes_round(method_input: MethodInput, row: str, predict: Predict, codes: Tensor) -> Tensor:
    config, generator = method_input.config, method_input.generator(row)
    rescoring = _rescoring(
        method_input, prefix.token_probabilities(method_input.causal, method_input.condition)
    )
    return decode.decode(predict, codes, method_input.mask_token, generator, config, rescoring)


def _rescoring(method_input: MethodInput, judge: TokenProbabilities) -> Rescoring | None:
    weight = method_input.sampling.rescoring_weight
    return Rescoring(judge, weight) if weight else None


def _line_judge(model: Causal, condition: ConditioningTensors) -> TokenProbabilities:
    """As `prefix.token_probabilities`, on a line."""

    def chances(codes: Tensor, stage: int) -> Tensor:
        line = codes.clone()
        line[:, stage + 1 :] = model.config.mask_token
        said = model(line, condition)[:, stage].softmax(-1)
        found: Tensor = said.gather(-1, codes[:, stage][..., None])[..., 0]
        return found

    return chances


def _timed(make: Callable[[], Found]) -> tuple[Found, float]:
    began_s = time.perf_counter()
    found = make()
    return found, time.perf_counter() - began_s


def _on_ring(method_input: MethodInput, latent: Tensor, seconds: float) -> MethodOutput:
    """A loop that is decoded on the circle."""
    codec = method_input.inpainter.codec
    samples, more_s = _timed(lambda: codec.decode(latent, circular=True))
    return _as_made(method_input, latent, samples, method_input.bars, seconds + more_s)


def _cut(
    method_input: MethodInput, codes: Tensor, start: int, n_frames: int, seconds: float
) -> MethodOutput:
    """A loop that is cut out of a window's codes (1, K, T), decoded as a line."""
    codec = method_input.inpainter.codec
    latent = compression.dequantize(codes, codec)
    line, more_s = _timed(lambda: codec.decode(latent, circular=False))
    frame = codec.config.frame
    samples = line[..., start * frame : (start + n_frames) * frame]
    bars = method_input.bars * n_frames / method_input.n_frames
    tile = latent[..., start : start + n_frames]
    return _as_made(method_input, tile, samples, bars, seconds + more_s)


def _as_made(
    method_input: MethodInput, latent: Tensor, samples: Tensor, bars: float, seconds: float
) -> MethodOutput:
    codec, n_frames = method_input.inpainter.codec, latent.shape[-1]
    length = samples.shape[-1]
    # A line that ends within a bar has no bar line at its end but those well before it.
    lines = [round(length * bar / bars) for bar in range(1, math.ceil(bars)) if bars - bar >= 0.5]
    error_db = reconstruct.wrap_error_db(latent, samples, codec)
    condition = method_input.frames_at(0, n_frames)
    return MethodOutput(wave_of(samples, codec), error_db, seconds, lines, condition)


def wave_of(samples: Tensor, codec: Codec) -> Wave:
    """Samples (1, channels, n) of a codec, to be heard."""
    return Wave(samples[0].numpy(), codec.config.rate)
