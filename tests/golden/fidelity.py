"""Make fidelity.json with auraloss, which needs librosa: `pip install auraloss librosa`."""

from __future__ import annotations

import json
from pathlib import Path

import auraloss
import numpy as np
import torch

RATE = 32_000


def pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Waves to compare, and what they are compared with."""
    rng = np.random.default_rng(5)
    seconds = np.arange(RATE) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 110 * seconds) * np.exp(-3 * seconds)
    noise = rng.normal(0, 0.05, RATE) * (seconds % 0.25 < 0.05)
    return {
        "softer": (0.5 * (tone + noise), tone + noise),
        "noise": (tone + noise + rng.normal(0, 0.01, RATE), tone + noise),
        "without the noise": (tone, tone + noise),
        "later": (np.roll(tone + noise, 7), tone + noise),
    }


def main() -> None:
    found = {}
    for name, (ours, theirs) in pairs().items():
        x, y = (torch.from_numpy(wave.astype(np.float32))[None, None] for wave in (ours, theirs))
        found[name] = {
            "si_sdr_db": -float(auraloss.time.SISDRLoss()(x, y)),
            "stft_distance": float(auraloss.freq.MultiResolutionSTFTLoss()(x, y)),
            "mel_distance": float(auraloss.freq.MelSTFTLoss(RATE)(x, y)),
        }
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
