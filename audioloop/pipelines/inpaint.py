"""Inpainting of encoded loops as circular sequences: what `refine` and `generate` share.

::

    loop -> codes (1, K, T), some frames open -> codes (N, K, T) -> N loops

What is kept is kept bit for bit: its codes never change, and its frames are decoded from the
latent, which is nearer to what it was than its codes are.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from audioloop.codec import compression
from audioloop.codec.model import Codec
from audioloop.conditioning import ConditioningTensors
from audioloop.io.wave import Wave
from audioloop.tokens import prefix, pretrained
from audioloop.tokens.magnet import decode, loops
from audioloop.tokens.magnet.decode import DecodeConfig, Rescoring
from audioloop.tokens.model import Causal, Masked
from midiloop.errors import CallError, LoopError


class SamplingDefaults(NamedTuple):
    """Default settings of decoding, see `DecodeConfig`."""

    steps: tuple[int, ...]
    temperature: float
    top_p: float
    cfg_scale: float


# Notes determine much of the result, and which of N samples is best. Without notes the likeliest
# result is silence: guidance by beat, kit and bass has to be stronger, and the time of best of N
# goes into more steps.
CONDITIONED = SamplingDefaults(steps=(20, 8, 6, 6), temperature=0.8, top_p=0.9, cfg_scale=1.5)
UNCONDITIONED = SamplingDefaults(steps=(40, 8, 6, 6), temperature=1.0, top_p=1.0, cfg_scale=4.0)
# More would need more memory than a laptop has: attention is between all pairs of frames.
MAX_FRAMES = 4000
# Rows x frames that the masked model takes at once, with those that guidance adds: variations are
# decoded together as far as they fit, so that memory does not grow with their number. On one
# core, loops of a bar gain a little by it, and loops of 8 s in larger batches than this lose some.
MAX_BATCH_FRAMES = 800
Precision = Literal["auto", "float32", "bfloat16"]
TIMED_FRAMES, TIMED_REPETITIONS = 800, 4  # 8 bars at 120 bpm; runs of each precision
BFLOAT16_MARGIN = 1.3  # how many times faster bfloat16 has to be
FINE_TEMPERATURE = 0.0  # after the first codebook, the likeliest tokens are best
# Without guidance, N samples differ more, and the best is chosen by the notes.
BEST_OF_CFG_SCALE = 1.0


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling.

    >>> import audioloop
    >>> tamer = audioloop.SamplingConfig(temperature=0.5, best_of=8, seed=1)

    Attributes:
        steps: decoding steps of each codebook; None for those of `CONDITIONED` with notes, of
            `UNCONDITIONED` without.
        temperature, top_p: of the first codebook, see `DecodeConfig`; None as above. The other
            codebooks take the likeliest tokens.
        cfg_scale: classifier-free guidance scale at the first step; at the last step it is 1. None
            for `BEST_OF_CFG_SCALE` with notes and best of several, else as above.
        choice_temperature: share of random noise in the confidence at the first step, 0 to 1.
        rescoring_weight: the causal model's share of the confidence, 0 to 1.
        best_of: samples of the first codebook with notes, 1 to 16; the one with the largest
            `loops.mutual_information` is kept.
        seed: of all random numbers.
    """

    steps: tuple[int, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None
    cfg_scale: float | None = None
    choice_temperature: float = 1.0
    rescoring_weight: float = 0.0
    best_of: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `CallError` unless each is in its range."""
        ranges = {
            "temperature": self.temperature is None or 0 <= self.temperature <= 100,
            "top-p": self.top_p is None or 0 < self.top_p <= 1,
            "cfg-scale": self.cfg_scale is None or 0 <= self.cfg_scale <= 100,
            "choice-temperature": 0 <= self.choice_temperature <= 1,
            "rescoring-weight": 0 <= self.rescoring_weight <= 1,
            "best-of": 1 <= self.best_of <= 16,
        }
        for name, right in ranges.items():
            if not right:
                value = getattr(self, name.replace("-", "_"))
                raise CallError(f"{name} {value}: out of range; leave it out for the default")

    def config(self, *, conditioned: bool) -> DecodeConfig:
        """Settings of decoding a circular sequence, with or without notes."""
        defaults = CONDITIONED if conditioned else UNCONDITIONED
        cfg_scale = BEST_OF_CFG_SCALE if conditioned and self.best_of > 1 else defaults.cfg_scale
        return DecodeConfig(
            steps=defaults.steps if self.steps is None else self.steps,
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            fine_temperature=FINE_TEMPERATURE,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            cfg_scale=cfg_scale if self.cfg_scale is None else self.cfg_scale,
            choice_temperature=self.choice_temperature,
            spans="stride1",
            ring=True,
        )

    def generator(self, number: int, device: torch.device) -> torch.Generator:
        """For way number i, from 0; its beginning is drawn by that of -1 - i."""
        seed = (self.seed * 1_000_003 + number + 1) % 2**63
        return torch.Generator(device).manual_seed(seed)


# By likelihood alone, what is kept is what is likely everywhere, which is next to nothing: where
# no notes are told, loops fade. So chance has its say.
SAMPLING = SamplingConfig()


@dataclass(frozen=True, eq=False)
class Inpainter:
    """The models that it takes.

    Attributes:
        causal: for rescoring weights and prefixes; None without.
    """

    codec: Codec
    masked: Masked
    causal: Causal | None = None

    @property
    def device(self) -> torch.device:
        """Where all of them are."""
        return self.masked.device

    def loop_frames(self, n_samples: int, rate: int) -> int:
        """Frames of a loop, see `compression.n_frames`.

        Raises:
            LoopError: they are more than `MAX_FRAMES`, or less than one.
        """
        n_frames = compression.n_frames(n_samples, rate, self.codec.config)
        if n_frames > MAX_FRAMES:
            longest_s = MAX_FRAMES / self.codec.config.frames_per_s
            raise LoopError(
                f"{n_samples / rate:.0f} s are over {longest_s:.0f}, the longest loop that is made "
                "regenerated at once; give fewer bars, or a faster tempo"
            )
        return n_frames

    @torch.inference_mode()
    def inpaint(
        self,
        codes: Tensor,
        inpaint_mask: Tensor,
        condition: ConditioningTensors,
        n: int,
        sampling: SamplingConfig = SAMPLING,
    ) -> Tensor:
        """Regenerate some frames of a loop, ``n`` times.

        Args:
            codes: int64 (1, K, T), or (n, K, T) with other source tokens for each sample.
            inpaint_mask: bool (T,): frames to regenerate; or (K, T), codebook by codebook.
            condition: of one loop.

        Returns:
            int64 (n, K, T). Sample number i depends on the seed and i alone.

        Raises:
            CallError: a causal model is to have a say, and there is none.
        """
        mask_token = self.masked.config.mask_token
        given = torch.where(inpaint_mask.to(codes.device), mask_token, codes).to(self.device)
        given = given.expand(n, -1, -1)
        condition = condition.to(self.device)
        config = sampling.config(conditioned=condition.notes)
        draw = functools.partial(
            decode.decode,
            loops.ring(self.masked, condition),
            mask_token=mask_token,
            config=config,
            rescoring=self._rescoring(condition, sampling),
        )
        first = given[0, 0] == mask_token  # the same for all
        best_of = sampling.best_of if condition.notes and first.any() else 1
        row_frames = given.shape[2] * (1 if config.cfg_scale == 1 else 2)
        n_together = max(1, MAX_BATCH_FRAMES // (best_of * row_frames))
        ways = []
        for start in range(0, n, n_together):
            batch = given[start : start + n_together]
            numbers = range(start, start + len(batch))
            generators = [sampling.generator(number, self.device) for number in numbers]
            if best_of > 1:
                drafts = batch.repeat_interleave(best_of, 0)
                drafts = draw(codes=drafts, generator=generators, books=1)
                scores = loops.mutual_information(self.masked, drafts, condition, first, generators)
                best = scores.view(-1, best_of).argmax(1)
                batch = drafts[best + best_of * torch.arange(len(batch), device=self.device)]
            ways.append(draw(codes=batch, generator=generators))
        return torch.cat(ways)

    def _rescoring(
        self, condition: ConditioningTensors, sampling: SamplingConfig
    ) -> Rescoring | None:
        if not sampling.rescoring_weight:
            return None
        return Rescoring(
            prefix.token_probabilities(self._causal("rescoring weight"), condition),
            sampling.rescoring_weight,
        )

    @torch.inference_mode()
    def prefix(
        self,
        condition: ConditioningTensors,
        n_frames: int,
        n: int = 1,
        sampling: SamplingConfig = SAMPLING,
    ) -> Tensor:
        """The first frames of a loop by the causal model, ``n`` samples: int64 (n, K, n_frames).

        Raises:
            CallError: there is no causal model.
        """
        model = self._causal("prefix")
        tensors = condition.to(self.device)
        generators = (sampling.generator(-1 - number, self.device) for number in range(n))
        return torch.cat([prefix.prefix(model, tensors, n_frames, one) for one in generators])

    def _causal(self, what: str) -> Causal:
        if self.causal is None:
            raise CallError(f"no {what} without a causal model; load one as well")
        return self.causal

    def decoded(
        self,
        codes: Tensor,
        n_samples: int,
        rate: int,
        kept: tuple[Tensor, Tensor] | None = None,
    ) -> Wave:
        """The wave (1, ``n_samples``) of a loop's codes (1, K, T).

        Args:
            kept: bool (T,), which frames are as they were, and their latent (1, L, T).
        """
        latent = compression.dequantize(codes, self.codec)
        if kept is not None:
            places, before = kept
            latent = torch.where(places.to(latent.device), before.to(latent.device), latent)
        return compression.decode(latent, self.codec, n_samples, rate)


def load(
    masked: Path | None = None,
    causal: Path | None = None,
    codec: Path | None = None,
    device: torch.device | None = None,
    *,
    with_causal: bool = False,
    precision: Precision = "float32",
) -> Inpainter:
    """The models that ship, or those of runs.

    >>> import audioloop
    >>> inpainter = audioloop.load_inpainter()

    Args:
        precision: of products inside the masked model; "auto" measures which is faster here, see
            `half_pays`.

    Raises:
        LoopError: a folder holds none, or they are of different codecs.
    """
    model = compression.load(codec, device)
    masked_model = pretrained.load_masked(masked, device)
    pretrained.of_codec(masked_model, model)
    causal_model = None
    if with_causal or causal is not None:
        causal_model = pretrained.load_causal(causal, device)
        pretrained.of_codec(causal_model, model)
    masked_model.in_bfloat16 = precision == "bfloat16" or (
        precision == "auto" and bfloat16_is_faster(masked_model)
    )
    return Inpainter(model, masked_model, causal_model)


@torch.inference_mode()
def bfloat16_is_faster(model: Masked) -> bool:
    """Whether a layer takes less time in bfloat16 here, by a clear margin.

    CPUs with 16-bit matrix units take half the time, others up to ten times as much; so the best
    of a few turns tells them apart, in a tenth of a second. It is the time of one thread on its
    core that counts, so that what else runs does not decide. Of other devices nothing is measured.
    """
    if model.device.type != "cpu":
        return False
    layer, n_threads = next(iter(model.layers)), torch.get_num_threads()
    x = torch.zeros(1, TIMED_FRAMES, model.config.dim)
    took: dict[bool, list[float]] = {False: [], True: []}
    torch.set_num_threads(1)
    try:
        for turn in range(TIMED_REPETITIONS + 1):
            for half, times in took.items():
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    began_s = time.thread_time()
                    layer(x, circular=True)
                    if turn:  # the first finds memory, and which kernel to take
                        times.append(time.thread_time() - began_s)
    finally:
        torch.set_num_threads(n_threads)
    return min(took[False]) > BFLOAT16_MARGIN * min(took[True])
