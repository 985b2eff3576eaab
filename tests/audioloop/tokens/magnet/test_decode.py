"""MAGNeT in our own words is audiocraft's: its logits, its codes, its checkpoints. And rings."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import paths
from audioloop.nn.attention import local_mask
from audioloop.tokens.magnet import checkpoint
from audioloop.tokens.magnet.checkpoint import Published, TextModel, load
from audioloop.tokens.magnet.decode import (
    MIN_TEMPERATURE,
    SPANS,
    DecodeConfig,
    Predict,
    Rescoring,
    Stride1Spans,
    blank,
    decode,
    decoding_steps,
    guided,
    sample,
    sort_top_p,
    spans_of,
)
from audioloop.tokens.magnet.network import Magnet, MagnetConfig, positions
from midiloop.common.checkpoint import read_tensors
from midiloop.errors import LoopError

GOLDEN, ABOUT = read_tensors(paths.GOLDEN / "magnet.safetensors")
WEIGHTS = {n.removeprefix("weights."): w for n, w in GOLDEN.items() if n.startswith("weights.")}
CONFIG = MagnetConfig(dim=64, heads=4, layers=2, codebook_size=32)
GAP, BOOKS, FRAMES = 32, 4, 50
OUR_NAMES = {
    "span_arrangement": "spans", "decoding_steps": "steps", "temp": "temperature",
    "top_p": "top_p", "max_cfg_coef": "cfg_scale", "min_cfg_coef": "last_cfg_scale",
}  # fmt: skip
SHORT = DecodeConfig(steps=(5, 3, 2, 2))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("magnet"))


@pytest.fixture(scope="module")
def published(folder: Path) -> Published:
    return load(folder)


@pytest.fixture(scope="module")
def model(published: Published) -> Magnet:
    return published.model


@pytest.fixture(scope="module")
def condition(model: Magnet) -> Tensor:
    with torch.no_grad():
        return model.condition(GOLDEN["states"].float(), GOLDEN["mask"])


def saved(folder: Path, text: Any = ABOUT["config"], **changes: Tensor | None) -> Path:
    """A checkpoint as audiocraft exports it, with other weights under some names, or without."""
    weights = {name: w for name, w in (WEIGHTS | changes).items() if w is not None}
    whole = {"best_state": weights, "xp.cfg": text, "version": "1.3.0", "exported": True}
    folder.mkdir(exist_ok=True)
    torch.save(whole, folder / "state_dict.bin")
    return folder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lessons(size: int = GAP, seed: int = 3) -> Predict:
    """What to predict without a network: the same logits always, whatever is known."""
    logits = 2 * torch.randn(BOOKS, 3, 400, size, generator=seeded(seed))

    def predict(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
        return logits[stage, : codes.shape[0], : codes.shape[2]]

    return predict


def gaps(n: int = 2, n_frames: int = FRAMES) -> Tensor:
    return torch.full((n, BOOKS, n_frames), GAP)


# As published.


@pytest.mark.parametrize("stage", range(BOOKS))
def test_logits_are_those_of_audiocraft(stage: int, published: Published) -> None:
    # In 64 bits, as in 32 a CPU's own order of summation shows.
    model = copy.deepcopy(published.model).double()
    condition = model.condition(GOLDEN["states"].double(), GOLDEN["mask"])
    torch.testing.assert_close(condition, GOLDEN["condition"], atol=1e-6, rtol=0)
    with torch.no_grad():
        found = model(GOLDEN["codes"], condition, stage)
    torch.testing.assert_close(found, GOLDEN[f"logits.{stage}"], atol=1e-6, rtol=1e-6)
    assert found.std() > 1  # or there would be little to agree on


@pytest.mark.parametrize("name", ABOUT["draws"])
@pytest.mark.parametrize("given", ["", ".prompted"])
def test_codes_are_those_of_audiocraft(
    name: str, given: str, model: Magnet, condition: Tensor
) -> None:
    settings = {OUR_NAMES[key]: value for key, value in ABOUT["draws"][name].items()}
    config = DecodeConfig(**settings)
    start = blank(model, 2, FRAMES, GOLDEN["prompt"] if given else None)
    found = decode(guided(model, condition), start, GAP, seeded(ABOUT["seed"]), config)
    expected = GOLDEN[f"drawn.{name}{given}"]
    assert len(set(expected.flatten().tolist())) > 16
    assert torch.equal(found, expected)


def test_the_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        shapes = {n: tuple(w.shape) for n, w in Magnet(MagnetConfig()).state_dict().items()}
        medium = Magnet(MagnetConfig(dim=1536, heads=24, layers=48))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 420_371_456
    assert len(shapes) == 300
    reader = "condition_provider.conditioners.description.output_proj"
    expected = {f"{reader}.weight": (1024, 768), f"{reader}.bias": (1024,)}
    for book in range(4):
        expected |= {f"emb.{book}.weight": (2049, 1024), f"linears.{book}.weight": (2048, 1024)}
    for layer in (f"transformer.layers.{n}" for n in range(24)):
        for attention in (f"{layer}.self_attn", f"{layer}.cross_attention"):
            expected[f"{attention}.in_proj_weight"] = (3072, 1024)
            expected[f"{attention}.out_proj.weight"] = (1024, 1024)
        expected |= {
            f"{layer}.linear1.weight": (4096, 1024),
            f"{layer}.linear2.weight": (1024, 4096),
        }
        for norm in ("norm1", "norm2", "norm_cross"):
            expected |= {f"{layer}.{norm}.weight": (1024,), f"{layer}.{norm}.bias": (1024,)}
    expected |= {"out_norm.weight": (1024,), "out_norm.bias": (1024,)}
    assert shapes == expected
    assert medium.emb[0].weight.shape == (2049, 1536)
    assert len(medium.state_dict()) == 588


# The network.


def test_a_stage_hears_its_neighbours_only(model: Magnet, condition: Tensor) -> None:
    codes = GOLDEN["codes"]
    changed = codes.clone()
    changed[:, :, 25] = (changed[:, :, 25] + 1) % GAP
    reach = CONFIG.layers * 5
    for stage in range(BOOKS):
        with torch.no_grad():
            moved = (model(codes, condition, stage) - model(changed, condition, stage)).abs()
        heard = moved.amax((0, 2)).nonzero()[:, 0]
        ends = (0, FRAMES - 1) if stage == 0 else (25 - reach, 25 + reach)
        assert (int(heard.min()), int(heard.max())) == ends


def test_padding_is_heard_as_nothing_is(model: Magnet, condition: Tensor) -> None:
    states, mask = GOLDEN["states"].float(), GOLDEN["mask"]
    assert not mask.all()
    with torch.no_grad():
        other = model.condition(torch.where(mask[..., None], states, 9.0), mask)
        shorter = model(GOLDEN["codes"][1:], condition[1:, :3], 0)
        longer = model(GOLDEN["codes"][1:], condition[1:], 0)
    assert torch.equal(other, condition)
    assert (condition[~mask] == 0).all()
    assert (shorter - longer).abs().max() > 1e-3  # zeros take their share of attention


def test_fresh_weights_keep_the_size_of_a_signal() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        fresh = Magnet(dataclasses.replace(CONFIG, layers=6))
    with torch.no_grad():
        assert 0.5 < float(fresh(GOLDEN["codes"], GOLDEN["condition"].float(), 1).std()) < 2
    weights = fresh.state_dict()
    first, last = (weights[f"transformer.layers.{n}.linear1.weight"].std() for n in (0, 5))
    assert float(first / last) == pytest.approx(6**0.5, rel=0.05)


@pytest.mark.parametrize("changes", [{"heads": 5}, {"dim": 3, "heads": 1}, {"dim": 2, "heads": 1}])
def test_sizes_that_fit_no_network_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="channels"):
        Magnet(dataclasses.replace(CONFIG, **changes))


# On a ring.


@pytest.mark.parametrize("n_frames", [1, 2, 7, 11, 50])
def test_a_ring_may_begin_anywhere(n_frames: int, model: Magnet, condition: Tensor) -> None:
    """Rolling codes, and the origin with them, rolls logits."""
    exact = Magnet(CONFIG).double()
    exact.load_state_dict(model.state_dict())
    codes, heard = GOLDEN["codes"][..., :n_frames], condition.double()
    for stage in range(BOOKS):
        with torch.no_grad():
            found = exact(codes, heard, stage, ring=True)
            for by in {1, n_frames // 2, n_frames - 1, 3 * n_frames + 1}:
                rolled = exact(codes.roll(by, -1), heard, stage, ring=True, origin=-by)
                torch.testing.assert_close(rolled, found.roll(by, 1), atol=1e-12, rtol=0)


def test_a_line_may_not(model: Magnet, condition: Tensor) -> None:
    codes = GOLDEN["codes"]
    with torch.no_grad():
        for stage in range(BOOKS):
            rolled = model(codes.roll(7, -1), condition, stage, origin=-7)
            assert (rolled - model(codes, condition, stage).roll(7, 1)).abs().max() > 1e-2


def test_positions_on_a_ring_go_round_in_equal_steps() -> None:
    for n_frames in (5, 48, 100):
        found, again = (
            positions(n_frames, 64, ring=True, origin=origin).double() for origin in (0, n_frames)
        )
        assert torch.equal(found, again)
        products = found @ found.T
        for by in range(n_frames):
            rolled = products.roll((by, by), (0, 1))
            torch.testing.assert_close(rolled, products, atol=1e-4, rtol=0)
        assert len({tuple(row) for row in found.tolist()}) == n_frames


def test_positions_on_a_ring_are_nearly_those_on_a_line() -> None:
    """No wave is off by more than half a turn, at the end of a round."""
    angles = [
        torch.atan2(found[1, 32:], found[1, :32])
        for found in (positions(400, 64, ring=ring) for ring in (True, False))
    ]
    assert (angles[0] - angles[1]).abs().max() <= torch.pi / 400 + 1e-6


def test_near_on_a_ring_goes_past_the_end() -> None:
    line, ring = local_mask(30, 5, circular=False), local_mask(30, 5, circular=True)
    assert torch.equal(ring, ring.roll((1, 1), (0, 1)))
    assert ring[0].nonzero()[:, 0].tolist() == [*range(6), *range(25, 30)]
    assert line[0].nonzero()[:, 0].tolist() == [*range(6)]
    assert torch.equal(line[5:25], ring[5:25])
    assert local_mask(11, 5, circular=True).all()


# Decoding.


@pytest.mark.parametrize("spans", SPANS)
def test_what_is_known_never_changes(spans: Any, rng: np.random.Generator) -> None:
    codes = torch.from_numpy(rng.integers(0, GAP, (2, BOOKS, 48)))
    hidden = torch.from_numpy(rng.random((BOOKS, 48)) < 0.5)
    hidden[1], hidden[2] = False, True
    start = codes.masked_fill(hidden, GAP)
    seen = []

    def predict(given: Tensor, stage: int, cfg_scale: float) -> Tensor:
        seen.append(given.clone())
        return lessons()(given, stage, cfg_scale)

    before = start.clone()
    found = decode(predict, start, GAP, seeded(), dataclasses.replace(SHORT, spans=spans))
    assert torch.equal(start, before)
    for step in (*seen, found):
        assert torch.equal(step[:, ~hidden], codes[:, ~hidden])
    assert (found < GAP).all()
    assert len(seen) == 5 + 2 + 2  # of the second codebook all was known


def test_a_prompt_is_what_a_blank_begins_with(model: Magnet) -> None:
    prompt = GOLDEN["prompt"]
    start = blank(model, 2, FRAMES, prompt)
    assert torch.equal(start[..., :7], prompt)
    assert (start[..., 7:] == GAP).all()
    for odd in (prompt[:1], prompt[:, :3], prompt.repeat(1, 1, 9)):
        with pytest.raises(LoopError, match="expected a prompt"):
            blank(model, 2, FRAMES, odd)


@pytest.mark.parametrize("spans", SPANS)
def test_the_same_seed_gives_the_same_codes(spans: Any, model: Magnet, condition: Tensor) -> None:
    config = dataclasses.replace(SHORT, spans=spans)

    def written(seed: int) -> Tensor:
        torch.manual_seed(seed + 1)  # of no account
        return decode(guided(model, condition), blank(model, 2, 30), GAP, seeded(seed), config)

    assert torch.equal(written(4), written(4))
    assert not torch.equal(written(4), written(5))


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("rows_each", [1, 2])
def test_what_a_generator_gives_does_not_depend_on_the_rest_of_the_batch(
    spans: Any, rows_each: int
) -> None:
    logits = torch.randn(BOOKS, 48, GAP, generator=seeded(3))

    def predict(tokens: Tensor, stage: int, cfg_scale: float) -> Tensor:
        return logits[stage].expand(len(tokens), -1, -1)

    config = dataclasses.replace(SHORT, spans=spans, choice_temperature=0.5)
    alone = [decode(predict, gaps(rows_each, 48), GAP, seeded(n), config) for n in range(3)]
    generators = [seeded(n) for n in range(3)]
    together = decode(predict, gaps(3 * rows_each, 48), GAP, generators, config)
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(row) for row in together[:, 0].tolist()}) == 3 * rows_each


@pytest.mark.parametrize("n", [0, 2, 4])
def test_generators_that_cannot_share_the_rows_are_refused(n: int) -> None:
    with pytest.raises(LoopError, match=f"3 rows cannot be shared by {n} generators; give one"):
        decode(lessons(), gaps(3), GAP, [seeded(seed) for seed in range(n)], SHORT)


@pytest.mark.parametrize("books", [0, 1, 3])
def test_in_two_goes_it_is_as_in_one(books: int, model: Magnet, condition: Tensor) -> None:
    predict, start, generator = guided(model, condition), blank(model, 2, 30), seeded()
    whole = decode(predict, start, GAP, seeded(), SHORT)
    first = decode(predict, start, GAP, generator, SHORT, books=books)
    assert torch.equal(first[:, :books], whole[:, :books])
    assert (first[:, books:] == GAP).all()
    assert torch.equal(decode(predict, first, GAP, generator, SHORT), whole)


@pytest.mark.parametrize("n_frames", [3, 4, 5, 6, 31])
def test_whole_spans_are_written_or_every_frame(n_frames: int) -> None:
    apart = dataclasses.replace(SHORT, spans="nonoverlap"), n_frames // 3 * 3
    anywhere = dataclasses.replace(SHORT, spans="stride1"), n_frames
    for config, expected in (apart, anywhere):
        found = decode(lessons(), gaps(2, n_frames), GAP, seeded(), config)
        assert found.shape == (2, BOOKS, expected)
        assert (found < GAP).all()


@pytest.mark.parametrize("spans", SPANS)
def test_gaps_and_guidance_fall_as_a_quarter_of_a_cosine(spans: Any) -> None:
    config = DecodeConfig(steps=(20, 1, 10, 10), spans=spans)
    asked: list[tuple[int, float, Tensor]] = []

    def predict(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
        asked.append((stage, cfg_scale, (codes == GAP).sum(-1)))  # (B, K)
        return lessons()(codes, stage, cfg_scale)

    decode(predict, gaps(2, 300), GAP, seeded(), config)
    assert [stage for stage, _, _ in asked] == [0] * 20 + [1] + [2] * 10 + [3] * 10
    for stage, steps in enumerate(config.steps):
        shares = np.cos(np.linspace(0, np.pi / 2, steps))
        mine = [(cfg_scale, left) for at, cfg_scale, left in asked if at == stage]
        np.testing.assert_allclose([g for g, _ in mine], 1 + 9 * shares, atol=1e-5)
        left = torch.stack([left for _, left in mine])
        assert (left[..., :stage] == 0).all()
        assert (left[..., stage + 1 :] == 300).all()
        # Spans that do not overlap are counted, so it is exact to one; a union may miss by one.
        np.testing.assert_allclose(left[0, :, stage], 300)
        expected = np.maximum(300 * shares, 3)[:, None].repeat(2, 1)
        np.testing.assert_allclose(left[..., stage], expected, atol=3.01)


def test_the_doubtful_are_opened_and_the_sure_stay() -> None:
    """Where the likeliest code is nearly certain, it is written at once and never again."""
    sure = torch.zeros(48, dtype=torch.bool)
    sure[12:36] = True
    target = torch.arange(48) % GAP
    logits = torch.where(sure, 60.0, 0.0)[:, None] * torch.nn.functional.one_hot(target, GAP)
    seen = []

    def predict(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
        seen.append(codes[0, stage].clone())
        return logits.expand(2, -1, -1)

    config = DecodeConfig(steps=(12, 1, 1, 1), temperature=1.0)
    found = decode(predict, gaps(2, 48), GAP, seeded(), config)
    assert torch.equal(found[0, 0, sure], target[sure])
    for codes in seen[:12]:
        kept = codes != GAP
        assert not (kept & ~sure).any() or kept[sure].all()
        assert torch.equal(codes[kept & sure], target[kept & sure])


@pytest.mark.parametrize("seed", range(20))
def test_a_union_is_of_the_most_doubtful_spans_and_of_about_its_size(seed: int) -> None:
    uncertainty = torch.rand(1, 40, generator=seeded(seed))
    order = uncertainty[0].unfold(0, 3, 1).sum(-1).argsort(descending=True).tolist()
    unions = [
        {at + k for at in order[:count] for k in range(3)} for count in range(1, len(order) + 1)
    ]
    for n in range(1, 41):
        found = set(Stride1Spans(3).most_uncertain(uncertainty, n)[0].nonzero()[:, 0].tolist())
        assert found in unions
        assert abs(len(found) - max(n, 3)) <= 3


def test_drawing_keeps_to_the_likeliest() -> None:
    probabilities = torch.tensor([0.15, 0.5, 0.05, 0.3]).expand(2, 4000, 4).contiguous()
    nuclei = {0.0: {1}, 0.4: {1}, 0.6: {1, 3}, 0.9: {0, 1, 3}, 1.0: {0, 1, 2, 3}}
    for top_p, kept in nuclei.items():
        found = sample(probabilities, top_p, seeded())
        assert set(found.flatten().tolist()) == kept
        rest = sum(float(probabilities[0, 0, code]) for code in kept)
        for code in kept:
            share = float((found == code).float().mean())
            assert share == pytest.approx(float(probabilities[0, 0, code]) / rest, abs=0.03)


@pytest.mark.parametrize("settings", [{"top_p": 0.0}, {"temperature": 0.0}])
def test_without_chance_every_seed_gives_the_likeliest(settings: dict[str, Any]) -> None:
    config = dataclasses.replace(SHORT, **settings)
    predict = lessons(size=8)
    likeliest = torch.stack([predict(gaps(), stage, 1.0).argmax(-1) for stage in range(4)], 1)
    for seed in range(3):
        found = decode(predict, gaps(), GAP, seeded(seed), config)
        agree = (found == likeliest[..., :48]).float().mean()
        assert agree > (0.999 if "top_p" in settings else 0.97)  # 0.01 is not quite 0


def test_guidance_leads_from_no_text_past_the_text(model: Magnet, condition: Tensor) -> None:
    codes, predict = GOLDEN["codes"], guided(model, condition)
    with torch.no_grad():
        text = model(codes, condition, 1)
        none = model(codes, torch.zeros_like(condition), 1)
        for cfg_scale, expected in [(0.0, none), (1.0, text), (3.0, 3 * text - 2 * none)]:
            found = predict(codes, 1, cfg_scale)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        ring = guided(model, condition, ring=True, origin=3)(codes, 1, 1.0)
        expected = model(codes, condition, 1, ring=True, origin=3)
    torch.testing.assert_close(ring, expected, atol=1e-4, rtol=0)
    assert (ring - text).abs().max() > 0.1


@pytest.mark.parametrize("spans", SPANS)
def test_another_model_has_a_say_in_what_is_kept(spans: Any) -> None:
    config = DecodeConfig(steps=(3, 2, 2, 2), spans=spans)
    opinion = torch.rand(2, 48, generator=seeded(6))
    seen = []

    def judge(codes: Tensor, stage: int) -> Tensor:
        assert (codes[:, : stage + 1] < GAP).all()
        return opinion

    def predict(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
        seen.append(codes[:, stage] == GAP)
        return lessons()(codes, stage, cfg_scale)

    def written(rescoring: Rescoring | None) -> Tensor:
        seen.clear()
        return decode(predict, gaps(2, 48), GAP, seeded(), config, rescoring)

    def kept(weight: float) -> Tensor:
        written(Rescoring(judge, weight))
        return ~seen[1]

    assert torch.equal(written(Rescoring(judge, 0.0)), written(None))
    everything = torch.ones(2, 48, dtype=torch.bool)
    half = int(0.70710678 * (16 if spans == "nonoverlap" else 48))
    ways = spans_of(config)
    alone = ~ways.most_uncertain(ways.uncertainty(opinion, everything), half)
    assert torch.equal(kept(1.0), alone)
    assert not torch.equal(kept(0.0), alone)
    agreed = [float((kept(weight) == alone).float().mean()) for weight in (0.0, 0.5, 1.0)]
    assert agreed == sorted(agreed)


@pytest.mark.parametrize("spans", SPANS)
def test_chance_has_a_say_in_what_is_kept(spans: Any) -> None:
    def kept(choice_temperature: float, recipe: int, seed: int = 0) -> list[Tensor]:
        config = DecodeConfig(
            steps=(8, 2, 2, 2), spans=spans, choice_temperature=choice_temperature
        )
        seen = []

        def predict(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
            seen.append(codes[:, stage] != GAP)
            return lessons(seed=recipe)(codes, stage, cfg_scale)

        decode(predict, gaps(2, 48), GAP, seeded(seed), config)
        return seen[1:8]

    # At first all of it; then less and less.
    same = [torch.equal(a, b) for a, b in zip(kept(1.0, 3), kept(1.0, 4), strict=True)]
    assert same[0]
    assert not same[-1]
    assert not torch.equal(kept(1.0, 3)[0], kept(1.0, 3, seed=1)[0])
    assert not torch.equal(kept(0.0, 3)[0], kept(0.0, 4)[0])


def test_finer_codebooks_may_be_cooler() -> None:
    def heats(fine_temperature: float, stage: int) -> list[float]:
        config = DecodeConfig(
            steps=(4, 4, 4, 4), temperature=2.0, fine_temperature=fine_temperature
        )
        return [moment.temperature for moment in decoding_steps(config, stage)]

    assert heats(1.0, 0) == heats(0.25, 0) == heats(1.0, 3) == [1.5, 1.0, 0.5, MIN_TEMPERATURE]
    assert heats(0.5, 1) == heats(0.5, 3) == [0.75, 0.5, 0.25, MIN_TEMPERATURE]
    assert heats(0.0, 1) == [MIN_TEMPERATURE] * 4


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (DecodeConfig(steps=(3, 3)), "steps of 4 codebooks"),
        (DecodeConfig(steps=(3, 3, 0, 3)), "steps of 4 codebooks"),
        (DecodeConfig(span=51), "in spans of 51"),
        (DecodeConfig(span=0), "in spans of 0"),
        (DecodeConfig(spans="both"), "there are nonoverlap and stride1"),  # type: ignore[arg-type]
        (DecodeConfig(top_p=1.1), "top-p 1.1"),
        (DecodeConfig(temperature=-1), "temperature -1"),
        (DecodeConfig(choice_temperature=1.5), "choice temperature 1.5"),
        (DecodeConfig(fine_temperature=-0.5), "fine temperature -0.5"),
        (DecodeConfig(temperature=float("nan")), "temperature nan"),
    ],
)
def test_settings_out_of_range_are_one_error(config: DecodeConfig, reason: str) -> None:
    with pytest.raises(LoopError, match=reason):
        decode(lessons(), gaps(), GAP, seeded(), config)


def test_rows_of_different_gaps_are_one_error() -> None:
    codes = gaps()
    codes[1, 2, 3] = 0
    with pytest.raises(LoopError, match="one by one"):
        decode(lessons(), codes, GAP, seeded())


# Checkpoints.


def test_a_checkpoint_is_what_was_saved(published: Published) -> None:
    model = published.model
    assert model.config == CONFIG
    assert published[1:] == (3, 1, "t5-base")
    assert model.device == torch.device("cpu")
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    found = model.state_dict()
    assert found.keys() == WEIGHTS.keys()
    for name, weight in WEIGHTS.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], weight.float())


def test_a_silent_configuration_means_the_published_sizes(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match=r"of another shape.*magnet"):
        load(saved(tmp_path, "lm_model: transformer_lm_magnet"))
    everywhere = ABOUT["config"].replace("subcodes_context: 5", "subcodes_context: -1")
    assert load(saved(tmp_path, everywhere)).model.config.context is None


def test_odd_weights_are_named(tmp_path: Path) -> None:
    wrong = {
        "out_norm.bias": None, "linears.0.weight": None, "linears.1.weight": None,
        "linears.2.weight": None, "linears.0.bias": torch.zeros(32),
        "emb.3.weight": torch.zeros(5, 64),
    }  # fmt: skip
    with pytest.raises(LoopError) as caught:
        load(saved(tmp_path, **wrong))
    said = str(caught.value)
    assert "linears.0.weight and linears.1.weight and linears.2.weight and 1 more missing" in said
    assert "linears.0.bias unknown" in said
    assert "emb.3.weight of another shape" in said
    assert "\n" not in said


class Bomb:
    """What touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain", [True, False])
def test_nothing_that_runs_is_read(plain: bool, tmp_path: Path) -> None:
    bomb = {"best_state": WEIGHTS, "xp.cfg": Bomb(tmp_path / "went off")}
    path = tmp_path / "state_dict.bin"
    if plain:
        path.write_bytes(pickle.dumps(bomb["xp.cfg"]))
    else:
        torch.save(bomb, path)
    with pytest.raises(LoopError, match="could run code and is not read") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "went off").exists()


MISFITS = {
    "lm_model is transformer_lm, not": ("transformer_lm_magnet", "transformer_lm"),
    "activation is relu": ("activation: gelu", "activation: relu"),
    "norm_first is False": ("norm_first: true", "norm_first: false"),
    "positional_embedding is rope": ("embedding: sin", "embedding: rope"),
    "causal is True": ("causal: false", "causal: true"),
    "fuser.cross is ": ("cross: [description]", "cross: [description, genre]"),
    "dim is wide, not a number": ("dim: 64", "dim: wide"),
    "num_layers is 0, not a number": ("num_layers: 2", "num_layers: 0"),
    "channels are not 5 heads": ("num_heads: 4", "num_heads: 5"),
    "of another shape": ("card: 32", "card: 33"),
    "layers.2.cross_attention.in_proj_weight and .* missing": ("num_layers: 2", "num_layers: 3"),
    "layers.1.cross_attention.in_proj_weight and .* unknown": ("num_layers: 2", "num_layers: 1"),
    "xp.cfg is no YAML": ("lm_model:", "[lm_model:"),
}


@pytest.mark.parametrize("reason", MISFITS)
def test_a_network_that_is_not_ours_is_one_error(reason: str, tmp_path: Path) -> None:
    assert MISFITS[reason][0] in ABOUT["config"]
    text = ABOUT["config"].replace(*MISFITS[reason])
    with pytest.raises(LoopError, match=reason) as caught:
        load(saved(tmp_path, text))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_one_error(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "state_dict.bin").read_bytes()
    broken = [None, b"", b"no pickle", whole[:1000], whole[:-1000], whole[1000:]]
    for data in broken:
        (tmp_path / "state_dict.bin").unlink(missing_ok=True)
        if data is not None:
            (tmp_path / "state_dict.bin").write_bytes(data)
        with pytest.raises(LoopError, match=r"state_dict.bin(: .*)?; (give|download)") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "lacks best_state or xp.cfg"),
        ({"best_state": {}}, "lacks best_state or xp.cfg"),
        ({"best_state": {}, "xp.cfg": {}}, "lacks best_state or xp.cfg"),
        ({"best_state": {"emb": 1}, "xp.cfg": ""}, "not of tensors alone"),
        ({"best_state": {}, "xp.cfg": ""}, "has no configuration of a model"),
        ({"best_state": {}, "xp.cfg": "[1]"}, "has no configuration of a model"),
    ],
)
def test_other_content_is_one_error(content: Any, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "state_dict.bin")
    with pytest.raises(LoopError, match=reason):
        load(tmp_path)


def test_without_yaml_it_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(LoopError, match="pip install pyyaml"):
        load(folder)


# Texts.


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of random weights and eight words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    out = tmp_path_factory.mktemp("t5")
    words = ["<pad>", "</s>", "<unk>", "slow", "dub", "warm", "bass", "drums"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(out)
    config = transformers.T5Config(
        vocab_size=8, d_model=768, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        transformers.T5EncoderModel(config).save_pretrained(out)
    return out


def test_a_text_becomes_states_and_none_becomes_nothing(
    text_folder: Path, model: Magnet, capfd: pytest.CaptureFixture[str]
) -> None:
    read = TextModel(str(text_folder))
    states, mask = read(["warm bass drums", "slow dub", ""])
    assert states.shape == (3, 4, 768)
    assert mask.tolist() == [[True] * 4, [True, True, True, False], [False] * 4]
    alone = read(["slow dub"])
    torch.testing.assert_close(states[1:2, :3], alone.states, atol=1e-5, rtol=1e-5)
    heard = model.condition(states, mask)
    assert torch.isfinite(heard).all()
    assert (heard[2] == 0).all()
    assert heard[0].std() > 0.1
    assert capfd.readouterr() == ("", "")


def test_a_text_model_that_is_not_there_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    for name in (str(tmp_path), "no/such-t5"):
        with pytest.raises(LoopError, match=r"no T5 can be had.*give t5-base") as caught:
            TextModel(name)
        assert "\n" not in str(caught.value)


def test_without_transformers_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install transformers"):
        TextModel()
    assert checkpoint.TEXT_MODEL == "t5-base"


@pytest.mark.parametrize("sharpness", [0.0, 0.3, 3.0, 100.0])
@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.9, 1.0])
def test_the_likeliest_codes_are_those_of_a_sort(sharpness: float, top_p: float) -> None:
    """Both are drawn from with the same numbers, and so give the same codes."""
    logits = torch.randn(3, 40, 500) * sharpness + torch.arange(500) * 1e-4  # no two are equal
    probabilities = logits.softmax(-1)
    sorted_, codes = probabilities.sort(dim=-1, descending=True)
    held = sorted_.cumsum(-1) - sorted_ <= top_p
    found, theirs = sort_top_p(probabilities, top_p)
    assert torch.equal(found.cumsum(-1) - found <= top_p, held)
    assert torch.equal(found[held], sorted_[held])
    likely = held & (sorted_ > 1e-30)
    assert torch.equal(theirs[likely], codes[likely])
