"""What the causal model has to say: lines that it writes, and how likely it finds a ring."""

from __future__ import annotations

import torch
from torch import Tensor

from audioloop.conditioning import ConditioningTensors
from audioloop.tokens.magnet.decode import TokenProbabilities, sample
from audioloop.tokens.model import Causal

# Frames before the first of a ring that are heard first: a listener has heard the loop before.
CONTEXT = 100
# Frames that are played before a prompt begins: each of them takes as long as one that is kept.
WARM_UP_FRAMES = 32


def prefix(
    model: Causal, condition: ConditioningTensors, n_frames: int, generator: torch.Generator
) -> Tensor:
    """The first frames of a ring, int64 (B, K, ``n_frames``), for each condition of one.

    The model plays itself in: it writes what comes before them as well, which is not kept. What
    begins out of nothing begins as no loop does that has gone round.
    """
    before = min(WARM_UP_FRAMES, condition.frames.shape[-1])
    line = condition.taken(torch.arange(-before, n_frames))
    return continuation(model, line, generator)[..., before:]


@torch.no_grad()
def continuation(
    model: Causal,
    condition: ConditioningTensors,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    top_p: float = 0.95,
) -> Tensor:
    """Lines of codes (B, K, T), one for each condition, a frame after the other."""
    conditioning = model.listener(condition, circular=False)
    state = model.begin(len(conditioning))
    frames = []
    for now in conditioning.split(1, 1):
        x, state = model.go_on(state, now)
        codes: list[Tensor] = []
        for book in range(model.config.codebooks):
            logits, x = model.next_code(x, book, codes[-1] if codes else None)
            probabilities = (logits.float() / max(temperature, 1e-2)).softmax(-1)
            codes.append(sample(probabilities[:, None], top_p, generator))
        state = state._replace(last=torch.stack(codes, 1))
        frames.append(state.last)
    return torch.cat(frames, -1)


def token_probabilities(model: Causal, condition: ConditioningTensors) -> TokenProbabilities:
    """The chances that the model gives to each code of a ring (B, K, T), going round it."""
    n_frames = condition.frames.shape[-1]
    before = min(CONTEXT, n_frames)
    places = torch.arange(-before, n_frames)
    heard = condition.taken(places)

    def chances(codes: Tensor, stage: int) -> Tensor:
        line = codes[..., places.to(codes.device) % n_frames]
        line[:, stage + 1 :] = model.config.mask_token
        conditioning = heard.repeated(len(line) // len(heard.kit))
        logits = model(line, conditioning, before)[:, stage]
        found: Tensor = logits.softmax(-1).gather(-1, codes[:, stage][..., None])[..., 0]
        return found

    return chances
