"""Loops on demand: the same for the same seed, and as they were asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handmade import WALTZ, random_rolls
from midiloop import models
from midiloop.common import checkpoint
from midiloop.dataset import parquet
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError
from midiloop.generation import outputs, sample
from midiloop.generation.sample import GenerationRequest, Generator
from midiloop.grid import LOOP, Grid
from midiloop.metrics import paper
from midiloop.metrics.key import estimate_key
from midiloop.midi import score
from midiloop.midi.key import CONFIDENT, parse_key
from midiloop.mining import midi_loop, rules
from midiloop.mining.rules import Rules
from midiloop.models.cnn_vae import CNNVAE, CNNVAEConfig
from midiloop.models.layers import RollModel
from midiloop.models.loop_transformer import LoopTransformer, LoopTransformerConfig
from midiloop.models.prior import Prior, PriorConfig
from midiloop.models.vq_vae import VQVAE, VQVAEConfig
from midiloop.training import recipes

TINY = LoopTransformerConfig(dim=16, layers=1, heads=1, token_dim=8, token_layers=1)
LOOPS = VQVAEConfig(channels=8, embed_channels=8, codebook_size=32)
LOOSE = Rules("loose", max_distance_cells=10**6, first_step_drums=())
NONE_KNOWN = torch.zeros(0, dtype=torch.int64)


def anything(n: int, **wanted: Any) -> GenerationRequest:
    """What is no loop by the rules as well: of untrained models hardly anything is one."""
    return GenerationRequest(n, **{"keep_rules": False, **wanted})


def bars_generator() -> Generator:
    """Untrained, so that its loops are wild, but all machinery is there."""
    torch.manual_seed(0)
    return Generator("bars", LoopTransformer(TINY).eval(), None, NONE_KNOWN)


def loops_generator() -> Generator:
    torch.manual_seed(0)
    codec = VQVAE(LOOPS).eval()
    prior = Prior(PriorConfig(codebook_size=32, embed_dim=8, hidden=16)).eval()
    prior.fit_start(torch.randint(32, (50, 32)))
    return Generator("loops", prior, codec, NONE_KNOWN)


def vae_generator() -> Generator:
    torch.manual_seed(0)
    model = CNNVAE(CNNVAEConfig(channels=4, latent_dim=8)).eval()
    return Generator("vae", model, None, NONE_KNOWN)


GENERATORS = {"bars": bars_generator, "loops": loops_generator, "vae": vae_generator}


@pytest.fixture(params=GENERATORS)
def generator(request: pytest.FixtureRequest) -> Generator:
    return GENERATORS[request.param]()


def by_bars(rolls: np.ndarray) -> np.ndarray:
    return rolls.reshape(len(rolls), LOOP.bars, -1)


def test_same_seed_same_loops_on_any_batch_size(generator: Generator) -> None:
    whole = sample.sample(generator, anything(40, seed=5)).rolls
    for batch in (1, 7, 16, 33):
        assert np.array_equal(
            sample.sample(generator, anything(40, seed=5), batch=batch).rolls, whole
        )
    assert np.array_equal(sample.sample(generator, anything(9, seed=5)).rolls, whole[:9])
    assert not np.array_equal(sample.sample(generator, anything(40, seed=6)).rolls, whole)


def test_conditions_do_not_depend_on_the_batch_either(generator: Generator) -> None:
    request = anything(12, must=("snare",))
    whole = sample.sample(generator, request)
    for batch in (1, 5, 64):
        drawn = sample.sample(generator, request, batch=batch)
        assert np.array_equal(drawn.rolls, whole.rolls)
        assert drawn.tried == whole.tried


@pytest.mark.parametrize(("n", "threads"), [(1, 1), (63, 4), (600, 2), (1025, 2), (5000, 3)])
def test_batches_keep_all_threads_busy(n: int, threads: int) -> None:
    batches = list(sample._ranges(512, n, threads, unfiltered=True))
    assert [candidate for batch in batches for candidate in batch] == list(range(n))
    assert max(map(len, batches)) <= 512
    assert n < sample.SMALL_BATCH * threads or len(batches) % threads == 0


def test_random_numbers_of_a_candidate_are_its_own() -> None:
    generator = bars_generator()
    whole = sample.uniforms_of(3, 0, 20, generator)
    assert torch.equal(sample.uniforms_of(3, 13, 7, generator), whole[13:])
    assert whole.shape == (20, generator.draws)
    assert len(np.unique(whole)) == whole.numel()


def test_must_is_kept_and_counted() -> None:
    generator = bars_generator()
    drawn = sample.sample(generator, anything(15, must=("kick", "bass")))
    assert paper.first_note_drum(drawn.rolls, drums=("kick",)).all()
    assert paper.first_note_bass(drawn.rolls).all()
    free = sample.sample(generator, anything(drawn.tried)).rolls
    good = free[:, 0, 0] & free[:, 0, LOOP.n_drums :].any(1)
    assert np.array_equal(free[good], drawn.rolls)


def test_by_default_loops_are_loops_by_the_rules() -> None:
    generator = replace(
        loops_generator(), rules=Rules("loose", max_distance_cells=LOOP.cells_per_bar)
    )
    drawn = sample.sample(generator, GenerationRequest(10, copy_latents=True))
    for roll in drawn.rolls:
        assert rules.find(roll, generator.rules).tolist() == [0]
    free = sample.sample(generator, anything(drawn.tried, copy_latents=True)).rolls
    good = [len(rules.find(roll, generator.rules)) == 1 for roll in free]
    assert np.array_equal(free[good], drawn.rolls)


def test_novel_returns_nothing_that_is_known() -> None:
    generator = bars_generator()
    loops = sample.sample(generator, anything(30)).rolls
    prints = np.sort(LOOP.fingerprints(LOOP.pack(loops[::2])).view(np.int64))
    knowing = Generator("knowing", generator.model, generator.codec, torch.from_numpy(prints))
    drawn = sample.sample(knowing, anything(30, novel=True)).rolls
    assert paper.overlap(LOOP.fingerprints(LOOP.pack(drawn)), prints.view(np.uint64)) == 0
    assert np.array_equal(drawn[:15], loops[1::2])


@pytest.mark.parametrize("name", ["Am", "C", "F#m", "Db"])
def test_every_loop_is_in_the_key_that_was_asked_for(name: str, tmp_path: Path) -> None:
    generator, wanted = bars_generator(), parse_key("--key", name)
    drawn = sample.sample(generator, anything(8, key=wanted))
    for roll in drawn.rolls:
        found = estimate_key(roll)
        assert str(found) == str(wanted)
        assert found.confidence >= CONFIDENT
    # Drums are as they come without a key, and the bass is moved as a whole.
    free = sample.sample(generator, anything(drawn.tried)).rolls
    of_mode = [one for one in free if estimate_key(one).mode == wanted.mode]
    assert {one[:, : LOOP.n_drums].tobytes() for one in drawn.rolls} <= {
        one[:, : LOOP.n_drums].tobytes() for one in of_mode
    }
    assert drawn.tried > 8
    whole = sample.sample(generator, anything(8, key=wanted), batch=3)
    assert np.array_equal(whole.rolls, drawn.rolls)
    found_files = outputs.write(
        drawn.rolls, tmp_path / "out", tempo_bpm=120, seed=0, about={"run": "here"}
    )
    for loop in found_files.as_json()["files"]:
        assert loop["key"] == str(wanted)
        assert loop["file"].endswith(f"_120bpm_{wanted}.mid")
        assert (found_files.midi / loop["file"]).exists()


def test_a_key_of_new_basses_and_of_conditions() -> None:
    generator, wanted = bars_generator(), parse_key("--key", "Gm")
    like = random_rolls(np.random.default_rng(0), 1)[0]
    drawn = sample.sample(generator, anything(3, key=wanted, like=like, keep="drums"))
    assert {str(estimate_key(roll)) for roll in drawn.rolls} == {"Gm"}
    assert (drawn.rolls[..., : LOOP.n_drums] == like[..., : LOOP.n_drums]).all()
    drawn = sample.sample(generator, anything(3, key=wanted, must=("kick", "bass")))
    assert paper.first_note_drum(drawn.rolls, drums=("kick",)).all()
    for parts in ({}, {"keep": "bass"}, {"vary": "drums"}, {"keep": "1"}):
        with pytest.raises(CallError, match="--keep drums"):
            sample.sample(generator, anything(3, key=wanted, like=like, **parts))


def test_a_known_loop_is_not_new_in_another_key() -> None:
    generator, wanted = bars_generator(), parse_key("--key", "Am")
    loops = sample.sample(generator, anything(200)).rolls
    prints = np.sort(LOOP.fingerprints(LOOP.pack(loops)).view(np.int64))
    knowing = replace(generator, known=torch.from_numpy(prints))
    assert sample.sample(generator, anything(3, key=wanted)).tried <= 200
    assert sample.sample(knowing, anything(3, key=wanted, novel=True)).tried > 200


def test_what_hardly_ever_comes_is_given_up() -> None:
    generator = bars_generator()
    every = tuple(drum.name for drum in LOOP.drums)
    with pytest.raises(LoopError, match="met the request"):
        sample.sample(generator, GenerationRequest(3, must=every))


def test_pattern_of_bars_repeats_exactly() -> None:
    rolls = by_bars(sample.sample(bars_generator(), anything(20, pattern="ABABabcd")).rolls)
    for bar, source in enumerate((0, 1, 0, 1, 0, 1, 6, 7)):
        assert np.array_equal(rolls[:, bar], rolls[:, source])
    halves = sample.sample(bars_generator(), anything(20, pattern="ABCDABCD")).rolls
    assert paper.bar_distance(halves).max() == 0


def test_copied_latents_by_hand() -> None:
    codes = torch.arange(32)[None]
    copied = sample.copy_latents(codes)
    assert copied[0, 16:18].tolist() == [0, 1]
    rest = [*range(16), *range(18, 32)]
    assert torch.equal(copied[..., rest], codes[..., rest])


def test_copied_latents_bring_the_bars_nearer() -> None:
    made = loops_generator()
    free = paper.bar_distance(sample.sample(made, anything(60)).rolls).mean()
    copied = sample.sample(made, anything(60, copy_latents=True)).rolls
    assert paper.bar_distance(copied).mean() < free


def test_a_loop_is_varied_where_it_is_not_kept() -> None:
    generator = bars_generator()
    like = random_rolls(np.random.default_rng(0), 1)[0]
    rolls = sample.sample(generator, anything(20, like=like, keep="1-3, 8")).rolls
    kept = [0, 1, 2, 7]
    assert (by_bars(rolls)[:, kept] == by_bars(like[None])[:, kept]).all()
    assert len(np.unique(LOOP.pack(rolls), axis=0)) > 10
    rolls = sample.sample(generator, anything(20, like=like, keep="drums")).rolls
    assert (rolls[..., : LOOP.n_drums] == like[..., : LOOP.n_drums]).all()
    assert len(np.unique(LOOP.pack(rolls), axis=0)) > 10
    rolls = sample.sample(generator, anything(20, like=like, vary="5-8")).rolls
    assert (by_bars(rolls)[:, :4] == by_bars(like[None])[:, :4]).all()
    assert len(np.unique(LOOP.pack(rolls), axis=0)) > 10


def test_codes_of_a_pattern_repeat_by_bars() -> None:
    generator = loops_generator()
    source = sample._Source(generator, anything(4, pattern="ABABABAC"))
    codes = source._codes(sample.uniforms_of(0, 0, 4, generator)).reshape(4, 8, 4)
    for bar, other in enumerate((0, 1, 0, 1, 0, 1, 0, 7)):
        assert torch.equal(codes[:, bar], codes[:, other])
    assert len(torch.unique(codes[0], dim=0)) > 2


def test_codes_of_kept_bars_stay_in_a_prior_of_whole_loops() -> None:
    generator = loops_generator()
    like = random_rolls(np.random.default_rng(0), 1)[0]
    source = sample._Source(generator, anything(4, like=like, keep="1-4"))
    assert generator.codec
    codes = source._codes(sample.uniforms_of(0, 0, 4, generator))
    original = generator.codec.encode(torch.from_numpy(like)[None])
    assert (codes[..., :16] == original[..., :16]).all()


def test_wishes_that_a_generator_cannot_fulfil() -> None:
    like = random_rolls(np.random.default_rng(0), 1)[0]
    vae, bars, loops = vae_generator(), bars_generator(), loops_generator()
    for generator, wanted, said in (
        (vae, {"copy_latents": True}, "needs codes or tokens"),
        (vae, {"pattern": "A" * 8}, "needs codes or tokens"),
        (vae, {"like": like}, "needs codes or tokens"),
        (bars, {"copy_latents": True}, "--copy-latents needs codes"),
        (bars, {"like": like, "pattern": "ABABABAB"}, "one of them"),
        (bars, {"like": like, "keep": "1-4", "vary": "4-6"}, "both name the same bars"),
        (bars, {"must": ("cowbell",)}, "--must cowbell"),
        (loops, {"like": like, "keep": "drums"}, "--keep of one part needs the relations"),
        (loops, {"like": like, "vary": "1-2"}, "--vary needs the relations"),
        (loops, {"pattern": "ABABABA'B"}, "a prime in --pattern needs the relations"),
    ):
        with pytest.raises(CallError, match=said):
            sample.sample(generator, anything(1, **wanted))


def waltz_generator(kind: str) -> Generator:
    """The same generators for loops in 3/4."""
    torch.manual_seed(0)
    made = GENERATORS[kind]()
    if made.codec:
        codec = VQVAE(LOOPS.on(WALTZ)).eval()
        prior = Prior(replace(made.model.config, code_steps=18)).eval()
        prior.fit_start(torch.randint(32, (50, 18)))
        return replace(made, model=prior, codec=codec, grid=WALTZ)
    model = type(made.model)(made.model.config.on(WALTZ)).eval()
    return replace(made, model=model, grid=WALTZ)


@pytest.mark.parametrize("kind", GENERATORS)
def test_loops_of_another_grid_are_written_on_it(kind: str, tmp_path: Path) -> None:
    generator = waltz_generator(kind)
    rolls = sample.sample(generator, anything(6, must=("bass",))).rolls
    assert rolls.shape == (6, WALTZ.steps, WALTZ.columns)
    rolls[:, -1, 0] = True
    if kind != "bars":  # of several bass pitches a file holds the lowest
        rolls[:, :, WALTZ.n_drums + 1 :] &= rolls[:, :, WALTZ.n_drums + 1 :].cumsum(2) == 1
        rolls[:, :, WALTZ.n_drums + 1 :] &= ~rolls[:, :, WALTZ.n_drums : WALTZ.n_drums + 1]
    found = outputs.write(
        rolls, tmp_path / "out", tempo_bpm=97, seed=4, about={"run": "here"}, grid=WALTZ
    )
    loops = parquet.LoopDataset(found.dataset)
    assert loops.grid == WALTZ
    assert np.array_equal(next(loops.batches()).rolls, rolls)
    files = sorted(found.midi.iterdir())
    read = [midi_loop.read(path, WALTZ).roll for path in files]
    assert np.array_equal(np.stack(read), rolls)
    assert {score.read(path).meters for path in files} == {((0, 3, 4),)}
    assert found.picture


def test_bars_that_are_named_are_those_of_the_grid() -> None:
    generator = waltz_generator("bars")
    rolls = sample.sample(generator, anything(10, pattern="ABAC")).rolls.reshape(10, 4, -1)
    assert np.array_equal(rolls[:, 2], rolls[:, 0])
    like = random_rolls(np.random.default_rng(0), 1, grid=WALTZ)[0]
    for keep, kept in ((None, [0, 1]), ("4", [3])):
        drawn = sample.sample(generator, anything(10, like=like, keep=keep)).rolls
        bars = drawn.reshape(10, 4, -1)
        assert (bars[:, kept] == like.reshape(4, -1)[kept]).all()
    loops = sample.sample(replace(generator, rules=LOOSE), GenerationRequest(5)).rolls
    for roll in loops:
        assert rules.find(roll, LOOSE, grid=WALTZ).tolist() == [0]
    for wanted, said in (
        ({"pattern": "ABABABAB"}, "expected 4 letters"),
        ({"like": like, "keep": "5"}, "expected bars from 1 to 4"),
    ):
        with pytest.raises(CallError, match=said):
            sample.sample(generator, anything(1, **wanted))
    with pytest.raises(LoopError, match=r"expected a bool roll \(72, 93\)"):
        sample.sample(generator, anything(1, like=np.zeros((128, 93), np.bool_)))


def test_a_key_is_that_of_the_pitches_of_the_grid() -> None:
    generator, wanted = waltz_generator("bars"), parse_key("--key", "Gm")
    drawn = sample.sample(generator, anything(3, key=wanted))
    assert {str(estimate_key(roll, WALTZ)) for roll in drawn.rolls} == {"Gm"}


def test_bars_of_codes_that_are_not_whole_are_refused() -> None:
    generator = waltz_generator("loops")  # 18 codes of 4 bars
    like = random_rolls(np.random.default_rng(0), 1, grid=WALTZ)[0]
    for wanted in ({"pattern": "ABAB"}, {"like": like}, {"copy_latents": True}):
        with pytest.raises(CallError, match=r"a bar has 4\.5 of them"):
            sample.sample(generator, anything(1, **wanted))


def test_a_single_bar_is_varied_as_it_is_said() -> None:
    grid = Grid(bars=1)
    generator = Generator("one", LoopTransformer(TINY.on(grid)).eval(), None, NONE_KNOWN, grid=grid)
    like = random_rolls(np.random.default_rng(0), 1, grid=grid)[0]
    with pytest.raises(CallError, match="of a single bar, say what stays"):
        sample.sample(generator, anything(1, like=like))
    rolls = sample.sample(generator, anything(5, like=like, keep="drums")).rolls
    assert (rolls[..., : LOOP.n_drums] == like[..., : LOOP.n_drums]).all()
    assert sample.sample(generator, anything(5, like=like, vary="1")).rolls.shape == (5, 16, 93)


def test_a_run_whose_grid_is_not_that_of_its_model(tmp_path: Path) -> None:
    made = waltz_generator("bars")
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "another grid than it names"), ({"grid": {}}, "no grid of bars"),
    ]  # fmt: skip
    for data, said in cases:
        run = tmp_path / said[:2]
        checkpoint.save_model(
            run / "loop-transformer", "loop-transformer", made.model, {"data": data}
        )
        with pytest.raises(LoopError, match=said):
            sample.load(run)


def test_what_is_published_reads_back(tmp_path: Path) -> None:
    rolls = sample.sample(bars_generator(), anything(6, must=("bass",))).rolls
    rolls[:, -1, 0] = True  # so that the last bar is not silent: a parser would cut it off
    found = outputs.write(rolls, tmp_path / "out", tempo_bpm=97, seed=4, about={"run": "here"})
    batch = next(parquet.LoopDataset(found.dataset).batches())
    assert np.array_equal(batch.rolls, rolls)
    assert (batch.tempos_bpm == 97).all()
    read = [midi_loop.read(path).roll for path in sorted(found.midi.iterdir())]
    assert np.array_equal(np.stack(read), rolls)
    assert found.picture
    assert found.picture.stat().st_size > 1000
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset", "loops.png", "midi",
    ]  # fmt: skip
    with pytest.raises(CallError, match="exists already"):
        outputs.write(rolls, tmp_path / "out", tempo_bpm=97, seed=4, about={"run": "here"})


def save(made: Generator, folder: Path) -> Path:
    kinds = {kind.model: name for name, kind in models.KINDS.items()}
    if made.codec:
        checkpoint.save_model(folder / "vq-vae", "vq-vae", made.codec, {})
        checkpoint.save_model(folder / "prior", kinds[type(made.model)], made.model, {})
    else:
        kind = kinds[type(made.model)]
        checkpoint.save_model(folder / kind, kind, made.model, {})
    checkpoint.write_tensors(folder / recipes.FINGERPRINTS, {"loops": made.known})
    return folder


def test_a_run_is_loaded_as_it_was_saved(generator: Generator, tmp_path: Path) -> None:
    loaded = sample.load(save(generator, tmp_path / "run"))
    rolls = sample.sample(generator, anything(20)).rolls
    assert np.array_equal(sample.sample(loaded, anything(20)).rolls, rolls)


def test_packed_in_half_the_size(tmp_path: Path) -> None:
    run = save(bars_generator(), tmp_path / "run")
    recipes.pack(run, tmp_path / "packed")
    weights = Path("loop-transformer", "model.safetensors")
    sizes = [(folder / weights).stat().st_size for folder in (run, tmp_path / "packed")]
    assert sizes[1] < 0.6 * sizes[0]
    assert len(sample.sample(sample.load(tmp_path / "packed"), anything(5)).rolls) == 5


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match="no such folder"):
        sample.load(tmp_path / "nowhere")
    with pytest.raises(LoopError, match="no model inside"):
        sample.load(tmp_path)
    run = save(loops_generator(), tmp_path / "run")
    (run / "prior" / "config.json").unlink()
    with pytest.raises(LoopError, match="--stage prior"):
        sample.load(run)


def command(*args: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "midiloop_cli", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_a_run_is_measured(generator: Generator, tmp_path: Path, dataset: LoopDataset) -> None:
    run = save(generator, tmp_path / "run")
    done = command(
        "evaluate", run, "--reference", dataset.path, "-n", 30, "--seed", 2, "--any", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rolls = next(dataset.select(split="test")).rolls
    model, given = generator.codec or generator.model, torch.from_numpy(rolls)
    if isinstance(model, RollModel):
        error = float((model.reconstruct(given).numpy() != rolls).mean())
        assert found["reconstruction_error"] == pytest.approx(error, rel=1e-5)
    else:
        nats = float(model.errors(given).mean())
        assert found["nats_per_loop"] == pytest.approx(nats, rel=1e-5)
    drawn = sample.sample(generator, anything(30, seed=2)).rolls
    assert found["metrics"]["ND"]["value"] == pytest.approx(paper.note_density(drawn).mean())


def test_the_model_that_ships_writes_loops_offline(tmp_path: Path) -> None:
    done = command("generate", "-n", 8, "-o", tmp_path / "out", "--must", "kick,bass", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loops"] == 8
    assert len(list((tmp_path / "out" / "midi").iterdir())) == 8
    # A loop of its own to vary: one that the rules find again.
    for path in sorted((tmp_path / "out" / "midi").iterdir()):
        like = tmp_path / "like"
        done = command("generate", "-n", 2, "-o", like, "--like", path, "--keep", "drums")
        if done.returncode == 0:
            break
        assert "no_loop" in done.stderr
    assert len(list((like / "midi").iterdir())) == 2


def test_bad_calls_end_in_one_line(tmp_path: Path) -> None:
    run = save(bars_generator(), tmp_path / "run")
    broken = save(bars_generator(), tmp_path / "broken")
    weights = broken / "loop-transformer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "no.mid").write_bytes(b"no")
    cases = {
        (tmp_path / "nowhere",): (2, "no such file or folder"),
        (tmp_path,): (1, "no model inside"),
        (broken,): (1, "model.safetensors"),
        (run, "--like", tmp_path / "no.mid"): (1, "not_midi"),
        (run, "--like", tmp_path / "none.mid"): (2, "no such file"),
        (run, "--pattern", "ABBA"): (2, "8 letters"),
        (run, "--must", "cowbell"): (2, "cowbell"),
        (run, "--key", "Hm"): (2, "--key Hm: no such key"),
        (run, "--top-p", "0"): (2, "--top-p"),
    }
    for number, (args, (code, said)) in enumerate(cases.items()):
        done = command("generate", *args, "-n", 2, "-o", tmp_path / f"out{number}")
        assert done.returncode == code, done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / f"out{number}").exists()
