"""How MAGNeT writes: fill all gaps, keep what is likely, open the rest again, and so on.

::

    codebook 0   . . . . . .  ->  3 1 4 . . .  ->  3 1 4 1 . 9  ->  3 1 4 1 5 9
    codebook 1   . . . . . .      …as codebook 0, from here on known, and after it the next

Source: Ziv et al. 2024, arXiv:2401.04577, sections 3.1 to 3.4: spans of three frames, the share
of which that is open again falls as a quarter of a cosine; classifier-free guidance that falls with
it; a second model that has a say in what is kept. Settings and details are those of audiocraft
1.3.0, for whose seed this draws the same codes.

Nothing here knows of a network: `decode` asks a function for logits. `guided` makes one of a
`network.Magnet`; one may also go round it, to tile codes before and crop logits after, or to count
steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor

from audioloop.tokens.magnet.network import Magnet
from midiloop.errors import LoopError, counted

MIN_TEMPERATURE = 1e-2  # the lowest temperature: the likeliest code nearly always
TOP_K = 64  # codes that are likely at most places
NEVER_REMASKED = -1e4  # the doubt about what is kept for good: less than about anything else

# Codes (B, K, T) with gaps, a stage, and how strongly to follow the text, to logits (B, T, size).
Predict = Callable[[Tensor, int, float], Tensor]

# Codes (B, K, T) that are complete up to a stage, and that stage, to the probability (B, T) that
# another model gives to each of its codes.
TokenProbabilities = Callable[[Tensor, int], Tensor]


class Rescoring(NamedTuple):
    """Another model's say in what is kept.

    Attributes:
        judge: the model.
        weight: from 0, it has none, to 1, nobody else has.
    """

    judge: TokenProbabilities
    weight: float = 0.5


@dataclass(frozen=True)
class DecodeConfig:
    """How to write. The defaults are those for 10 s; for 30 s, the first stage takes 60 steps.

    Attributes:
        steps: of each codebook.
        temperature: at the first step of a codebook; it falls to almost 0 along a line.
        finer: share of it that codebooks after the first have; 0 takes the likeliest of each.
        top_p: draw among the fewest codes that hold this probability; 0 takes the likeliest.
        guidance, last_guidance: how many times the way that the text shows is gone, at first and
            at last; 1 is what the network says itself, 0 is without the text.
        shuffling: how much chance decides of what is kept, at first; it falls to 0 as the share of
            what is open does. 0 keeps what is likely, as MAGNeT does, and so what is likely
            everywhere, which may be silence; 1 keeps anything. The noise of MaskGIT (Chang et al.
            2022, arXiv:2202.04200) is for the same.
        spans: what is kept or opened together: frames side by side, none in two of them
            ("nonoverlap"), or at any place ("stride1").
        span: how many frames.
        ring: the last frame is next to the first, so spans of "stride1" go round.
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
    """Which places are opened together, and which of them first."""

    def uncertainty(self, chances: Tensor, open_: Tensor) -> Tensor:
        """How doubtful each is: (B, n), from the chances of codes and what was open, (B, T)."""

    def count(self, known: Tensor) -> int:
        """How many there are that are not wholly known: bool (T,)."""

    def most_uncertain(self, uncertainty: Tensor, n: int) -> Tensor:
        """The places to open: bool (B, T)."""


class NonOverlappingSpans(NamedTuple):
    """Spans that do not overlap. Each is as good as its best code."""

    length: int

    def uncertainty(self, chances: Tensor, open_: Tensor) -> Tensor:
        """One number a span: (B, T / length)."""
        best = rearrange(chances, "b (n s) -> b n s", s=self.length).amax(-1)
        settled = ~rearrange(open_, "b (n s) -> b n s", s=self.length).any(-1)
        return (1 - best).masked_fill(settled, NEVER_REMASKED)

    def count(self, known: Tensor) -> int:
        """Spans with a gap."""
        return int((~rearrange(known, "(n s) -> n s", s=self.length)).any(-1).sum())

    def most_uncertain(self, uncertainty: Tensor, n: int) -> Tensor:
        """The ``n`` most doubtful spans."""
        chosen = torch.zeros_like(uncertainty, dtype=torch.bool)
        chosen.scatter_(1, uncertainty.topk(n).indices, True)
        return repeat(chosen, "b n -> b (n s)", s=self.length)


class Stride1Spans(NamedTuple):
    """Spans from any place on, which overlap. Each is as good as all of its codes together."""

    length: int
    ring: bool = False

    def uncertainty(self, chances: Tensor, open_: Tensor) -> Tensor:
        """One number a place: (B, T)."""
        return (-chances.log()).masked_fill(~open_, NEVER_REMASKED)

    def count(self, known: Tensor) -> int:
        """Places that are gaps."""
        return int((~known).sum())

    def most_uncertain(self, uncertainty: Tensor, n: int) -> Tensor:
        """About ``n`` places: the union of as many of the most doubtful spans as that takes."""
        return torch.stack([self._union(row, max(n, self.length)) for row in uncertainty])

    def _union(self, uncertainty: Tensor, n: int) -> Tensor:
        """Halve the interval that the number of spans is in, as long as it has an inside."""
        again = uncertainty[: self.length - 1 if self.ring else 0]
        spans = torch.cat([uncertainty, again]).unfold(0, self.length, 1)
        order = spans.sum(-1).argsort(descending=True)
        few, many = n // self.length, n - self.length + 1  # all apart, all overlapping
        middle = round((few + many) / 2)
        union = self._covered(order[:middle], len(uncertainty))
        while few < middle < many:
            few, many = (few, middle) if union.sum() > n else (middle, many)
            middle = round((few + many) / 2)
            if few < middle < many:
                union = self._covered(order[:middle], len(uncertainty))
        return union

    def _covered(self, starts: Tensor, n_frames: int) -> Tensor:
        covered = torch.zeros(n_frames, dtype=torch.bool, device=starts.device)
        within = torch.arange(self.length, device=starts.device)
        covered[(starts[:, None] + within).flatten() % n_frames] = True
        return covered


SPANS = ("nonoverlap", "stride1")


def spans_of(config: DecodeConfig) -> Spans:
    """How a config opens places."""
    return (
        NonOverlappingSpans(config.span)
        if config.spans == "nonoverlap"
        else Stride1Spans(config.span, config.ring)
    )


def blank(model: Magnet, n: int, n_frames: int, prompt: Tensor | None = None) -> Tensor:
    """Codes (n, K, T) that are all gaps, or begin with a prompt (n, K, up to T)."""
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
    """What a network says of codes (B, K, T), drawn towards its condition (B, S, D)."""
    both = torch.cat([condition, torch.zeros_like(condition)])

    def predict(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
        twice = torch.cat([codes, codes])
        text, none = model(twice, both, stage, ring=ring, origin=origin).chunk(2)
        led: Tensor = none + (text - none) * cfg_scale
        return led

    return predict


@torch.no_grad()
def decode(
    predict: Predict,
    codes: Tensor,
    mask_token: int,
    generator: torch.Generator,
    config: DecodeConfig = DecodeConfig(),
    rescoring: Rescoring | None = None,
    books: int | None = None,
) -> Tensor:
    """Fill the gaps of codes, codebook by codebook; what is known stays as it is.

    Args:
        predict: what to ask; once a step.
        codes: int64 (B, K, T), a gap where nothing is known. What is known, is so in all B.
        gap: the id that stands for a gap.
        generator: on the device of ``codes``.
        books: how many codebooks, from the first on; the gaps of the others stay. None is all.

    Returns:
        int64 (B, K, T). Of spans that do not overlap only whole ones are written: up to two frames
        at the end are dropped.

    Raises:
        LoopError: the codes do not fit the config, or the config is out of range.
    """
    _check(codes, mask_token, config)
    if config.spans == "nonoverlap":
        codes = codes[..., : codes.shape[2] // config.span * config.span]
    codes = codes.clone()
    for stage in range(len(config.steps))[:books]:
        if (codes[:, stage] == mask_token).any():
            _fill(predict, codes, stage, mask_token, generator, config, rescoring)
    return codes


def _check(codes: Tensor, mask_token: int, config: DecodeConfig) -> None:
    n_codebooks, n_frames = codes.shape[1:]
    if len(config.steps) != n_codebooks or min(config.steps) < 1:
        raise LoopError(f"expected steps of {counted(n_codebooks, 'codebook')}, got {config.steps}")
    if config.spans not in SPANS or not 1 <= config.span <= n_frames:
        raise LoopError(
            f"cannot fill {counted(n_frames, 'frame')} by spans of {config.span} "
            f"({config.spans}); there are {' and '.join(SPANS)}, of 1 to {n_frames}"
        )
    if config.ring and config.spans == "nonoverlap":
        raise LoopError("spans that do not overlap have a first one, and a ring has none: stride1")
    if not (0 <= config.top_p <= 1 and 0 <= config.temperature < math.inf):
        raise LoopError(
            f"top-p {config.top_p}, temperature {config.temperature}; give 0 to 1, and 0 or more"
        )
    for name in ("choice_temperature", "fine_temperature"):
        if not 0 <= getattr(config, name) <= 1:
            raise LoopError(f"{name.replace('_', ' ')} {getattr(config, name)}; give 0 to 1")
    known = codes != mask_token
    if not torch.equal(known, known[:1].expand_as(known)):
        raise LoopError("rows of a batch have different gaps; fill them one by one")


def _fill(
    predict: Predict,
    codes: Tensor,
    stage: int,
    mask_token: int,
    generator: torch.Generator,
    config: DecodeConfig,
    rescoring: Rescoring | None,
) -> None:
    """Fill one codebook, in place."""
    known = codes[:, stage] != mask_token  # (B, T)
    spans = spans_of(config)
    count = spans.count(known[0])
    uncertainty = spans.uncertainty(torch.ones(known.shape, device=codes.device), ~known)
    for moment in decoding_steps(config, stage):
        inpaint_mask = spans.most_uncertain(uncertainty, max(int(moment.share * count), 1)) & ~known
        codes[:, stage] = torch.where(inpaint_mask, mask_token, codes[:, stage])
        uncertainty = spans.uncertainty(
            *sample_masked(predict, codes, stage, mask_token, moment, generator, rescoring)
        )


class DecodingStep(NamedTuple):
    """A step of a codebook.

    Attributes:
        share: of what is open.
        guidance, heat, top_p: of the draw.
        shuffling: of what is kept of it.
    """

    share: float
    cfg_scale: float
    temperature: float
    top_p: float
    choice_temperature: float


def decoding_steps(config: DecodeConfig, stage: int) -> Iterator[DecodingStep]:
    """The steps of a codebook, from all open and hot to little and cold."""
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
    moment: DecodingStep,
    generator: torch.Generator,
    rescoring: Rescoring | None,
) -> tuple[Tensor, Tensor]:
    """Draw codes for all gaps of a codebook, in place.

    Returns:
        How good all of its codes are (B, T), from 0 to 1, and bool (B, T), which were gaps.
    """
    inpaint_mask = codes[:, stage] == mask_token
    logits = predict(codes, stage, moment.cfg_scale).float()
    probabilities = (logits / moment.temperature).softmax(-1)
    drawn = sample(probabilities, moment.top_p, generator)
    codes[:, stage] = torch.where(inpaint_mask, drawn, codes[:, stage])
    chances = probabilities.gather(-1, drawn[..., None])[..., 0]
    if rescoring is not None:
        other = rescoring.judge(codes, stage)
        chances = (1 - rescoring.weight) * chances + rescoring.weight * other
    if moment.choice_temperature:
        lots = torch.rand(chances.shape, generator=generator, device=chances.device)
        chances = chances.lerp(lots, moment.choice_temperature)
    return chances, inpaint_mask


def sample(probabilities: Tensor, top_p: float, generator: torch.Generator) -> Tensor:
    """A code for every place: (B, T, size) to int64 (B, T), among the likeliest of each."""
    sorted_, codes = sort_top_p(probabilities, top_p)
    before = sorted_.cumsum(-1) - sorted_
    kept = sorted_.masked_fill(before > top_p, 0)
    kept = kept / kept.sum(-1, keepdim=True)
    ranks = torch.multinomial(kept.flatten(0, 1), 1, generator=generator)
    return codes.gather(-1, ranks.view(*codes.shape[:2], 1))[..., 0]


def sort_top_p(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities (…, size) in falling order, as far as they hold ``top_p``, and whose they are.

    Most places have a few likely codes. To find these takes a third of the time of sorting all;
    after them probabilities are 0. Where they do not hold ``top_p``, all are sorted.
    """
    size = probabilities.shape[-1]
    if size <= TOP_K:
        return probabilities.sort(dim=-1, descending=True)
    likeliest, theirs = probabilities.topk(TOP_K, dim=-1)
    sorted_ = torch.zeros_like(probabilities)
    codes = torch.zeros_like(probabilities, dtype=torch.int64)
    sorted_[..., :TOP_K], codes[..., :TOP_K] = likeliest, theirs
    # Sums of floats are rounded: what is close is sorted whole.
    wide = likeliest.sum(-1) < top_p + 1e-4
    sorted_[wide], codes[wide] = probabilities[wide].sort(dim=-1, descending=True)
    return sorted_, codes
