"""A loop played by a browser's own audio repeats sample for sample."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import scipy.signal

from audioloop.io import wave
from audioloop.io.label import LoopLabel
from audioloop.io.wave import Format, Samples, Wave

if TYPE_CHECKING:
    from playwright.sync_api import Page

PASSES = 3.5
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# Decodes a file and plays it in a loop, in a context of a rate; gives back what would be heard.
PLAY = """
async ([file, rate, passes, length]) => {
    const bytes = Uint8Array.from(atob(file), letter => letter.charCodeAt(0));
    const context = new OfflineAudioContext(2, Math.round(passes * length), rate);
    const buffer = await context.decodeAudioData(bytes.buffer);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.loop = true;
    source.connect(context.destination);
    source.start();
    const heard = await context.startRendering();
    const text = channel => {
        const bytes = new Uint8Array(heard.getChannelData(channel).buffer);
        let letters = "";
        for (let at = 0; at < bytes.length; at += 32768)
            letters += String.fromCharCode(...bytes.subarray(at, at + 32768));
        return btoa(letters);
    };
    return [buffer.length, buffer.sampleRate, text(0), text(1)];
}
"""


class Playback(NamedTuple):
    """What a browser made of a file: samples and rate of its buffer, and what it played."""

    length: int
    rate: int
    samples: Samples


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """An empty page of a Chromium without a window."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None and not os.environ.get("CI"):
        pytest.skip("no chromium on this machine; install it to hear loops as a browser plays them")
    assert chromium is not None, "CI is to have a chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser.new_page()
        browser.close()


def played(page: Page, path: Path, rate: int, length: int) -> Playback:
    file = base64.b64encode(path.read_bytes()).decode()
    frames, decoded, *channels = page.evaluate(PLAY, [file, rate, PASSES, length])
    samples = [np.frombuffer(base64.b64decode(text), np.float32) for text in channels]
    return Playback(frames, decoded, np.stack(samples))


def loop(said: LoopLabel, rate: int) -> Wave:
    """Noise: no two samples are alike, so none can be missing or too many unnoticed."""
    noise = np.random.default_rng(4).uniform(-0.5, 0.5, (2, said.samples(rate)))
    return Wave(noise.astype(np.float32), rate)


@pytest.mark.parametrize("rate", [32_000, 44_100, 48_000])
@pytest.mark.parametrize(
    "form",
    [
        Format("wav", "16"),
        Format("wav", "24"),
        Format("wav", "float"),
        Format("flac", "16"),
        Format("flac", "24"),
    ],
    ids=str,
)
def test_a_loop_repeats_sample_for_sample(
    form: Format, rate: int, page: Page, tmp_path: Path
) -> None:
    said = LoopLabel(173.3, 1)
    sound = loop(said, rate)
    path = tmp_path / f"a{form.suffix}"
    wave.write(path, sound, said, form)
    n = len(sound)
    heard = played(page, path, rate, n)
    assert (heard.length, heard.rate) == (n, rate)

    first, second, third = (heard.samples[:, n * at : n * (at + 1)] for at in range(3))
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(third, first)
    rest = heard.samples[:, 3 * n :]
    np.testing.assert_array_equal(rest, first[:, : rest.shape[1]])
    step = {"16": 2.0**-15, "24": 2.0**-23, "float": 0.0}[form.depth]
    # A browser may divide by the largest positive sample, where libsndfile divides by the scale.
    np.testing.assert_allclose(first, form.rounded(sound.samples), rtol=0, atol=step)


def test_ogg_has_every_sample_and_repeats(page: Page, tmp_path: Path) -> None:
    said = LoopLabel(173.3, 1)
    sound = loop(said, 44_100)
    wave.write(tmp_path / "a.ogg", sound, said, Format("ogg", "lossy"))
    n = len(sound)
    heard = played(page, tmp_path / "a.ogg", 44_100, n)
    assert heard.length == n
    np.testing.assert_array_equal(heard.samples[:, n : 2 * n], heard.samples[:, :n])


def test_at_another_rate_than_the_file_s_it_is_no_longer_exact(page: Page, tmp_path: Path) -> None:
    """Why players should open an AudioContext at the file's own rate."""
    said = LoopLabel(173.3, 1)
    sound = loop(said, 32_000)
    wave.write(tmp_path / "a.wav", sound, said, Format())
    n = said.samples(44_100)
    heard = played(page, tmp_path / "a.wav", 44_100, n)
    assert heard.rate == 44_100
    back = scipy.signal.resample(heard.samples[:, :n], len(sound), axis=1)
    edge = np.abs(back - sound.samples)[:, [0, -1]].max()
    assert edge > 0.01
