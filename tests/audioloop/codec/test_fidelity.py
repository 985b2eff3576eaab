"""Against the library whose defaults these measures are, and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

import paths
from audioloop.codec import fidelity

RATE = 32_000
GOLDEN = json.loads((paths.GOLDEN / "fidelity.json").read_text())
Mono = NDArray[np.float32]


def pairs() -> dict[str, tuple[Mono, Mono]]:
    """The same as in golden/fidelity.py, which made the expected values."""
    rng = np.random.default_rng(5)
    seconds = np.arange(RATE) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 110 * seconds) * np.exp(-3 * seconds)
    noise = rng.normal(0, 0.05, RATE) * (seconds % 0.25 < 0.05)
    both = tone + noise
    found = {
        "softer": 0.5 * both,
        "noise": both + rng.normal(0, 0.01, RATE),
        "without the noise": tone,
        "later": np.roll(both, 7),
    }
    return {n: (w.astype(np.float32), both.astype(np.float32)) for n, w in found.items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_measures_are_those_of_auraloss(name: str) -> None:
    found, wanted = pairs()[name]
    ours = {
        "si_sdr_db": fidelity.si_sdr_db(found, wanted),
        "stft_distance": fidelity.stft_distance(found, wanted),
        "mel_distance": fidelity.mel_distance(found, wanted, RATE),
    }
    for measure, expected in GOLDEN[name].items():
        # Of a wave that is only softer, SI-SDR is the rounding of 32-bit floats.
        if name != "softer" or measure != "si_sdr_db":
            assert ours[measure] == pytest.approx(expected, rel=1e-3, abs=1e-4), measure


def test_equal_waves_are_at_the_best_end_of_every_measure() -> None:
    wave = pairs()["later"][1]
    assert fidelity.si_sdr_db(wave, wave) > 80
    assert fidelity.stft_distance(wave, wave) == 0
    assert fidelity.mel_distance(wave, wave, RATE) == 0
    assert fidelity.high_gap_db(wave, wave, RATE) == 0


def test_level_does_not_matter_to_si_sdr_and_a_known_error_gives_its_level() -> None:
    seconds = np.arange(RATE, dtype=np.float64) / RATE
    wanted = np.sin(2 * np.pi * 100 * seconds)
    error = 0.1 * np.sin(2 * np.pi * 300 * seconds)  # orthogonal, 20 dB down
    for gain in (0.01, 1.0):
        found = (gain * (wanted + error)).astype(np.float32)
        measured = fidelity.si_sdr_db(found, wanted.astype(np.float32))
        assert measured == pytest.approx(20, abs=0.01)


def test_silence_is_measured_and_not_a_number_that_is_none() -> None:
    wave, silence = pairs()["later"][1], np.zeros(RATE, np.float32)
    for pair in ((wave, silence), (silence, wave), (silence, silence)):
        assert np.isfinite(fidelity.si_sdr_db(*pair))
        assert fidelity.si_sdr_db(*pair) <= -79


def test_high_gap_hears_only_what_is_above_8_khz() -> None:
    seconds = np.arange(RATE, dtype=np.float64) / RATE
    low, high = (np.sin(2 * np.pi * hz * seconds) for hz in (1_000, 10_000))
    wanted = (low + high).astype(np.float32)
    assert fidelity.high_gap_db((low + 0.5 * high).astype(np.float32), wanted, RATE) == (
        pytest.approx(-6.02, abs=0.01)
    )
    found = (0.1 * low + high).astype(np.float32)
    assert fidelity.high_gap_db(found, wanted, RATE) == pytest.approx(0, abs=0.01)
