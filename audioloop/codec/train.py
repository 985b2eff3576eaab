"""Training of the codec (``audioloop train codec``), on renders of a loop dataset.

In the first stage the whole codec is trained on losses of the wave and its spectra. In the second
stage the encoder and the codebooks are frozen, and the decoder is trained against discriminators:
they ask for what the average of all likely sounds lacks, as the noise of a cymbal. `balance` then
restores the energy of the highs in every checkpoint. The state for resuming is without it.

A decoder can also be trained alone, from a pretrained codec. Its tokens keep their meaning, so
token models need not be trained again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from audioloop.codec import balance, compression
from audioloop.codec import losses as codec_losses
from audioloop.codec.compression import KIND
from audioloop.codec.discriminator import (
    MultiResolutionDiscriminator,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from audioloop.codec.fidelity import si_sdr_db
from audioloop.codec.model import Codec, CodecConfig
from audioloop.io.wave import Samples
from audioloop.rendering import augment
from audioloop.rendering.augment import Augmentation, Renders
from audioloop.rendering.synth import SoundFont
from midiloop.common import checkpoint, trainer
from midiloop.common.engine import Engine
from midiloop.common.task import Losses, Stage, Step, Task, process_seed
from midiloop.common.train_config import Budget, TrainConfig
from midiloop.common.trainer import Progress, Result, Trainer
from midiloop.common.training_record import check_folder
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError


@dataclass(frozen=True)
class CodecRecipe:
    """Excerpts and loss weights.

    Attributes:
        frames: of an excerpt.
        excerpts: number per render.
        fade_s: crossfade of an excerpt's end into its beginning, see `augment.circular_excerpts`.
        line_every: excerpts are not circular every so many steps; 0: never.
        continuous: share of excerpts that are decoded from the latent instead of the tokens.
        waveform, convergence, magnitude, mel, level, change: weights, see `losses.Distances`.
        deceit, features: weights of the adversarial and the feature matching loss.
        adversarial: share of the run before the adversarial stage starts, from 0 to 1; 1: never.
        adversarial_rate: factor of the learning rate in the adversarial stage.
    """

    frames: int = 40
    excerpts: int = 2
    fade_s: float = 0.02
    line_every: int = 4
    continuous: float = 1 / 3
    waveform: float = 4.0
    convergence: float = 0.3
    magnitude: float = 0.5
    mel: float = 1.5
    level: float = 2.0
    change: float = 0.0
    deceit: float = 0.1
    features: float = 1.0
    adversarial: float = 0.7
    adversarial_rate: float = 0.3


CONFIG, RECIPE = CodecConfig(), CodecRecipe()
TRAINING = TrainConfig(batch_size=8, warmup_steps=100, ema_decay=0.999, save_every_s=120.0)
WEIGHTS = ("waveform", "convergence", "magnitude", "mel", "level", "change", "deceit", "features")
SHARES = ("continuous", "adversarial", "adversarial_rate")
N_VALID = 24


def with_loss_weights(changes: Sequence[str]) -> CodecRecipe:
    """The default recipe with changed loss weights, as in "waveform=1".

    Raises:
        CallError: there is no such weight, or the value is out of range.
    """
    names = (*WEIGHTS, *SHARES)
    found: dict[str, Any] = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in names:
            raise CallError(
                f"{change!r}: a codec's loss has no {name!r}; it has {', '.join(names)}"
            )
        try:
            found[name] = float(text)
        except ValueError:
            raise CallError(f"{change!r}: {text!r} is no number; write {name}=1") from None
        if not 0 <= found[name] <= (1 if name in SHARES else 1e6):
            raise CallError(f"{change!r}: out of range; leave it out for the default")
    return replace(RECIPE, **found)


class CodecTask(Task):
    """A codec and its discriminators as a task of the `Trainer`.

    Args:
        config: sizes of the codec.
        recipe: excerpts and loss weights.
        seed: of the initial weights.
        sounds: gives renders by their numbers.
        valid: gives renders of the validation songs.
        device: of the networks and of the batches.
        decoder_only: keep the encoder and the codebooks.
        also_begun_with: what else must be the same when a run resumes.
    """

    measure = "mel_codes"

    def __init__(
        self,
        config: CodecConfig,
        recipe: CodecRecipe,
        seed: int,
        sounds: Callable[[Sequence[int]], list[Samples]],
        valid: Callable[[], list[Samples]],
        device: torch.device,
        also_begun_with: dict[str, Any],
        *,
        decoder_only: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        self.decoder_only = decoder_only
        self.recipe, self.sounds, self.device = recipe, sounds, device
        self.valid, self.also_begun_with = functools.cache(valid), also_begun_with
        self.model: Codec = Codec(config).to(device)
        self.adversary = MultiResolutionDiscriminator().to(device)
        self.networks: dict[str, nn.Module] = {"codec": self.model, "adversary": self.adversary}
        betas = 0.8, 0.99
        self.optimizers: dict[str, Optimizer] = {
            "codec": Adam(self.model.parameters(), betas=betas),
            "adversary": Adam(self.adversary.parameters(), betas=betas),
        }
        self.stages = Stage(0.0, 1.0), Stage(recipe.adversarial, recipe.adversarial_rate)

    def begun_with(self) -> dict[str, Any]:
        """What must be the same when a run resumes."""
        return {
            "settings": {**asdict(self.recipe), "decoder_only": self.decoder_only},
            "model": asdict(self.model.config),
            **self.also_begun_with,
        }

    def losses(self, batch: Tensor, step: Step) -> Losses:
        """Losses on excerpts (B, 1, samples): of the codec, in stage 2 of discriminators too."""
        recipe, wanted = self.recipe, batch
        circular = recipe.line_every == 0 or step.number % recipe.line_every != 0
        continuous = torch.rand(len(wanted), device=self.device) < recipe.continuous
        if step.stage == 0 and not self.decoder_only:
            output = self.model(wanted, continuous, circular=circular)
            found, commitment = output.wave, output.quantized.commitment
        else:
            # The encoder is frozen. Codebooks still follow it, or keep every vector.
            self.model.quantizer.train(not self.decoder_only)
            with torch.no_grad():
                latent = self.model.encode(wanted, circular=circular)
                quantized = self.model.quantizer(latent)
                chosen = torch.where(continuous[:, None, None], latent, quantized.latent)
            found = self.model.decode(chosen, circular=circular)
            commitment = found.new_zeros(())
        with torch.autocast(self.device.type, enabled=False):
            apart = codec_losses.distances(found, wanted, self.model.config.rate, circular=circular)
        loss = (
            recipe.waveform * apart.waveform
            + recipe.convergence * apart.convergence
            + recipe.magnitude * apart.magnitude
            + recipe.mel * apart.mel
            + recipe.level * apart.level
            + recipe.change * apart.change
            + self.model.config.commitment * commitment
        )
        terms = {**apart._asdict(), "commitment": commitment}
        minimise = {"codec": loss}
        if step.stage == 1:
            # Convolutions over spectra cost most, and discriminators need no exact products.
            with torch.autocast(self.device.type, torch.bfloat16):
                real = self.adversary(wanted, circular=circular)
                fake = self.adversary(found, circular=circular)
            against = {
                "deceit": generator_loss(fake),
                "features": feature_matching_loss(real, fake),
            }
            adversarial = recipe.deceit * against["deceit"] + recipe.features * against["features"]
            # The codec comes last: the discriminators' graph is a part of its graph.
            minimise = {"adversary": discriminator_loss(real, fake), "codec": loss + adversarial}
            terms |= {**against, "critics": minimise["adversary"]}
        return Losses(minimise, {name: term.detach() for name, term in terms.items()})

    def micro_batches(self, step: Step) -> Iterator[tuple[Tensor, float]]:
        """Yield excerpts (B, 1, samples) of renders with their weights."""
        recipe, config = self.recipe, self.model.config
        length, fade = recipe.frames * config.frame, round(recipe.fade_s * config.rate)
        n_renders = -(-step.micro_batch_size // recipe.excerpts)
        for number, size, weight in step.draws():
            sounds = self.sounds(range(number * n_renders, (number + 1) * n_renders))
            rng = np.random.default_rng([step.seed, 1, number])
            excerpts = [
                augment.circular_excerpts(s, recipe.excerpts, length, fade, rng) for s in sounds
            ]
            batch = np.concatenate(excerpts)[:size, None]
            yield torch.from_numpy(batch).to(self.device), weight

    def compile(self) -> None:
        """Compile the codec; discriminators are convolutions and gain nothing."""
        self.model.encoder.compile()
        self.model.decoder.compile()

    def validate(self, model: nn.Module) -> dict[str, float]:
        """SI-SDR in dB from latents and from tokens, and the mel distance from tokens."""
        assert isinstance(model, Codec)
        continuous: list[float] = []
        quantized: list[float] = []
        mel: list[float] = []
        for samples in self.valid():
            wanted = torch.from_numpy(samples).to(self.device)[None, None]
            latent = model.encode(wanted, circular=True)
            tokens = model.quantize(latent)
            for into, what in ((continuous, latent), (quantized, model.dequantize(tokens))):
                found = model.decode(what, circular=True)
                into.append(si_sdr_db(found[0, 0].cpu().numpy(), samples))
            apart = codec_losses.distances(found, wanted, model.config.rate, circular=True)
            mel.append(float(apart.mel))
        return {
            "si_sdr_db": float(np.median(continuous)),
            "si_sdr_codes_db": float(np.median(quantized)),
            "mel_codes": float(np.mean(mel)),
        }

    def save(self, folder: Path, model: nn.Module, about: dict[str, Any]) -> None:
        """Write the checkpoint, with the energy of the highs restored, see `balance`."""
        assert isinstance(model, Codec)
        checkpoint.save_model(folder, KIND, balance.balanced(model, self.valid()), about)


def codec(
    dataset: LoopDataset,
    out: Path,
    budget: Budget,
    soundfonts: Sequence[Path],
    *,
    training: TrainConfig = TRAINING,
    config: CodecConfig = CONFIG,
    recipe: CodecRecipe = RECIPE,
    init_from: Path | None = None,
    decoder_only: bool = False,
    engine: Engine | None = None,
    device: torch.device,
    resume: bool = False,
    events: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Train a codec on renders of the training songs of a dataset.

    Args:
        dataset: the loops.
        out: folder of the run.
        budget: how long to train.
        soundfonts: to render with, in turn.
        training: settings of the trainer.
        config: sizes of the codec.
        recipe: excerpts and loss weights.
        init_from: a run whose codec gives the first weights and the sizes.
        decoder_only: keep the encoder and the codebooks bit for bit.
        engine: runs the rendering, see `midiloop.common.engine`.
        device: to train on.
        resume: go on with the run in ``out``.
        events: write TensorBoard event files into ``out/events``.
        on_progress: called after each epoch of the trainer.

    Raises:
        CallError, LoopError: see `Trainer.fit`; or a split is empty, or a SoundFont cannot be
            loaded.
    """
    check_folder(out, resume=resume)
    if events:
        trainer.event_writer()
    initial = None if init_from is None else compression.load(init_from)
    config = config if initial is None else initial.config
    variety = Augmentation(rate=config.rate)
    for path in soundfonts:
        SoundFont(path, variety.rate)  # one that cannot be loaded is an error here
    source, others = (augment.loops(dataset, split) for split in ("train", "valid"))
    seed = process_seed(training.seed)
    renders = Renders(source, soundfonts, variety, seed=seed, engine=engine)
    first = None if initial is None else compression.fingerprint(initial)
    data = {**augment.provenance(dataset, soundfonts), "init_from": first}
    about = {
        "settings": {**asdict(budget), **asdict(training)},
        "recipe": asdict(recipe),
        "decoder_only": decoder_only,
        "data": data,
    }
    try:
        task = CodecTask(
            config,
            recipe,
            training.seed,
            renders.take,
            lambda: _valid(Renders(others, soundfonts, variety, seed=training.seed), config),
            device,
            {**augment.identity(data), "initial model": first},
            decoder_only=decoder_only,
        )
        if initial is not None:
            task.model.load_state_dict(initial.state_dict())
        return Trainer(task, budget, training).fit(
            out,
            about=about,
            resume=resume,
            events=out / "events" if events else None,
            on_progress=on_progress,
        )
    finally:
        renders.close()


def _valid(renders: Renders, config: CodecConfig) -> list[Samples]:
    """Renders of the validation songs, cut to whole frames."""
    try:
        found = renders.take(range(2 * N_VALID))
    finally:
        renders.close()
    audible = [s[: len(s) // config.frame * config.frame] for s in found if s.any()]
    if not audible:
        raise LoopError("all of the validation loops are silent with this SoundFont; give another")
    return audible[:N_VALID]
