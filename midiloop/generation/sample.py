"""Generate loops: sample latents or codes, decode them, and keep those that meet the request.

Every sample has random numbers of its own, derived from its number and the seed. So the same seed
gives the same loops for any number of loops and any batch size.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Generator as Yielding
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from midiloop import models
from midiloop.common import checkpoint
from midiloop.common.sampling import MIN_ROWS, check
from midiloop.dataset import tensors
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError
from midiloop.grid import LOOP, Roll
from midiloop.metrics import paper
from midiloop.mining import rules
from midiloop.models.form_prior import UNKNOWN, FormPrior
from midiloop.models.layers import CodeModel, Model, RollModel
from midiloop.models.lstm_vae import VAE
from midiloop.models.prior import Prior
from midiloop.models.vq_vae import VQVAE
from midiloop.training.objective import Objective, mean_error
from midiloop.training.recipes import FINGERPRINTS, MODELS, PRIOR, check_grid, knows

SHIPPED = Path(__file__).parents[1] / "pretrained"
BATCH = 512
SMALL_BATCH = 64  # smaller batches are hardly faster
PATIENCE, MIN_TRIED = 200, 5_000  # samples tried per loop, and at least
PARTS = ("drums", "bass")
LOOP_RULE = "loop"

Good = NDArray[np.bool_]
Batches = Yielding[Roll, None, None]


@dataclass(frozen=True)
class Generator:
    """A trained generator of loops.

    Attributes:
        name: of its folder.
        model: a continuous VAE, or the prior of ``codec``.
        known: int64, sorted fingerprints of the training loops, and of their variants.
    """

    name: str
    model: Model
    codec: VQVAE | None
    known: Tensor

    @property
    def draws(self) -> int:
        """Random numbers per loop."""
        if isinstance(self.model, VAE):
            return self.model.latent_shape[0]
        assert isinstance(self.model, CodeModel)
        return self.model.draws


@dataclass(frozen=True)
class GenerationRequest:
    """Settings of generation.

    >>> import midiloop
    >>> wanted = midiloop.GenerationRequest(n=4, seed=1, must=("kick", "loop"))

    Attributes:
        n: number of loops.
        seed: of all random numbers.
        temperature, top_p: see `sampling.draw`.
        copy_latents: copy the codes of bar 1's first half to bar 5, as the paper does.
        pattern: a letter for each bar, as in ``ABABABCD``: bars of one letter have the same codes.
        like: a roll to vary; what ``keep`` names stays.
        keep: bars, as in ``1-4,8``, or ``drums``, or ``bass``.
        must: what has to play on the first step: drums, or ``bass``; ``loop``: bars 1 and 5 differ
            no more than the rules of mining allow.
        novel: no loop of the training set.
    """

    n: int
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    copy_latents: bool = False
    pattern: str | None = None
    like: Roll | None = None
    keep: str = "1-4"
    must: tuple[str, ...] = ()
    novel: bool = False


class Generated(NamedTuple):
    """Generated loops, bool (n, 128, 93), and the number of samples tried."""

    rolls: Roll
    tried: int


def load(folder: Path | None = None, device: torch.device | None = None) -> Generator:
    """Load a run of ``midiloop train``, whichever model it holds; None for the one that ships.

    >>> import midiloop
    >>> generator = midiloop.load_generator()

    Raises:
        LoopError: the folder holds no run, one without its prior, or a damaged one.
    """
    folder = folder or SHIPPED
    if not folder.is_dir():
        raise LoopError(f"{folder}: no such folder; give one that 'midiloop train' wrote")
    kinds = [kind for kind in MODELS if (folder / kind / "config.json").exists()]
    if not kinds:
        raise LoopError(f"{folder}: no model inside; give a folder that 'midiloop train' wrote")
    model, kind, _ = models.load(folder / kinds[0], device)
    if not isinstance(model, RollModel):
        raise LoopError(f"{folder / kinds[0]}: holds a {kind}; train it again")
    if model.config.on(LOOP) != model.config:
        raise LoopError(
            f"{folder}: a model of loops on another grid than that of {LOOP.bars} bars and "
            f"{LOOP.columns} columns, on which loops are written; give another run"
        )
    known, _ = checkpoint.read_tensors(folder / FINGERPRINTS)
    if known.keys() != {"loops"} or known["loops"].dtype != torch.int64:
        raise LoopError(f"{folder / FINGERPRINTS}: no fingerprints of loops; train it again")
    if not isinstance(model, VQVAE):
        return Generator(folder.name, model, None, known["loops"])
    if not (folder / PRIOR / "config.json").exists():
        raise LoopError(f"{folder}: the VQ-VAE has no prior yet; train it with --stage prior")
    prior, kind, _ = models.load(folder / PRIOR, device)
    if not isinstance(prior, CodeModel) or not knows(prior.config, model.config):
        raise LoopError(
            f"{folder / PRIOR}: no prior of the codes of the VQ-VAE beside it; train it again, "
            "with --stage prior"
        )
    return Generator(folder.name, prior, model, known["loops"])


def sample(
    generator: Generator,
    request: GenerationRequest,
    *,
    batch: int = BATCH,
    on_loops: Callable[[int], None] = lambda _: None,
) -> Generated:
    """Sample loops in order, and keep the first ``request.n`` that meet the request.

    >>> import midiloop
    >>> wanted = midiloop.GenerationRequest(n=4, seed=1)
    >>> midiloop.generate(midiloop.load_generator(), wanted).rolls.shape
    (4, 128, 93)

    Args:
        generator: the model.
        request: settings of generation.
        batch: loops sampled at a time; the result does not depend on it.
        on_loops: called with the number of new loops.

    Raises:
        CallError: the generator cannot meet the request.
        LoopError: hardly any sample meets the request.
    """
    source = _Source(generator, request)
    conditions = [_condition(name) for name in request.must]
    unfiltered = not conditions and not request.novel
    kept: list[Roll] = []
    found = tried = 0
    with closing(_samples(source, batch, request.n, unfiltered=unfiltered)) as batches:
        for rolls in batches:
            good = np.ones(len(rolls), dtype=np.bool_)
            for condition in conditions:
                good &= condition(rolls)
            if request.novel:
                good &= ~_known(generator, rolls)
            # Loops after the last one needed are dropped.
            chosen = np.flatnonzero(good)[: request.n - found]
            kept.append(rolls[chosen])
            found += len(chosen)
            tried += len(rolls) if found < request.n else int(chosen[-1]) + 1
            on_loops(len(chosen))
            if found == request.n:
                break
            if tried > max(MIN_TRIED, PATIENCE * found):
                raise LoopError(
                    f"only {found} of {tried:,} samples met the request; relax --must and "
                    "--novel, or change --temperature"
                )
    return Generated(np.concatenate(kept), tried)


def _samples(source: _Source, batch: int, n: int, *, unfiltered: bool) -> Batches:
    """Batches of samples in order: ``n`` in all if every sample is kept, else without end.

    Each core samples a batch of its own: the steps are too small to be shared.
    """
    threads = torch.get_num_threads() if source.device.type == "cpu" else 1
    ranges = _ranges(batch, n, threads, unfiltered=unfiltered)
    with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:

        def begin(numbers: range) -> Future[Roll]:
            return pool.submit(source.rolls, numbers.start, len(numbers))

        begun = deque(map(begin, itertools.islice(ranges, threads)))
        while begun:
            yield begun.popleft().result()
            begun.extend(map(begin, itertools.islice(ranges, 1)))


def _ranges(batch: int, n: int, threads: int, *, unfiltered: bool) -> Iterator[range]:
    """Which samples form a batch.

    If every sample is kept, batches have one size, and as many keep all threads busy to the end.
    Otherwise the first batch has ``n``, and later ones grow.
    """
    if unfiltered:
        rounds = -(-n // (batch * threads))
        size = min(batch, max(SMALL_BATCH, -(-n // (rounds * threads))))
        yield from (range(start, min(start + size, n)) for start in range(0, n, size))
        return
    start, size = 0, min(batch, n)
    while True:
        yield range(start, start + size)
        start += size
        size = min(batch, 2 * size)


class _Source:
    """Samples for a request, by number."""

    def __init__(self, generator: Generator, request: GenerationRequest) -> None:
        self.generator, self.request = generator, request
        check(request.temperature, request.top_p)
        self.device = next(generator.model.parameters()).device
        codec = generator.codec
        if codec is None:
            used = {
                "--copy-latents": request.copy_latents,
                "--pattern": request.pattern is not None,
            }
            used["--like"] = request.like is not None
            used["--temperature"] = request.temperature != 1
            used["--top-p"] = request.top_p != 1
            if any(used.values()):
                what = next(name for name, is_used in used.items() if is_used)
                raise CallError(f"{generator.name}: {what} needs codes; give a run of vq-vae")
            return
        self.sources = None if request.pattern is None else pattern_bars(request.pattern)
        self.known: Tensor | None = None
        if request.like is not None:
            if self.sources:
                raise CallError("--like and --pattern both say what repeats; give one of them")
            self.known = self._kept(codec, request.like)

    def rolls(self, start: int, size: int) -> Roll:
        """Samples ``start`` to ``start + size``: bool (size, 128, 93)."""
        uniforms = uniforms_of(self.request.seed, start, max(size, MIN_ROWS), self.generator)
        with torch.no_grad():
            model, codec = self.generator.model, self.generator.codec
            if codec is None:
                assert isinstance(model, VAE)
                # Numbers from N(0, 1), by its inverse distribution function.
                z = torch.special.ndtri(uniforms.clamp(min=1e-12)).float().to(self.device)
                rolls = model.rolls(model.decode(z))
            else:
                rolls = codec.rolls(codec.decode(self._codes(uniforms.to(self.device))))
        found: Roll = rolls[:size].cpu().numpy()
        return found

    def _codes(self, uniforms: Tensor) -> Tensor:
        prior, request = self.generator.model, self.request
        known = None if self.known is None else self.known.expand(len(uniforms), -1, -1)
        if isinstance(prior, FormPrior):
            form, order = self._form(prior), self._order()
            codes = prior.sample(
                uniforms,
                temperature=request.temperature,
                top_p=request.top_p,
                known=known,
                form=form,
                order=order,
            )
        else:
            assert isinstance(prior, Prior)
            codes = prior.sample(
                uniforms, temperature=request.temperature, top_p=request.top_p, known=known
            )
        if self.sources:
            codes = rearrange(
                rearrange(codes, "n s (bar k) -> n s bar k", bar=LOOP.bars)[:, :, self.sources],
                "n s bar k -> n s (bar k)",
            )
        return copy_latents(codes) if request.copy_latents else codes

    def _kept(self, codec: VQVAE, roll: Roll) -> Tensor:
        """Codes (1, S, T) of a roll, `UNKNOWN` where ``keep`` does not name their bar."""
        keep = torch.from_numpy(kept_bars(self.request.keep, codec.config.n_streams))
        codes = codec.encode(torch.from_numpy(roll)[None].to(self.device))
        steps = keep.repeat_interleave(codes.shape[2] // LOOP.bars, 1).to(self.device)  # (S, T)
        return codes.where(steps, UNKNOWN)

    def _form(self, prior: FormPrior) -> Tensor | None:
        if not self.sources:
            return None
        return torch.tensor(self.sources).repeat_interleave(prior.config.streams).to(self.device)

    def _order(self) -> Tensor | None:
        """Order of decoding: known bars first, so that all sampled ones are conditioned on them."""
        if self.known is None:
            return None
        bars = rearrange(self.known[0], "s (bar k) -> (bar s) k", bar=LOOP.bars)
        unknown = (bars == UNKNOWN).any(1)
        return unknown.to(torch.uint8).argsort(stable=True)


def uniforms_of(seed: int, start: int, size: int, generator: Generator) -> Tensor:
    """Uniforms of samples ``start`` to ``start + size``: float64 (size, draws) in [0, 1)."""
    per_block = 4  # numbers that one step of the counter gives
    blocks = -(-generator.draws // per_block)
    counter = np.random.Philox(key=seed)
    counter.advance(start * blocks)
    numbers = np.random.Generator(counter).random((size, blocks * per_block))
    return torch.from_numpy(numbers[:, : generator.draws])


def copy_latents(codes: Tensor) -> Tensor:
    """Copy the codes of bar 1's first half to bar 5: steps 0, 1 to 16, 17 of the paper's 32.

    Args:
        codes: int64 (n, S, T).
    """
    steps = codes.shape[2] // LOOP.bars // 2
    half = codes.shape[2] // 2
    copied = codes.clone()
    copied[:, :, half : half + steps] = codes[:, :, :steps]
    return copied


def pattern_bars(pattern: str) -> list[int]:
    """The bar that each bar repeats: ``ABABABCD`` to [0, 1, 0, 1, 0, 1, 6, 7].

    Raises:
        CallError: it has not a letter for each bar.
    """
    letters = pattern.upper()
    if len(letters) != LOOP.bars or not letters.isalpha():
        raise CallError(
            f"--pattern {pattern}: expected {LOOP.bars} letters, one for each bar, as in ABABABCD"
        )
    return [letters.index(letter) for letter in letters]


def kept_bars(keep: str, n_streams: int) -> Good:
    """Which bars of which stream stay: bool (S, 8).

    Raises:
        CallError: it is neither bars nor a part, or the codes hold both parts together.
    """
    kept = np.zeros((n_streams, LOOP.bars), dtype=np.bool_)
    if keep in PARTS:
        if n_streams == 1:
            raise CallError(f"--keep {keep}: this run's codes hold drums and bass together")
        kept[PARTS.index(keep)] = True
        return kept
    for item in keep.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= LOOP.bars:
            raise CallError(
                f"--keep {keep}: expected bars from 1 to {LOOP.bars}, as in 1-4,8, or "
                f"{' or '.join(PARTS)}"
            )
        kept[:, first - 1 : last] = True
    return kept


def _condition(name: str) -> Callable[[Roll], Good]:
    """The test for a word of ``must``: rolls (n, 128, 93) to bool (n,)."""
    if name == "bass":
        return lambda rolls: paper.first_note_bass(rolls).astype(np.bool_)
    if name == LOOP_RULE:
        return _repeats
    try:
        LOOP.drum_column(name)
    except LoopError as error:
        raise CallError(f"--must {name}: {error}, or bass, or {LOOP_RULE}") from None
    return lambda rolls: paper.first_note_drum(rolls, drums=(name,)).astype(np.bool_)


def _repeats(rolls: Roll) -> Good:
    cells = paper.bar_distance(rolls) * LOOP.cells_per_bar
    good: Good = cells.round() <= rules.PRESETS["paper"].max_distance_cells
    return good


def _known(generator: Generator, rolls: Roll) -> Good:
    prints = LOOP.fingerprints(LOOP.pack(rolls)).view(np.int64)
    return np.isin(prints, generator.known.numpy())


def reconstruction_error(generator: Generator, dataset: Path, split: str) -> float:
    """Share of wrongly reconstructed cells, mean over all loops of a split of a dataset."""
    model = generator.codec or generator.model
    device, found = next(model.parameters()).device, LoopDataset(dataset)
    assert isinstance(model, RollModel)  # as what has no codec is
    check_grid(model.config, found.grid, dataset)
    loops = tensors.load(found, split, device, distinct=False)
    return mean_error(Objective(model), loops)
