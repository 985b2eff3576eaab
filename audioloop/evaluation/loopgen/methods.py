"""Methods of loop generation: naive sequences, sequences cut at a bar, tiles, and the ring.

They are those of LoopGen (Marincione et al. 2025, arXiv:2504.04466, table 2) and our own, all with
our own models. What a method samples depends on its name and on the seed of the loop, and not on
other methods.
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
from midiloop.grid import LOOP

SETTINGS = {
    "unconditioned": "the models are conditioned on beat, kit and bass, without notes",
    "conditioned": "the models are conditioned on the notes as well",
}


class Method(NamedTuple):
    """A method of loop generation.

    Attributes:
        model: "masked", "causal" or "none".
        how: what it does, in a few words.
        paper: its seam perplexity in table 2 of the paper (loops of 30 s by published models).
    """

    model: str
    how: str
    paper: str = ""


RENDER, CODES = "render", "codes"
ALIGNED, CUT, SPLICED = "render, beat-aligned", "render, cut", "render, spliced"
METHODS = {
    RENDER: Method("none", "the true render, decoded from its latent"),
    CODES: Method("none", "the true render, decoded from its tokens: the codec alone"),
    ALIGNED: Method(
        "none", "a control: a true render of these bars and the next, cut at a bar line"
    ),
    CUT: Method("none", "a control: the true render, cut half a beat before its end"),
    SPLICED: Method("none", "a control: the true render, its first beat out of another loop's"),
    "causal naive": Method(
        "causal", "a sequence of the window's length, repeated", "2512.39 ± 903.16"
    ),
    "causal beat-aligned": Method("causal", "that sequence, cut at a bar line", "507.07 ± 163.67"),
    "masked naive": Method(
        "masked", "a sequence of the window's length, repeated", "1549.06 ± 556.03"
    ),
    "masked beat-aligned": Method("masked", "that sequence, cut at a bar line", "153.22 ± 47.69"),
    "LoopGen tiled": Method(
        "masked", "tiles in the window, by LoopGen's procedure", "56.17 ± 11.78"
    ),
    "LoopGen": Method("masked", "the same, its first half by the causal model", "84.29 ± 22.66"),
    "tiled": Method("masked", "tiles in the window, LoopGen's faults fixed"),
    "hybrid tiled": Method(
        "masked", "the same, its first half by the causal model after warm-up frames"
    ),
    "ring": Method("masked", "on the circular sequence"),
    "hybrid ring": Method(
        "masked", "the same, its first half by the causal model after warm-up frames"
    ),
}
REFERENCES = (RENDER, CODES, ALIGNED, CUT, SPLICED)

Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class MethodInput:
    """A loop of the test set in one of `SETTINGS`, with models and settings.

    Attributes:
        inpainter: the codec and the models.
        condition: conditioning of the loop's frames.
        n_frames, bars: of the loop.
        window: frames of the window.
        sampling: settings of decoding.
        seed: of all random numbers.
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
        """The causal model."""
        assert self.inpainter.causal is not None  # as it was loaded
        return self.inpainter.causal

    @property
    def config(self) -> DecodeConfig:
        """Settings of decoding on the circular sequence."""
        return self.sampling.config(conditioned=self.condition.notes)

    @property
    def mask_token(self) -> int:
        """The id of a masked token."""
        return self.inpainter.masked.config.mask_token

    def generator(self, row: str) -> torch.Generator:
        """Random numbers of one row."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {row}".encode()))

    def frames_at(self, start: int, n_frames: int) -> ConditioningTensors:
        """Conditioning of ``n_frames`` frames from ``start`` on, wrapped around the loop."""
        return self.condition.at(torch.arange(start, start + n_frames))


class MethodOutput(NamedTuple):
    """A generated loop.

    Attributes:
        wave: mono, at the codec's rate.
        wrap_error_db: see `reconstruct.wrap_error_db`.
        seconds: time that generation took.
        bar_lines: first samples of its other bars.
        condition: conditioning of its frames.
    """

    wave: Wave
    wrap_error_db: float
    seconds: float
    bar_lines: list[int]
    condition: ConditioningTensors


def references(
    method_input: MethodInput, ring: Tensor, longer: Tensor, other: Tensor
) -> Iterator[tuple[str, MethodOutput]]:
    """The rows of `REFERENCES`: a true render and controls made from it.

    Args:
        method_input: the loop.
        ring: its true render (1, 1, samples), circular.
        longer: a render twice as long, (1, 1, 2 · samples), circular.
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
    yield ALIGNED, _output(method_input, aligned, aligned_samples, method_input.bars, 0.0)
    samples, foreign_samples = (codec.decode(one, circular=True) for one in (latent, foreign))
    frame, beat = (
        codec.config.frame,
        round(method_input.n_frames / (method_input.bars * LOOP.meter.pulses)),
    )

    n_cut = method_input.n_frames - beat // 2
    cut = _output(
        method_input,
        latent[..., :n_cut],
        samples[..., : n_cut * frame],
        method_input.bars * n_cut / method_input.n_frames,
        0.0,
    )
    yield CUT, cut

    def with_start_of(one: Tensor, another: Tensor, n: int) -> Tensor:
        return torch.cat([another[..., :n], one[..., n:]], -1)

    spliced = _output(
        method_input,
        with_start_of(latent, foreign, beat),
        with_start_of(samples, foreign_samples, beat * frame),
        method_input.bars,
        0.0,
    )
    yield SPLICED, spliced


def methods(method_input: MethodInput) -> Iterator[tuple[str, MethodOutput]]:
    """The loops of all rows except the references."""
    for name, write in (("causal", _causal_sequence), ("masked", _masked_sequence)):
        line, seconds = _timed(functools.partial(write, method_input))
        yield f"{name} naive", _cut(method_input, line, 0, method_input.window, seconds)
        yield f"{name} beat-aligned", _cut(method_input, line, 0, method_input.n_frames, seconds)
    half, n_codebooks = method_input.n_frames // 2, method_input.inpainter.masked.config.codebooks
    masked_tokens = torch.full((1, n_codebooks, method_input.n_frames), method_input.mask_token)

    def prompted(write: Callable[[MethodInput, int], Tensor]) -> tuple[Tensor, float]:
        prompt, seconds = _timed(functools.partial(write, method_input, half))
        return torch.cat([prompt, masked_tokens[..., half:]], -1), seconds

    cold, warm = (prompted(write) for write in (_cold_prefix, _warm_prefix))
    for name, (tokens, before_s) in (("LoopGen tiled", (masked_tokens, 0.0)), ("LoopGen", cold)):
        left = loops.margin(tokens, method_input.window, method_input.mask_token)
        tile, seconds = _timed(functools.partial(_loopgen, method_input, name, tokens, left))
        window = tile[..., (torch.arange(method_input.window) - left) % method_input.n_frames]
        yield name, _cut(method_input, window, left, method_input.n_frames, before_s + seconds)
    masked, condition = method_input.inpainter.masked, method_input.condition
    line_ = loops.line_predictor(masked, condition)
    for name, predict in (
        ("tiled", loops.tiled(line_, method_input.n_frames, method_input.window)),
        ("ring", loops.ring(masked, condition)),
    ):
        for row, (tokens, before_s) in ((name, (masked_tokens, 0.0)), (f"hybrid {name}", warm)):
            ring, seconds = _timed(functools.partial(_circular, method_input, row, predict, tokens))
            latent = compression.dequantize(ring, method_input.inpainter.codec)
            yield row, _on_ring(method_input, latent, before_s + seconds)


def _causal_sequence(method_input: MethodInput) -> Tensor:
    """Tokens (1, K, T) of the window, by the causal model."""
    condition = method_input.frames_at(0, method_input.window)
    return prefix.continuation(method_input.causal, condition, method_input.generator("causal"))


def _cold_prefix(method_input: MethodInput, n_frames: int) -> Tensor:
    """The loop's first tokens, by the causal model without any context, as in LoopGen."""
    condition = method_input.frames_at(0, n_frames)
    return prefix.continuation(method_input.causal, condition, method_input.generator("prompt"))


def _warm_prefix(method_input: MethodInput, n_frames: int) -> Tensor:
    """The loop's first tokens, by the causal model after warm-up frames."""
    generator = method_input.generator("prompt")
    return prefix.prefix(method_input.causal, method_input.condition, n_frames, generator)


def _masked_sequence(method_input: MethodInput) -> Tensor:
    """Tokens (1, K, T) of the window, by the masked model, as a sequence with ends."""
    condition = method_input.frames_at(0, method_input.window)
    masked = method_input.inpainter.masked
    tokens = torch.full((1, masked.config.codebooks, method_input.window), method_input.mask_token)
    predict = loops.predictor(masked, condition, circular=False)
    config = replace(method_input.config, ring=False)
    generator = method_input.generator("masked")
    rescoring = _rescoring(method_input, _judge(method_input.causal, condition))
    return decode.decode(predict, tokens, method_input.mask_token, generator, config, rescoring)


def _loopgen(method_input: MethodInput, row: str, tokens: Tensor, left: int) -> Tensor:
    condition = method_input.frames_at(-left, method_input.window)
    return loops.loopgen(
        loops.predictor(method_input.inpainter.masked, condition, circular=False),
        tokens,
        method_input.window,
        method_input.mask_token,
        method_input.generator(row),
        replace(method_input.config, ring=False),
        _rescoring(method_input, _judge(method_input.causal, condition)),
    )


def _circular(method_input: MethodInput, row: str, predict: Predict, tokens: Tensor) -> Tensor:
    config, generator = method_input.config, method_input.generator(row)
    rescoring = _rescoring(
        method_input, prefix.token_probabilities(method_input.causal, method_input.condition)
    )
    return decode.decode(predict, tokens, method_input.mask_token, generator, config, rescoring)


def _rescoring(method_input: MethodInput, judge: TokenProbabilities) -> Rescoring | None:
    weight = method_input.sampling.rescoring_weight
    return Rescoring(judge, weight) if weight else None


def _judge(model: Causal, condition: ConditioningTensors) -> TokenProbabilities:
    """As `prefix.token_probabilities`, for a sequence with ends."""

    def probabilities(tokens: Tensor, stage: int) -> Tensor:
        line = tokens.clone()
        line[:, stage + 1 :] = model.config.mask_token
        predicted = model(line, condition)[:, stage].softmax(-1)
        found: Tensor = predicted.gather(-1, tokens[:, stage][..., None])[..., 0]
        return found

    return probabilities


def _timed(make: Callable[[], Found]) -> tuple[Found, float]:
    began_s = time.perf_counter()
    found = make()
    return found, time.perf_counter() - began_s


def _on_ring(method_input: MethodInput, latent: Tensor, seconds: float) -> MethodOutput:
    """Decode the latent (1, L, T) of a whole loop, as a circular sequence."""
    codec = method_input.inpainter.codec
    samples, more_s = _timed(lambda: codec.decode(latent, circular=True))
    return _output(method_input, latent, samples, method_input.bars, seconds + more_s)


def _cut(
    method_input: MethodInput, tokens: Tensor, start: int, n_frames: int, seconds: float
) -> MethodOutput:
    """Decode a window's tokens (1, K, T) with ends, and cut a loop out of it."""
    codec = method_input.inpainter.codec
    latent = compression.dequantize(tokens, codec)
    line, more_s = _timed(lambda: codec.decode(latent, circular=False))
    frame = codec.config.frame
    samples = line[..., start * frame : (start + n_frames) * frame]
    bars = method_input.bars * n_frames / method_input.n_frames
    tile = latent[..., start : start + n_frames]
    return _output(method_input, tile, samples, bars, seconds + more_s)


def _output(
    method_input: MethodInput, latent: Tensor, samples: Tensor, bars: float, seconds: float
) -> MethodOutput:
    codec, n_frames = method_input.inpainter.codec, latent.shape[-1]
    length = samples.shape[-1]
    # A sequence that ends within a bar: only bar lines at least half a bar before its end count.
    lines = [round(length * bar / bars) for bar in range(1, math.ceil(bars)) if bars - bar >= 0.5]
    error_db = reconstruct.wrap_error_db(latent, samples, codec)
    condition = method_input.frames_at(0, n_frames)
    return MethodOutput(wave_of(samples, codec), error_db, seconds, lines, condition)


def wave_of(samples: Tensor, codec: Codec) -> Wave:
    """A wave of samples (1, channels, n) at the codec's rate."""
    return Wave(samples[0].numpy(), codec.config.rate)
