"""Iterative decoding of MAGNeT: sample all masked tokens, keep the confident ones, mask the rest.

::

    codebook 0   . . . . . .  ->  3 1 4 . . .  ->  3 1 4 1 . 9  ->  3 1 4 1 5 9
    codebook 1   . . . . . .      then the same, given codebook 0; then the next codebook

Source: Ziv et al. 2024, arXiv:2401.04577, sections 3.1 to 3.4. Spans of three frames are masked
together. The share of masked spans falls along a quarter of a cosine, and the classifier-free
guidance scale falls with it. A second model may rescore the confidence. Settings and details are
those of audiocraft 1.3.0; the same seed samples the same tokens as there.

This module does not depend on a network: `decode` calls a function for logits. `guided` makes one
of a `network.Magnet`. A wrapper may tile the tokens and crop the logits, or count steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor

from audioloop.tokens.magnet.network import Magnet
from midiloop.errors import LoopError, counted

MIN_TEMPERATURE = 1e-2  # lowest temperature: nearly always the likeliest token
TOP_K = 64  # as many tokens hold the probability at most frames
NEVER_REMASKED = -1e4  # uncertainty of source tokens: below that of any other

# Tokens (B, K, T) of which some are masked, a stage (index of the codebook), and the
# classifier-free guidance scale, to logits (B, T, size).
Predict = Callable[[Tensor, int, float], Tensor]

# Tokens (B, K, T) that are complete up to a stage, and that stage, to the probability (B, T) that
# another model gives to each token of that stage.
TokenProbabilities = Callable[[Tensor, int], Tensor]

# One generator for a whole batch, or several, each for as many consecutive rows: what a generator
# gives to its rows is the same, whichever rows are decoded along with them.
Generators = torch.Generator | Sequence[torch.Generator]


class Rescoring(NamedTuple):
    """Rescoring of the confidence by a second model.

    Attributes:
        judge: gives the second model's probabilities.
        weight: its share of the confidence, from 0 to 1.
    """

    judge: TokenProbabilities
    weight: float = 0.5


@dataclass(frozen=True)
class DecodeConfig:
    """Settings of decoding. The defaults suit 10 s; for 30 s, the first stage takes 60 steps.

    Attributes:
        steps: decoding steps of each codebook.
        temperature: at the first step of a codebook, from 0; it falls linearly to almost 0.
        fine_temperature: factor of ``temperature`` for codebooks after the first, from 0 to 1; 0
            takes the likeliest token.
        top_p: sample among the fewest tokens that hold this probability, from 0 to 1; 0 takes the
            likeliest.
        cfg_scale, last_cfg_scale: classifier-free guidance scale at the first and the last step; 1
            is the conditional prediction, 0 the unconditional one.
        choice_temperature: share of random noise in the confidence at the first step, from 0 to 1;
            it falls to 0 with the share of masked spans. 0 keeps the likeliest tokens, as MAGNeT
            does, which may be those of silence. MaskGIT's noise (Chang et al. 2022,
            arXiv:2202.04200) serves the same purpose.
        spans: frames that are masked together: aligned spans ("nonoverlap"), or spans that start
            at any frame ("stride1").
        span: frames of a span.
        ring: whether the first frame follows the last, so that spans of "stride1" wrap around.
    """

    steps: tuple[int, ...] = (20, 10, 10, 10)
    temperature: float = 3.0
    fine_temperature: float = 1.0
    top_p: float = 0.9
    cfg_scale: float = 10.0
    last_cfg_scale: float = 1.0
    choice_temperature: float = 0.0
    spans: Literal["nonoverlap", "stride1"] = "nonoverlap"
    span: int = 3
    ring: bool = False


class Spans(Protocol):
    """Which frames are masked together, and which spans first."""

    def uncertainty(self, confidence: Tensor, masked: Tensor) -> Tensor:
        """Uncertainty of each span (B, n), from confidence and bool, both (B, T)."""

    def count(self, known: Tensor) -> int:
        """How many spans, or frames, have a masked token; known is bool (T,)."""

    def most_uncertain(self, uncertainty: Tensor, n: int) -> Tensor:
        """The frames to mask next: bool (B, T), of the ``n`` most uncertain spans or frames."""


class NonOverlappingSpans(NamedTuple):
    """Spans that do not overlap. The confidence of a span is that of its best token."""

    length: int

    def uncertainty(self, confidence: Tensor, masked: Tensor) -> Tensor:
        """One value a span: (B, T / length)."""
        best = rearrange(confidence, "b (n s) -> b n s", s=self.length).amax(-1)
        settled = ~rearrange(masked, "b (n s) -> b n s", s=self.length).any(-1)
        return (1 - best).masked_fill(settled, NEVER_REMASKED)

    def count(self, known: Tensor) -> int:
        """Spans with a masked token."""
        return int((~rearrange(known, "(n s) -> n s", s=self.length)).any(-1).sum())

    def most_uncertain(self, uncertainty: Tensor, n: int) -> Tensor:
        """The ``n`` most uncertain spans, as bool (B, T)."""
        chosen = torch.zeros_like(uncertainty, dtype=torch.bool)
        chosen.scatter_(1, uncertainty.topk(n).indices, True)
        return repeat(chosen, "b n -> b (n s)", s=self.length)


class Stride1Spans(NamedTuple):
    """Overlapping spans. The confidence of a span is the product of its tokens' confidence."""

    length: int
    ring: bool = False

    def uncertainty(self, confidence: Tensor, masked: Tensor) -> Tensor:
        """One value a frame: (B, T)."""
        return (-confidence.log()).masked_fill(~masked, NEVER_REMASKED)

    def count(self, known: Tensor) -> int:
        """Frames whose token is masked."""
        return int((~known).sum())

    def most_uncertain(self, uncertainty: Tensor, n: int) -> Tensor:
        """About ``n`` frames: the union of as many of the most uncertain spans as it takes."""
        return torch.stack([self._union(row, max(n, self.length)) for row in uncertainty])

    def _union(self, uncertainty: Tensor, n: int) -> Tensor:
        """Find the number of spans by bisection: their union has about ``n`` frames."""
        wrapped = uncertainty[: self.length - 1 if self.ring else 0]
        spans = torch.cat([uncertainty, wrapped]).unfold(0, self.length, 1)
        order = spans.sum(-1).argsort(descending=True)
        few, many = n // self.length, n - self.length + 1  # none overlap, all overlap
        middle = round((few + many) / 2)
        union = self._union_of(order[:middle], len(uncertainty))
        while few < middle < many:
            few, many = (few, middle) if union.sum() > n else (middle, many)
            middle = round((few + many) / 2)
            if few < middle < many:
                union = self._union_of(order[:middle], len(uncertainty))
        return union

    def _union_of(self, starts: Tensor, n_frames: int) -> Tensor:
        covered = torch.zeros(n_frames, dtype=torch.bool, device=starts.device)
        within = torch.arange(self.length, device=starts.device)
        covered[(starts[:, None] + within).flatten() % n_frames] = True
        return covered


SPANS = ("nonoverlap", "stride1")


def spans_of(config: DecodeConfig) -> Spans:
    """The spans of a config."""
    return (
        NonOverlappingSpans(config.span)
        if config.spans == "nonoverlap"
        else Stride1Spans(config.span, config.ring)
    )


def blank(model: Magnet, n: int, n_frames: int, prompt: Tensor | None = None) -> Tensor:
    """Tokens (n, K, T) that are all masked, or start with a prompt (n, K, up to T)."""
    config = model.config
    shape = n, config.codebooks, n_frames
    codes = torch.full(shape, config.mask_token, dtype=torch.int64, device=model.device)
    if prompt is not None:
        if prompt.shape[:2] != shape[:2] or prompt.shape[2] > n_frames:
            raise LoopError(
                f"expected a prompt ({n}, {config.codebooks}, up to {n_frames}), got "
                f"{tuple(prompt.shape)}; one of as many codebooks, and no longer than the result"
            )
        codes[..., : prompt.shape[2]] = prompt
    return codes


def guided(model: Magnet, condition: Tensor, *, ring: bool = False, origin: int = 0) -> Predict:
    """A `Predict` with classifier-free guidance towards a condition (B, S, D)."""
    both = torch.cat([condition, torch.zeros_like(condition)])

    def predict(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
        twice = torch.cat([codes, codes])
        conditional, unconditional = model(twice, both, stage, ring=ring, origin=origin).chunk(2)
        logits: Tensor = unconditional + (conditional - unconditional) * cfg_scale
        return logits

    return predict


@torch.no_grad()
def decode(
    predict: Predict,
    codes: Tensor,
    mask_token: int,
    generator: Generators,
    config: DecodeConfig = DecodeConfig(),
    rescoring: Rescoring | None = None,
    books: int | None = None,
) -> Tensor:
    """Sample the masked tokens, codebook by codebook; source tokens stay as they are.

    Args:
        predict: gives the logits; called once a decoding step.
        codes: int64 (B, K, T) tokens; ``mask_token`` where they are to be sampled. The mask is the
            same for all B.
        mask_token: the id of a masked token.
        generator: on the device of ``codes``; or n of them, each for B / n consecutive rows.
        config: settings of decoding.
        rescoring: a second model's share of the confidence, if any.
        books: number of codebooks to decode, from the first; the others stay masked. None is all.

    Returns:
        int64 (B, K, T). Spans that do not overlap cover whole spans only: up to two frames at the
        end are dropped.

    Raises:
        LoopError: the tokens do not fit the config or the generators, or the config is out of
            range.
    """
    _check(codes, mask_token, config)
    n_generators = len(listed(generator))
    if not n_generators or len(codes) % n_generators:
        raise LoopError(
            f"{len(codes)} rows cannot be shared by {n_generators} generators; give one "
            "for the batch, or one for each row"
        )
    if config.spans == "nonoverlap":
        codes = codes[..., : codes.shape[2] // config.span * config.span]
    codes = codes.clone()
    for stage in range(len(config.steps))[:books]:
        if (codes[:, stage] == mask_token).any():
            _decode_codebook(predict, codes, stage, mask_token, generator, config, rescoring)
    return codes


def _check(codes: Tensor, mask_token: int, config: DecodeConfig) -> None:
    n_codebooks, n_frames = codes.shape[1:]
    if len(config.steps) != n_codebooks or min(config.steps) < 1:
        raise LoopError(f"expected steps of {counted(n_codebooks, 'codebook')}, got {config.steps}")
    if config.spans not in SPANS or not 1 <= config.span <= n_frames:
        raise LoopError(
            f"cannot decode {counted(n_frames, 'frame')} in spans of {config.span} "
            f"({config.spans}); there are {' and '.join(SPANS)}, of 1 to {n_frames}"
        )
    if config.ring and config.spans == "nonoverlap":
        raise LoopError("nonoverlap spans cannot wrap around a circular sequence; use stride1")
    if not (0 <= config.top_p <= 1 and 0 <= config.temperature < math.inf):
        raise LoopError(
            f"top-p {config.top_p}, temperature {config.temperature}; give 0 to 1, and 0 or more"
        )
    for name in ("choice_temperature", "fine_temperature"):
        if not 0 <= getattr(config, name) <= 1:
            raise LoopError(f"{name.replace('_', ' ')} {getattr(config, name)}; give 0 to 1")
    known = codes != mask_token
    if not torch.equal(known, known[:1].expand_as(known)):
        raise LoopError("the masks of a batch differ; decode its rows one by one")


def _decode_codebook(
    predict: Predict,
    codes: Tensor,
    stage: int,
    mask_token: int,
    generator: Generators,
    config: DecodeConfig,
    rescoring: Rescoring | None,
) -> None:
    """Decode one codebook, in place."""
    known = codes[:, stage] != mask_token  # (B, T)
    spans = spans_of(config)
    count = spans.count(known[0])
    uncertainty = spans.uncertainty(torch.ones(known.shape, device=codes.device), ~known)
    for step in decoding_steps(config, stage):
        inpaint_mask = spans.most_uncertain(uncertainty, max(int(step.share * count), 1)) & ~known
        codes[:, stage] = torch.where(inpaint_mask, mask_token, codes[:, stage])
        uncertainty = spans.uncertainty(
            *sample_masked(predict, codes, stage, mask_token, step, generator, rescoring)
        )


class DecodingStep(NamedTuple):
    """One decoding step of a codebook.

    Attributes:
        share: of the spans that are masked, from 0 to 1.
        cfg_scale, temperature, top_p: of sampling.
        choice_temperature: share of noise in the confidence, from 0 to 1.
    """

    share: float
    cfg_scale: float
    temperature: float
    top_p: float
    choice_temperature: float


def decoding_steps(config: DecodeConfig, stage: int) -> Iterator[DecodingStep]:
    """The decoding steps of a codebook: the masked share and the temperatures fall."""
    n_steps = config.steps[stage]
    shares = torch.cos(torch.linspace(0, 1, n_steps) * (math.pi / 2)).tolist()
    hottest = config.temperature * (config.fine_temperature if stage else 1)
    for step, share in enumerate(shares):
        cfg_scale = share * config.cfg_scale + (1 - share) * config.last_cfg_scale
        temperature = max(hottest * ((n_steps - 1 - step) / n_steps), MIN_TEMPERATURE)
        yield DecodingStep(
            share, cfg_scale, temperature, config.top_p, share * config.choice_temperature
        )


def sample_masked(
    predict: Predict,
    codes: Tensor,
    stage: int,
    mask_token: int,
    step: DecodingStep,
    generator: Generators,
    rescoring: Rescoring | None,
) -> tuple[Tensor, Tensor]:
    """Sample all masked tokens of a codebook, in place.

    Returns:
        The confidence (B, T) of all of its tokens, from 0 to 1, and bool (B, T): which were masked.
    """
    inpaint_mask = codes[:, stage] == mask_token
    logits = predict(codes, stage, step.cfg_scale).float()
    probabilities = (logits / step.temperature).softmax(-1)
    sampled = sample(probabilities, step.top_p, generator)
    codes[:, stage] = torch.where(inpaint_mask, sampled, codes[:, stage])
    confidence = probabilities.gather(-1, sampled[..., None])[..., 0]
    if rescoring is not None:
        other = rescoring.judge(codes, stage)
        confidence = (1 - rescoring.weight) * confidence + rescoring.weight * other
    if step.choice_temperature:
        noise = random_like(confidence, generator)
        confidence = confidence.lerp(noise, step.choice_temperature)
    return confidence, inpaint_mask


def sample(probabilities: Tensor, top_p: float, generator: Generators) -> Tensor:
    """Sample a token for every frame by nucleus sampling: (B, T, size) to int64 (B, T)."""
    sorted_, codes = sort_top_p(probabilities, top_p)
    before = sorted_.cumsum(-1) - sorted_
    kept = sorted_.masked_fill(before > top_p, 0)
    kept = kept / kept.sum(-1, keepdim=True)
    ranks = [
        torch.multinomial(rows.flatten(0, 1), 1, generator=one)
        for rows, one in _shared(kept, generator)
    ]
    return codes.gather(-1, torch.cat(ranks).view(*codes.shape[:2], 1))[..., 0]


def random_like(rows: Tensor, generator: Generators) -> Tensor:
    """Random numbers from 0 to 1, of the shape of rows (B, …) and on their device."""
    return torch.cat(
        [
            torch.rand(some.shape, generator=one, device=some.device)
            for some, one in _shared(rows, generator)
        ]
    )


def _shared(rows: Tensor, generator: Generators) -> Iterator[tuple[Tensor, torch.Generator]]:
    """The rows (B / n, …) of each of the n generators."""
    generators = listed(generator)
    return zip(rows.chunk(len(generators)), generators, strict=True)


def listed(generator: Generators) -> Sequence[torch.Generator]:
    """The generators of a batch, one or several."""
    return [generator] if isinstance(generator, torch.Generator) else generator


def sort_top_p(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities (…, size) in falling order, as far as they hold ``top_p``, and their tokens.

    At most frames, `TOP_K` tokens hold ``top_p``. Selecting them takes a third of the time of
    sorting; the probabilities of the other tokens are then 0. Where they do not, all are sorted.
    """
    size = probabilities.shape[-1]
    if size <= TOP_K:
        return probabilities.sort(dim=-1, descending=True)
    likeliest, theirs = probabilities.topk(TOP_K, dim=-1)
    sorted_ = torch.zeros_like(probabilities)
    codes = torch.zeros_like(probabilities, dtype=torch.int64)
    sorted_[..., :TOP_K], codes[..., :TOP_K] = likeliest, theirs
    # Sums of floats are rounded: close cases are sorted as a whole.
    wide = likeliest.sum(-1) < top_p + 1e-4
    sorted_[wide], codes[wide] = probabilities[wide].sort(dim=-1, descending=True)
    return sorted_, codes
