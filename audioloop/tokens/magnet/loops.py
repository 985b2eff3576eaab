"""Decoding loops with a masked model: as a circular sequence (ring), or tiled in a fixed window.

::

    ring     |tile|                        the first frame follows the last; needs a circular model
    tiled    |…ile|tile|tile|til…|         the window repeats the tile; logits of one are used
    LoopGen  |…le|tile|tile|ti…|           the same, but padding is masked as well (`loopgen`)

`ring` and `tiled` are two functions for logits (a `decode.Predict`), both for `decode.decode` with
spans that wrap around. Only the tile is decoded, so no padding can be stale. `loopgen` is the
baseline: the procedure of Marincione et al. 2025, *LoopGen: Training-Free Loopable Music
Generation*, section 4.2 and appendix D, as in its published code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from audioloop.conditioning import ConditioningTensors
from audioloop.tokens.magnet.decode import (
    DecodeConfig,
    Generators,
    Predict,
    Rescoring,
    decoding_steps,
    listed,
    random_like,
    sample_masked,
    spans_of,
)
from audioloop.tokens.model import Masked
from midiloop.errors import LoopError

# Indices of frames on the circular sequence (T,), to a function for the logits of that excerpt.
LinePredictor = Callable[[Tensor], Predict]
# With fewer frames of context on both sides, logits come from two windows.
MIN_CONTEXT = 25


def predictor(model: Masked, condition: ConditioningTensors, *, circular: bool) -> Predict:
    """A `Predict` of a masked model, with classifier-free guidance towards the conditioning."""
    null = condition.null()
    unconditional_only = all(torch.equal(a, b) for a, b in zip(condition, null, strict=True))
    both = ConditioningTensors(*(torch.cat(pair) for pair in zip(condition, null, strict=True)))

    def predict(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
        codes = codes.clone()
        # As in training, even where the source tokens of later codebooks are known.
        codes[:, stage + 1 :] = model.config.mask_token
        if unconditional_only or cfg_scale == 1:
            one = _expanded(condition, len(codes))
            logits: Tensor = model(codes, one, stage, circular=circular)
            return logits
        twice = torch.cat([codes, codes])
        conditional, unconditional = model(
            twice, _expanded(both, len(twice)), stage, circular=circular
        ).chunk(2)
        guided: Tensor = unconditional + (conditional - unconditional) * cfg_scale
        return guided

    return predict


def _expanded(condition: ConditioningTensors, n: int) -> ConditioningTensors:
    return condition.repeated(n // len(condition.kit))


def ring(model: Masked, condition: ConditioningTensors) -> Predict:
    """A `Predict` on the circular sequence itself: positions and attention masks wrap around."""
    return predictor(model, condition, circular=True)


def mutual_information(
    model: Masked,
    codes: Tensor,
    condition: ConditioningTensors,
    inpaint_mask: Tensor,
    generator: Generators,
) -> Tensor:
    """Pointwise mutual information of the conditioning and the first codebook, in nats a frame.

    A random half of the frames is masked, then the other half. The value is the log-likelihood of
    the masked tokens with the conditioning, less that without. The best of N by this follows the
    conditioning; the best by likelihood alone may be what is likely anyway (Li et al. 2016,
    arXiv:1510.03055, section 3, on dialogue).

    Args:
        model: the masked model.
        codes: int64 (B, K, T) tokens, the first codebook complete.
        condition: of one loop.
        inpaint_mask: bool (T,), the frames that count.
        generator: chooses the halves, on the device of ``inpaint_mask``; or n generators, each for
            B / n consecutive rows, which share their halves.

    Returns:
        (B,), the mean over those frames.
    """
    generators = listed(generator)
    shares = inpaint_mask.expand(len(generators), -1)
    first_half = random_like(shares, generators) < 0.5  # (n, T)

    def log_likelihood(parts: Tensor, each: ConditioningTensors) -> Tensor:
        masked = codes.clone()
        by_row = parts.repeat_interleave(len(codes) // len(parts), 0)
        masked[:, 0] = masked[:, 0].masked_fill(by_row, model.config.mask_token)
        log_probabilities = ring(model, each)(masked, 0, 1.0).log_softmax(-1)
        found = log_probabilities.gather(-1, codes[:, 0, :, None])[..., 0]  # (B, T)
        # Rows are summed as they would be without the others, to the last bit.
        rows = zip(found.chunk(len(parts)), parts, strict=True)
        return torch.cat([some[:, part].sum(1) for some, part in rows])

    gain = [
        log_likelihood(parts, condition) - log_likelihood(parts, condition.null())
        for parts in (shares & first_half, shares & ~first_half)
    ]
    return (gain[0] + gain[1]) / inpaint_mask.sum()


def line_predictor(model: Masked, condition: ConditioningTensors) -> LinePredictor:
    """The same model on excerpts with ends, for `tiled`."""
    return lambda frames: predictor(model, condition.at(frames), circular=False)


def tiled(line: LinePredictor, tile: int, window: int) -> Predict:
    """A `Predict` for a circular sequence of ``tile`` frames, by a model with a fixed window.

    The tile is in the middle of the window and is repeated on both sides. Where that leaves less
    than `MIN_CONTEXT` frames on either side, there are two predictions, the second one rotated by
    half the sequence, and the middle half of each is used.

    Args:
        line: gives the `Predict` of a window.
        tile: frames of the loop.
        window: frames of the model's window.

    Raises:
        LoopError: the tile is longer than the window.
    """
    left = _left(tile, window)
    frames = torch.arange(-left, window - left)
    if left >= MIN_CONTEXT:
        predict = line(frames)

        def once(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
            around = codes[..., frames.to(codes.device) % tile]
            return predict(around, stage, cfg_scale)[:, left : left + tile]

        return once
    quarter, half = tile // 4, tile // 2
    starts = {0: (quarter, quarter + half), half: (quarter, quarter + tile - half)}
    predicts = {start: line(frames + start) for start in starts}

    def twice(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
        found = []
        for start, (begin, end) in starts.items():
            around = codes[..., (frames.to(codes.device) + start) % tile]
            logits = predicts[start](around, stage, cfg_scale)
            found.append(logits[:, left + begin : left + end])
        # The first half starts at a quarter of the tile, and the second follows it.
        return torch.cat(found, 1).roll(quarter, 1)

    return twice


def _left(tile: int, window: int) -> int:
    if not 1 <= tile <= window:
        raise LoopError(
            f"a loop of {tile:,} frames does not fit into the model's window of {window:,}; "
            "give fewer bars or a faster tempo"
        )
    return (window - tile) // 2


@torch.no_grad()
def loopgen(
    predict: Predict,
    codes: Tensor,
    window: int,
    mask_token: int,
    generator: torch.Generator,
    config: DecodeConfig,
    rescoring: Rescoring | None = None,
) -> Tensor:
    """Decode the masked tokens of a loop (B, K, tile) as LoopGen's code does.

    Its faults are kept here, and are fixed in `tiled`. Padding is masked as well, and uses up
    part of the masked share. Padding is copied before a step but not after the last one, so later
    codebooks see stale padding. A loop that starts with a prompt has no context on its left, and
    one as long as the window has none on either side. Spans end at the seam, and may mask the
    prompt.

    Args:
        predict: gives the logits of windows (B, K, window), whose tile starts at `margin`.
        codes: int64 (B, K, tile) tokens; ``mask_token`` where they are to be sampled.
        window: frames of the model's window.
        mask_token: the id of a masked token.
        generator: on the device of ``codes``.
        config: settings of decoding, with spans of "stride1" that do not wrap around.
        rescoring: a second model's share of the confidence, if any.

    Raises:
        LoopError: the loop is longer than the window, or the spans are others.
    """
    if config.spans != "stride1" or config.ring:
        raise LoopError("LoopGen's padding goes with spans of stride1, which end at the seam")
    tile = codes.shape[2]
    left = margin(codes, window, mask_token)
    whole = torch.full(
        (*codes.shape[:2], window), mask_token, dtype=codes.dtype, device=codes.device
    )
    whole[..., left : left + tile] = codes
    spans = spans_of(config)
    for stage in range(len(config.steps)):
        row = whole[:, stage]
        known = row != mask_token
        count = spans.count(known[0, left : left + tile])
        row[:] = _with_padding(row, left, tile)
        if not count:
            continue
        uncertainty = spans.uncertainty(torch.ones(row.shape, device=row.device), ~known)
        for step in decoding_steps(config, stage):
            inpaint_mask = spans.most_uncertain(uncertainty, max(int(step.share * count), 1))
            row[inpaint_mask] = mask_token
            row[:] = _with_padding(row, left, tile)
            uncertainty = spans.uncertainty(
                *sample_masked(predict, whole, stage, mask_token, step, generator, rescoring)
            )
    return whole[..., left : left + tile]


def margin(codes: Tensor, window: int, mask_token: int) -> int:
    """First frame of a loop (B, K, tile) in LoopGen's window: centred, or 0 with a prompt."""
    tile = codes.shape[2]
    middle = _left(tile, window)
    prompted = bool((codes[:, 0] != mask_token).any())
    return 0 if prompted else min(middle, tile)


def _with_padding(row: Tensor, left: int, tile: int) -> Tensor:
    """A window (B, T) whose padding repeats its tile."""
    frames = torch.arange(row.shape[1], device=row.device) - left
    return row[:, left + frames % tile]
