"""Loops from a text, by a published MAGNeT and the EnCodec whose tokens it models.

The model writes lines of a fixed length; `magnet.loops.tiled` makes a ring of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from audioloop.codec import compression, encodec
from audioloop.codec.compression import CompressionModel
from audioloop.io.label import LoopLabel
from audioloop.io.wave import Format, Wave
from audioloop.pipelines import inputs, outputs
from audioloop.pipelines.generate import BARS, BPM
from audioloop.pipelines.inpaint import SamplingConfig
from audioloop.pipelines.outputs import FORMAT, MadeLoop, WrittenLoop
from audioloop.tokens.magnet import checkpoint, decode, loops
from audioloop.tokens.magnet.checkpoint import Published, TextModel
from midiloop.errors import LoopError, counted

NAME_LENGTH = 40  # characters of a text that a file is named by
ENCODEC = "facebook/encodec_32khz"
# As published: a text is followed further than notes are, and drawing begins hotter.
SAMPLING = SamplingConfig(
    steps=(20, 10, 10, 10), temperature=3.0, top_p=0.9, cfg_scale=10.0, choice_temperature=0.0
)


@dataclass(frozen=True, eq=False)
class TextToAudio:
    """A published MAGNeT, the model of texts that it reads, and its codec."""

    published: Published
    texts: TextModel
    codec: CompressionModel

    @torch.inference_mode()
    def loop(
        self,
        text: str,
        label: LoopLabel,
        rate: int,
        sampling: SamplingConfig = SAMPLING,
        number: int = 0,
    ) -> Wave:
        """A loop (1, samples) of a text, exactly as long as its bars.

        Args:
            number: of the variation; each depends on the seed and its number alone.

        Raises:
            LoopError: it is longer than what the model can write, or shorter than a span.
        """
        model, shape = self.published.model, self.codec.config
        n_samples = label.samples(rate)
        n_frames = compression.n_frames(n_samples, rate, shape)
        window = round(self.published.segment_s * shape.rate / shape.frame)
        condition = model.condition(*self.texts([text]))
        predict = loops.tiled(lambda _: decode.guided(model, condition), n_frames, window)
        generator = sampling.generator(number, model.device)
        blank = decode.blank(model, 1, n_frames)
        # As published, all codebooks are sampled alike.
        config = replace(
            sampling.config(conditioned=False), fine_temperature=1.0, span=self.published.span
        )
        codes = decode.decode(predict, blank, model.config.mask_token, generator, config)
        latent = compression.dequantize(codes, self.codec)
        return compression.decode(latent, self.codec, n_samples, rate)


def generate(
    writer: TextToAudio,
    text: str,
    label: LoopLabel,
    *,
    rate: int = inputs.RATE,
    num_samples: int = 1,
    sampling: SamplingConfig = SAMPLING,
) -> Iterator[MadeLoop]:
    """Loops from a text, each generated on demand.

    Raises:
        LoopError: see `TextToAudio.loop`.
    """
    for number in range(num_samples):
        wave = writer.loop(text, label, rate, sampling, number)
        yield MadeLoop(wave, outputs.with_number(label, number + 1, num_samples))


def run(
    writer: TextToAudio,
    text: str,
    out: Path,
    *,
    bpm: float | None = None,
    bars: int | None = None,
    num_samples: int = 1,
    sampling: SamplingConfig = SAMPLING,
    form: Format = FORMAT,
) -> Iterator[list[WrittenLoop]]:
    """Write loops of a text, by default 4 bars at 120 bpm; their names begin with the text.

    Raises:
        CallError: ``out`` is a file, or another run is at work there.
        LoopError: see `TextToAudio.loop`.
    """
    label = LoopLabel(bpm or BPM, bars or BARS, name=text[:NAME_LENGTH])
    made = generate(writer, text, label, num_samples=num_samples, sampling=sampling)
    return outputs.write_all(made, out, form)


def load(
    magnet: str | Path,
    codec: str | None,
    text_model: str | None,
    device: torch.device | None = None,
) -> TextToAudio:
    """Read all three.

    Args:
        magnet: name or folder of the MAGNeT, see `magnet.checkpoint.load`.
        codec: name or folder of the EnCodec; None for facebook/encodec_32khz.
        text_model: name or folder of the T5; None for the one that the MAGNeT names.

    Raises:
        ImportError: transformers is not installed.
        LoopError: one of them cannot be had, or they do not fit together.
    """
    published = checkpoint.load(magnet, device)
    coded = encodec.load(codec or ENCODEC, device)
    sizes, shape = published.model.config, coded.config
    if (sizes.codebooks, sizes.codebook_size) != (shape.codebooks, shape.codebook_size):
        raise LoopError(
            f"{magnet}: writes {counted(sizes.codebooks, 'codebook')} of {sizes.codebook_size:,} "
            f"codes, and the codec has {shape.codebooks} of {shape.codebook_size:,}; give the "
            "EnCodec that it was trained with as --encodec"
        )
    return TextToAudio(published, TextModel(text_model or published.text_model, device), coded)
