"""The causal model's prefix of a loop, and the probabilities that it gives to a loop's tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from audioloop.conditioning import ConditioningTensors
from audioloop.tokens.magnet.decode import TokenProbabilities, sample
from audioloop.tokens.model import Causal

# Frames of context before the first one of a circular sequence: whoever hears a loop has heard its
# end before its beginning.
CONTEXT = 100
# Frames generated before a prefix and dropped: each of them takes as long as one that is kept.
WARM_UP_FRAMES = 32


def prefix(
    model: Causal, condition: ConditioningTensors, n_frames: int, generator: torch.Generator
) -> Tensor:
    """Sample the first ``n_frames`` of a loop, for each of the conditions.

    The model first generates warm-up frames, conditioned on the end of the loop. They are dropped:
    a sequence without any context starts as no repeating loop does.

    Returns:
        int64 (B, K, n_frames) tokens.
    """
    before = min(WARM_UP_FRAMES, condition.frames.shape[-1])
    line = condition.at(torch.arange(-before, n_frames))
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
    """Sample tokens (B, K, T) frame by frame, with a KV cache; T is that of the condition."""
    conditioning = model.listener(condition, circular=False)
    state = model.initial_state(len(conditioning))
    frames = []
    for now in conditioning.split(1, 1):
        x, state = model.decode_step(state, now)
        codes: list[Tensor] = []
        for book in range(model.config.codebooks):
            logits, x = model.next_code(x, book, codes[-1] if codes else None)
            probabilities = (logits.float() / max(temperature, 1e-2)).softmax(-1)
            codes.append(sample(probabilities[:, None], top_p, generator))
        state = state._replace(last=torch.stack(codes, 1))
        frames.append(state.last)
    return torch.cat(frames, -1)


def token_probabilities(model: Causal, condition: ConditioningTensors) -> TokenProbabilities:
    """A function from a loop's tokens (B, K, T) and a stage to the model's probabilities (B, T).

    The first frames have the last ones as context, because the loop is a circular sequence.
    """
    n_frames = condition.frames.shape[-1]
    before = min(CONTEXT, n_frames)
    frames = torch.arange(-before, n_frames)
    unrolled = condition.at(frames)

    def probabilities(codes: Tensor, stage: int) -> Tensor:
        line = codes[..., frames.to(codes.device) % n_frames]
        line[:, stage + 1 :] = model.config.mask_token
        conditioning = unrolled.repeated(len(line) // len(unrolled.kit))
        logits = model(line, conditioning, before)[:, stage]
        found: Tensor = logits.softmax(-1).gather(-1, codes[:, stage][..., None])[..., 0]
        return found

    return probabilities
