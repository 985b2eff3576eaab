"""Loops by a model that fills gaps: on a ring of its own, or by tiles in a fixed window.

::

    ring     |tile|                        the last frame is next to the first, for a model that can
    tiled    |…ile|tile|tile|til…|         a window of tiles is shown; what is said of one is taken
    LoopGen  |…le|tile|tile|ti…|           the same, with the window's own gaps (`loopgen`)

`ring` and `tiled` are two ways to ask (a `decode.Predict`), for one way to write (`decode.decode`
with spans that go round): only the tile is ever written, so padding cannot be stale, and counts
nowhere. `loopgen` is the procedure of Marincione et al. 2025, *LoopGen: Training-Free Loopable
Music Generation*, section 4.2 and appendix D, as its code does it, to compare with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from audioloop.conditioning import ConditioningTensors
from audioloop.tokens.magnet.decode import (
    DecodeConfig,
    Predict,
    Rescoring,
    decoding_steps,
    sample_masked,
    spans_of,
)
from audioloop.tokens.model import Masked
from midiloop.errors import LoopError

# A line of frames by their numbers on the ring (T,), to a function that predicts on that line.
LinePredictor = Callable[[Tensor], Predict]
# With less on both sides, what is said of a window's frames is taken from two windows.
MIN_CONTEXT = 25


def predictor(model: Masked, condition: ConditioningTensors, *, circular: bool) -> Predict:
    """What a model says of codes, drawn towards what is told of them (classifier-free guidance)."""
    nothing = condition.silent()
    untold = all(torch.equal(a, b) for a, b in zip(condition, nothing, strict=True))
    both = ConditioningTensors(*(torch.cat(pair) for pair in zip(condition, nothing, strict=True)))

    def predict(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
        codes = codes.clone()
        codes[:, stage + 1 :] = (
            model.config.mask_token
        )  # as it has learned, also where a prompt is known
        if untold or cfg_scale == 1:
            one = _as_many(condition, len(codes))
            said: Tensor = model(codes, one, stage, circular=circular)
            return said
        twice = torch.cat([codes, codes])
        conditional, unconditional = model(
            twice, _as_many(both, len(twice)), stage, circular=circular
        ).chunk(2)
        led: Tensor = unconditional + (conditional - unconditional) * cfg_scale
        return led

    return predict


def _as_many(condition: ConditioningTensors, n: int) -> ConditioningTensors:
    return condition.repeated(n // len(condition.kit))


def ring(model: Masked, condition: ConditioningTensors) -> Predict:
    """Ask a model whose positions and masks go round."""
    return predictor(model, condition, circular=True)


def mutual_information(
    model: Masked,
    codes: Tensor,
    condition: ConditioningTensors,
    inpaint_mask: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """How much what is told of a ring says about its first codebook: pointwise mutual information.

    A random half of the frames is opened, then the other half; it is by how many nats the model
    finds their codes more likely with what is told than without. To choose by this rather than by
    likelihood prefers what is as told to what is likely anyway (Li et al. 2016, arXiv:1510.03055,
    section 3, for answers in dialogue).

    Args:
        codes: int64 (B, K, T), the first codebook complete.
        condition: of one loop.
        opened: bool (T,), the frames that count.

    Returns:
        (B,), the mean over those frames.
    """
    half = torch.rand(inpaint_mask.shape, generator=generator, device=inpaint_mask.device) < 0.5

    def likelihood(part: Tensor, each: ConditioningTensors) -> Tensor:
        hidden = codes.clone()
        hidden[:, 0, part] = model.config.mask_token
        said = ring(model, each)(hidden, 0, 1.0)[:, part].log_softmax(-1)
        return said.gather(-1, codes[:, 0, part, None]).sum((1, 2))

    gain = [
        likelihood(part, condition) - likelihood(part, condition.silent())
        for part in (inpaint_mask & half, inpaint_mask & ~half)
    ]
    return (gain[0] + gain[1]) / inpaint_mask.sum()


def line_predictor(model: Masked, condition: ConditioningTensors) -> LinePredictor:
    """Ask the same model on lines, for `tiled`."""
    return lambda places: predictor(model, condition.taken(places), circular=False)


def tiled(line: LinePredictor, tile: int, window: int) -> Predict:
    """Ask a model of lines about a ring of ``tile`` frames, by a window that the ring fills.

    The tile is in the middle of the window, and goes on on both sides, however often round. Where
    the window leaves less than `LEAST_CONTEXT` for that, it is asked twice, the second time from
    half the ring on, and each time for the middle half.

    Raises:
        LoopError: the tile is longer than the window.
    """
    left = _left(tile, window)
    places = torch.arange(-left, window - left)
    if left >= MIN_CONTEXT:
        predict = line(places)

        def once(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
            around = codes[..., places.to(codes.device) % tile]
            return predict(around, stage, cfg_scale)[:, left : left + tile]

        return once
    quarter, half = tile // 4, tile // 2
    starts = {0: (quarter, quarter + half), half: (quarter, quarter + tile - half)}
    asks = {start: line(places + start) for start in starts}

    def twice(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
        found = []
        for start, (begin, end) in starts.items():
            around = codes[..., (places.to(codes.device) + start) % tile]
            said = asks[start](around, stage, cfg_scale)
            found.append(said[:, left + begin : left + end])
        # The first half is of frames from a quarter on, the second goes on behind it.
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
    """Fill the gaps of a loop (B, K, tile) as LoopGen's code does.

    What of it is not meant, and is mended in `tiled`: padding has gaps of its own that use up what
    may be opened; it is copied before a step and not after the last one, so that later codebooks
    see some that is stale; a loop that begins with a prompt has nothing on its left; one as long as
    the window has nothing on either side; spans end at the seam, and may open the prompt.

    Args:
        predict: asked about windows (B, K, window), whose tile begins at `margin`.

    Raises:
        LoopError: the loop is longer than the window, or spans are apart, or go round.
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
        row[:] = _copied(row, left, tile)
        if not count:
            continue
        uncertainty = spans.uncertainty(torch.ones(row.shape, device=row.device), ~known)
        for moment in decoding_steps(config, stage):
            inpaint_mask = spans.most_uncertain(uncertainty, max(int(moment.share * count), 1))
            row[inpaint_mask] = mask_token
            row[:] = _copied(row, left, tile)
            uncertainty = spans.uncertainty(
                *sample_masked(predict, whole, stage, mask_token, moment, generator, rescoring)
            )
    return whole[..., left : left + tile]


def margin(codes: Tensor, window: int, mask_token: int) -> int:
    """Where LoopGen puts a loop (B, K, tile) in a window: in the middle, or a prompt at once."""
    tile = codes.shape[2]
    middle = _left(tile, window)
    prompted = bool((codes[:, 0] != mask_token).any())
    return 0 if prompted else min(middle, tile)


def _copied(row: Tensor, left: int, tile: int) -> Tensor:
    """A window (B, T) whose padding is what is now in its tile."""
    places = torch.arange(row.shape[1], device=row.device) - left
    return row[:, left + places % tile]
