"""Generate loops: sample latents, codes or tokens, and keep those that meet the request.

Every sample has random numbers of its own, derived from its number and the seed. So the same seed
gives the same loops for any number of loops and any batch size.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Generator as Yielding
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from midiloop.generation.form import PARTS, parse_bars, parse_form
from midiloop.grid import LOOP, Grid, Roll, grid_from_json
from midiloop.metrics import paper
from midiloop.metrics.key import estimate_keys, transpose_to
from midiloop.midi.key import Key
from midiloop.mining import rules
from midiloop.mining.rules import Rules
from midiloop.models import loop_sampling
from midiloop.models.layers import Model, RollConfig, RollModel
from midiloop.models.loop_sampling import Like
from midiloop.models.loop_transformer import LoopTransformer
from midiloop.models.lstm_vae import VAE
from midiloop.models.prior import UNKNOWN, Prior
from midiloop.models.vq_vae import VQVAE
from midiloop.training.objective import Objective, mean_error
from midiloop.training.recipes import FINGERPRINTS, MODELS, PRIOR, knows

SHIPPED = Path(__file__).parents[1] / "pretrained"
BATCH = 512
SMALL_BATCH = 64  # smaller batches are hardly faster
BATCHES_PER_THREAD = 2  # where samples are rejected, so that few more are drawn than are needed
PATIENCE, MIN_TRIED = 200, 5_000  # samples tried per loop, and at least

Good = NDArray[np.bool_]
Batches = Yielding[Roll, None, None]


@dataclass(frozen=True)
class Generator:
    """A trained generator of loops.

    Attributes:
        name: of its folder.
        model: a continuous VAE, the prior of ``codec``, or a loop transformer.
        known: int64, sorted fingerprints of the training loops.
        rules, grid: of the loops that it was trained on.
    """

    name: str
    model: Model
    codec: VQVAE | None
    known: Tensor
    rules: Rules = rules.PRESETS["open"]
    grid: Grid = LOOP

    @property
    def draws(self) -> int:
        """Random numbers per loop."""
        if isinstance(self.model, VAE):
            return self.model.latent_shape[0]
        assert isinstance(self.model, Prior | LoopTransformer)
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
        copy_latents: copy the codes of bar 1's first half to the middle bar, the fifth of eight, as
            the paper does.
        pattern: see `form.parse_form`.
        like: a roll of which parts stay or are varied; the rest is sampled anew.
        keep, vary: bars, as in ``1-4,8``, or ``drums``, or ``bass``. What is varied takes up what
            stood there. Where only ``vary`` is given, all else is kept; where neither is, the first
            half of the bars.
        must: what has to play on the first step: drums, or ``bass``.
        key: of every loop, as `metrics.key.estimate_key` finds it: the bass of a sample is
            transposed to its tonic; samples of the other mode, or of no confident key, are left
            out.
        novel: no loop of the training set.
        keep_rules: only loops by the rules of the training set.
    """

    n: int
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    copy_latents: bool = False
    pattern: str | None = None
    like: Roll | None = None
    keep: str | None = None
    vary: str | None = None
    must: tuple[str, ...] = ()
    key: Key | None = None
    novel: bool = False
    keep_rules: bool = True

    def kept_and_varied(self, grid: Grid) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which bars of ``like`` are kept, and which are varied: each bool (2, bars).

        Raises:
            CallError: these are no bars of the grid, or some are both; or they hold the bass, and a
                key is wanted.
        """
        vary = parse_bars("--vary", self.vary or "", grid.bars)
        keep = ~vary if self.keep is None and vary.any() else None
        if keep is None:
            if self.keep is None and grid.bars == 1:
                raise CallError("--like: of a single bar, say what stays, with --keep or --vary")
            keep = parse_bars("--keep", self.keep or f"1-{grid.middle_bar}", grid.bars)
        if (keep & vary).any():
            raise CallError(
                f"--keep {self.keep} and --vary {self.vary}: both name the same bars; give each "
                "once"
            )
        if self.key is not None and keep[PARTS.index("bass")].any():
            raise CallError(
                "--key transposes the bass, of which bars of --like are to stay; keep none of it, "
                "as with --keep drums"
            )
        return keep, vary


class Generated(NamedTuple):
    """Generated loops, bool (n, steps, columns), and the number of samples tried."""

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
    model, kind, about = models.load(folder / kinds[0], device)
    if not isinstance(model, RollModel | LoopTransformer):
        raise LoopError(f"{folder / kinds[0]}: holds a {kind}; train it again")
    data = about.get("data", {})
    grid = _grid_of(folder / kinds[0], model.config, data.get("grid"))
    known, _ = checkpoint.read_tensors(folder / FINGERPRINTS)
    if known.keys() != {"loops"} or known["loops"].dtype != torch.int64:
        raise LoopError(f"{folder / FINGERPRINTS}: no fingerprints of loops; train it again")
    learned = rules.PRESETS.get(data.get("rules"), Generator.rules)
    if not isinstance(model, VQVAE):
        return Generator(folder.name, model, None, known["loops"], learned, grid)
    if not (folder / PRIOR / "config.json").exists():
        raise LoopError(f"{folder}: the VQ-VAE has no prior yet; train it with --stage prior")
    prior, kind, _ = models.load(folder / PRIOR, device)
    if not isinstance(prior, Prior) or not knows(prior.config, model.config):
        raise LoopError(
            f"{folder / PRIOR}: no prior of the codes of the VQ-VAE beside it; train it again, "
            "with --stage prior"
        )
    return Generator(folder.name, prior, model, known["loops"], learned, grid)


def _grid_of(folder: Path, config: RollConfig, found: Any) -> Grid:
    """The grid that a checkpoint says it was trained on; one of `LOOP` does not say it."""
    try:
        grid = LOOP if found is None else grid_from_json(found)
    except LoopError as error:
        raise LoopError(f"{folder}: {error}; train it again") from None
    if config.on(grid) != config:
        raise LoopError(f"{folder}: a model on another grid than it names; train it again")
    return grid


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
    conditions = [_condition(name, generator.grid) for name in request.must]
    if request.keep_rules:
        conditions.append(partial(_is_loop, generator.rules, generator.grid))
    if request.key:
        conditions.append(partial(_is_in_key, request.key, generator.grid))
    unfiltered = not conditions and not request.novel
    kept: list[Roll] = []
    found = tried = 0
    with closing(_samples(source, batch, request.n, unfiltered=unfiltered)) as batches:
        for samples in batches:
            rolls = (
                transpose_to(samples, request.key.tonic, generator.grid) if request.key else samples
            )
            good = np.ones(len(rolls), dtype=np.bool_)
            for condition in conditions:
                good &= condition(rolls)
            if request.novel:
                good &= ~(_known(generator, rolls) | _known(generator, samples))
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
                    f"only {found} of {tried:,} samples met the request; relax --must, --key and "
                    "--novel, give --any, or change --temperature"
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

    Batches have one size, and where every sample is kept, as many keep all threads busy to the end.
    """
    if unfiltered:
        rounds = -(-n // (batch * threads))
        size = min(batch, max(SMALL_BATCH, -(-n // (rounds * threads))))
        yield from (range(start, min(start + size, n)) for start in range(0, n, size))
        return
    size = min(batch, max(SMALL_BATCH, -(-n // (BATCHES_PER_THREAD * threads))))
    yield from (range(start, start + size) for start in itertools.count(0, size))


class _Source:
    """Samples for a request, by number."""

    def __init__(self, generator: Generator, request: GenerationRequest) -> None:
        self.generator, self.request = generator, request
        check(request.temperature, request.top_p)
        self.device = next(generator.model.parameters()).device
        if isinstance(generator.model, VAE):
            used = {
                "--temperature": request.temperature != 1,
                "--top-p": request.top_p != 1,
                "--copy-latents": request.copy_latents,
            }
            used |= {"--pattern": request.pattern is not None, "--like": request.like is not None}
            self._refuse(used, "needs codes or tokens; give a run of vq-vae or loop-transformer")
        if isinstance(generator.model, LoopTransformer):
            used = {"--copy-latents": request.copy_latents}
            self._refuse(used, "needs codes; give a run of vq-vae, or --pattern")
        n_bars = generator.grid.bars
        self.form = None if request.pattern is None else parse_form(request.pattern, n_bars)
        self.like: Like | None = None
        if request.like is not None:
            if self.form:
                raise CallError("--like and --pattern both say what repeats; give one of them")
            generator.grid.check(request.like)
            roll, parts = torch.from_numpy(request.like), request.kept_and_varied(generator.grid)
            self.like = Like(roll.to(self.device), *map(torch.from_numpy, parts))
        if isinstance(generator.model, Prior):
            used = {
                "a prime in --pattern": any(not bar.exact for bar in self.form or ()),
                "--vary": self.like is not None and bool(self.like.vary.any()),
                "--keep of one part": self.like is not None
                and bool((self.like.keep[0] != self.like.keep[1]).any()),
            }
            self._refuse(used, "needs the relations of bars; give a run of loop-transformer")
            codes = f"codes, and a bar has {generator.model.draws / n_bars:g} of them; give a run "
            if generator.model.draws % n_bars:
                used = {"--pattern": self.form is not None, "--like": self.like is not None}
                self._refuse(used, f"needs whole {codes}of loop-transformer")
            if generator.model.draws % (2 * n_bars):
                used = {"--copy-latents": request.copy_latents}
                self._refuse(used, f"needs an even number of {codes}on another grid")

    def _refuse(self, used: dict[str, bool], why: str) -> None:
        for name in (name for name, is_used in used.items() if is_used):
            raise CallError(f"{self.generator.name}: {name} {why}")

    def rolls(self, start: int, size: int) -> Roll:
        """Samples ``start`` to ``start + size``: bool (size, steps, columns)."""
        uniforms = uniforms_of(self.request.seed, start, max(size, MIN_ROWS), self.generator)
        with torch.no_grad():
            model, codec = self.generator.model, self.generator.codec
            if isinstance(model, VAE):
                # Numbers from N(0, 1), by its inverse distribution function.
                z = torch.special.ndtri(uniforms.clamp(min=1e-12)).float().to(self.device)
                rolls = model.rolls(model.decode(z))
            elif isinstance(model, LoopTransformer):
                rolls = loop_sampling.sample(
                    model,
                    uniforms.to(self.device),
                    temperature=self.request.temperature,
                    top_p=self.request.top_p,
                    form=self.form,
                    like=self.like,
                )
            else:
                assert codec is not None
                rolls = codec.rolls(codec.decode(self._codes(uniforms.to(self.device))))
        found: Roll = rolls[:size].cpu().numpy()
        return found

    def _codes(self, uniforms: Tensor) -> Tensor:
        prior, codec, request = self.generator.model, self.generator.codec, self.request
        assert isinstance(prior, Prior)
        assert codec is not None
        known = None
        if self.like is not None:
            codes = codec.encode(self.like.roll[None])
            stays = self.like.keep[0].repeat_interleave(codes.shape[1] // self.generator.grid.bars)
            known = codes.where(stays.to(codes.device), UNKNOWN).expand(len(uniforms), -1)
        codes = prior.sample(
            uniforms, temperature=request.temperature, top_p=request.top_p, known=known
        )
        if self.form:
            bars = rearrange(codes, "n (bar k) -> n bar k", bar=self.generator.grid.bars)
            bars = bars[:, [bar.source for bar in self.form]]
            codes = rearrange(bars, "n bar k -> n (bar k)")
        return copy_latents(codes, self.generator.grid) if request.copy_latents else codes


def uniforms_of(seed: int, start: int, size: int, generator: Generator) -> Tensor:
    """Uniforms of samples ``start`` to ``start + size``: float64 (size, draws) in [0, 1)."""
    per_block = 4  # numbers that one step of the counter gives
    blocks = -(-generator.draws // per_block)
    counter = np.random.Philox(key=seed)
    counter.advance(start * blocks)
    numbers = np.random.Generator(counter).random((size, blocks * per_block))
    return torch.from_numpy(numbers[:, : generator.draws])


def copy_latents(codes: Tensor, grid: Grid = LOOP) -> Tensor:
    """Copy the codes of bar 1's first half to the middle bar: 0, 1 to 16, 17 of the paper's 32.

    Args:
        codes: int64 (n, T).
    """
    per_bar = codes.shape[1] // grid.bars
    middle, steps = grid.middle_bar * per_bar, per_bar // 2
    copied = codes.clone()
    copied[:, middle : middle + steps] = codes[:, :steps]
    return copied


def _condition(name: str, grid: Grid) -> Callable[[Roll], Good]:
    """The test for a word of ``must``: rolls (n, steps, columns) to bool (n,)."""
    if name == "bass":
        return lambda rolls: paper.first_note_bass(rolls, grid).astype(np.bool_)
    try:
        grid.drum_column(name)
    except LoopError as error:
        raise CallError(f"--must {name}: {error}, or bass") from None
    return lambda rolls: paper.first_note_drum(rolls, grid, (name,)).astype(np.bool_)


def _is_loop(wanted: Rules, grid: Grid, rolls: Roll) -> Good:
    cells = paper.bar_distance(rolls, grid) * grid.cells_per_bar
    good: Good = cells.round() <= wanted.max_distance_cells
    for name in (*wanted.first_step_drums, "bass"):
        good &= _condition(name, grid)(rolls)
    return good


def _is_in_key(key: Key, grid: Grid, rolls: Roll) -> Good:
    return estimate_keys(rolls, grid).are(key)


def _known(generator: Generator, rolls: Roll) -> Good:
    grid = generator.grid
    prints = grid.fingerprints(grid.pack(rolls)).view(np.int64)
    return np.isin(prints, generator.known.numpy())


def held_out_error(generator: Generator, dataset: Path, split: str) -> tuple[str, float]:
    """How far a generator is from the loops of a split, in all, and what that is.

    Returns:
        Its name and its mean over loops: the reconstruction error, the share of cells that come
        back wrong; or, of what reconstructs nothing, its surprise in nats a loop.
    """
    model = generator.codec or generator.model
    device, found = next(model.parameters()).device, LoopDataset(dataset)
    found.check_grid(generator.grid)
    loops = tensors.load(found, split, device, distinct=False)
    name = "reconstruction_error" if isinstance(model, RollModel) else "nats_per_loop"
    return name, mean_error(Objective(model), loops)
