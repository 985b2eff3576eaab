"""Loops that a model fills in: a ring may be cut anywhere, and tiles make a ring of a line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from audioloop.conditioning import Conditioning, ConditioningTensors, stack
from audioloop.nn.circular import pad
from audioloop.tokens.magnet import loops
from audioloop.tokens.magnet.decode import DecodeConfig, Predict, Stride1Spans, decode
from audioloop.tokens.model import Masked, TokenConfig
from handmade import random_rolls, rotated
from midiloop.errors import LoopError

TINY = TokenConfig(
    dim=16, heads=2, layers=2, widening=2, codebooks=4, codebook_size=12, context=3, reach=5
)
GAP, BOOKS, SIZE = TINY.mask_token, TINY.codebooks, TINY.codebook_size
ROUND = DecodeConfig(
    steps=(6, 3, 2, 2), temperature=1.0, cfg_scale=2.0, spans="stride1", ring=True
)  # fmt: skip
LIKELIEST = replace(ROUND, top_p=0.0)
REACH = 2  # frames on either side that a model of lines hears, see `lines`
EXACT = 1e-12


pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


@pytest.fixture
def model() -> Masked:
    return Masked(TINY).double().requires_grad_(False)


def conditioning(rng: np.random.Generator, n_frames: int, n: int = 1) -> ConditioningTensors:
    rolls = random_rolls(rng, n)[:, :16]
    found = stack([Conditioning(roll, 16, 3, 33).on(n_frames, 50.0) for roll in rolls])
    return found._replace(frames=found.frames.double())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaps(n_frames: int, n: int = 1) -> Tensor:
    return torch.full((n, BOOKS, n_frames), GAP)


def some_known(n_frames: int, n: int = 1) -> Tensor:
    """A prompt in all codebooks, and some frames here and there in some of them."""
    codes = torch.where(torch.rand(BOOKS, n_frames) < 0.2, 1, GAP).expand(n, -1, -1).clone()
    codes[..., : n_frames // 3] = torch.randint(SIZE, (n, BOOKS, n_frames // 3))
    return codes


# On a ring.


@pytest.mark.parametrize("n_frames", [4, 41])
@pytest.mark.parametrize("start", [gaps, some_known])
def test_a_ring_may_be_cut_anywhere(
    start: Any, n_frames: int, model: Masked, rng: np.random.Generator
) -> None:
    codes, condition = start(n_frames), conditioning(rng, n_frames)
    found = decode(loops.ring(model, condition), codes, GAP, seeded(), LIKELIEST)
    assert n_frames < 9 or len(set(found.flatten().tolist())) > 6
    for by in (1, 3, 29):
        predict = loops.ring(model, rotated(condition, by))
        again = decode(predict, codes.roll(by, -1), GAP, seeded(), LIKELIEST)
        assert torch.equal(again, found.roll(by, -1))


@pytest.mark.parametrize("on", ["a line", "spans that end"])
def test_a_line_may_not_be_nor_where_spans_end(
    on: str, model: Masked, rng: np.random.Generator
) -> None:
    condition = conditioning(rng, 41)
    config = LIKELIEST if on == "a line" else replace(LIKELIEST, ring=False)

    def found(by: int) -> Tensor:
        predict = loops.predictor(model, rotated(condition, by), circular=on != "a line")
        return decode(predict, gaps(41), GAP, seeded(), config).roll(-by, -1)

    assert any(not torch.equal(found(by), found(0)) for by in (5, 20, 30))


def test_a_span_goes_round() -> None:
    uncertainty = torch.zeros(1, 10)
    uncertainty[0, [9, 0, 1]] = torch.tensor([5.0, 5.0, 1.0])
    inpaint_mask = Stride1Spans(3, ring=True).most_uncertain(uncertainty, 3)
    assert inpaint_mask[0].nonzero()[:, 0].tolist() == [0, 1, 9]
    ended = Stride1Spans(3).most_uncertain(uncertainty, 3)
    assert ended[0].nonzero()[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("n", [3, 10, 25, 41])
def test_as_many_are_opened_wherever_it_is_cut(n: int) -> None:
    uncertainty = torch.rand(2, 41)
    spans = Stride1Spans(3, ring=True)
    inpaint_mask = spans.most_uncertain(uncertainty, n)
    assert (abs(inpaint_mask.sum(1) - n) <= 3).all()
    assert torch.equal(spans.most_uncertain(uncertainty.roll(17, 1), n), inpaint_mask.roll(17, 1))


def test_spans_apart_have_a_first_one_and_a_ring_has_none() -> None:
    config = replace(ROUND, spans="nonoverlap")
    with pytest.raises(LoopError, match="use stride1"):
        decode(lines(30)(torch.arange(30)), gaps(30), GAP, seeded(), config)


# Asking.


def test_a_model_is_asked_twice_only_where_that_says_more(
    model: Masked, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    condition, codes = conditioning(rng, 20), some_known(20, 3)
    asked: list[int] = []
    forward = Masked.forward

    def counted(self: Masked, codes: Tensor, *args: Any, **options: Any) -> Tensor:
        asked.append(len(codes))
        return forward(self, codes, *args, **options)

    monkeypatch.setattr(Masked, "forward", counted)
    whole, free = (loops.ring(model, each) for each in (condition, condition.null()))
    one, three, none = whole(codes, 1, 1.0), whole(codes, 1, 3.0), free(codes, 1, 3.0)
    assert asked == [3, 6, 3]
    torch.testing.assert_close(three, none + 3 * (one - none), rtol=0, atol=EXACT)
    assert (one - none).abs().amax() > 0.1


def test_information_is_what_telling_adds_to_the_log_likelihood_of_a_code(
    model: Masked, rng: np.random.Generator
) -> None:
    condition, codes = conditioning(rng, 20), torch.randint(SIZE, (3, BOOKS, 20))
    whole = codes.clone()
    codes[:, 1:] = GAP
    hidden = codes.clone()
    hidden[:, 0, 7] = GAP
    with_, without = (
        model(hidden, each.repeated(3), 0, circular=True).log_softmax(-1)[torch.arange(3), 7]
        for each in (condition, condition.null())
    )
    wanted = (with_ - without)[torch.arange(3), codes[:, 0, 7]]
    seventh = torch.arange(20) == 7
    found = loops.mutual_information(model, codes, condition, seventh, seeded())
    torch.testing.assert_close(found, wanted, rtol=0, atol=EXACT)
    assert found.std() > 0.01
    # What later codebooks have is not heard, nor is there anything in being told nothing.
    again = loops.mutual_information(model, whole, condition, seventh, seeded())
    torch.testing.assert_close(again, found, rtol=0, atol=0)
    nothing = loops.mutual_information(model, codes, condition.null(), seventh, seeded())
    assert (nothing == 0).all()


def test_information_is_a_mean_over_all_open_frames(
    model: Masked, rng: np.random.Generator
) -> None:
    condition, codes = conditioning(rng, 20), torch.randint(SIZE, (2, BOOKS, 20))
    inpaint_mask = torch.arange(20) % 3 > 0
    half = torch.rand(20, generator=seeded(3)) < 0.5
    wanted = torch.zeros(2, dtype=torch.float64)
    for part in (inpaint_mask & half, inpaint_mask & ~half):
        hidden = codes.clone()
        hidden[:, 1:] = GAP
        hidden[:, 0, part] = GAP
        for sign, each in ((1, condition), (-1, condition.null())):
            said = model(hidden, each.repeated(2), 0, circular=True).log_softmax(-1)
            for row in range(2):
                frames = part.nonzero()[:, 0]
                wanted[row] += sign * said[row, frames, codes[row, 0, frames]].sum()
    found = loops.mutual_information(model, codes, condition, inpaint_mask, seeded(3))
    torch.testing.assert_close(found, wanted / inpaint_mask.sum(), rtol=0, atol=EXACT)


def test_information_does_not_depend_on_the_rest_of_the_batch(
    model: Masked, rng: np.random.Generator
) -> None:
    condition, tokens = conditioning(rng, 20), torch.randint(SIZE, (6, BOOKS, 20))
    inpaint_mask = torch.arange(20) % 3 > 0

    def information(rows: Tensor, *seeds: int) -> Tensor:
        generators = [seeded(seed) for seed in seeds]
        return loops.mutual_information(model, rows, condition, inpaint_mask, generators)

    alone = [information(rows, seed) for seed, rows in enumerate(tokens.chunk(3))]
    torch.testing.assert_close(information(tokens, 0, 1, 2), torch.cat(alone), rtol=0, atol=EXACT)


def test_each_loop_of_a_batch_is_told_its_own(model: Masked, rng: np.random.Generator) -> None:
    condition, codes = conditioning(rng, 20, 2), some_known(20, 4)
    together = loops.ring(model, condition)(codes, 0, 2.0)
    for row in range(4):
        own = ConditioningTensors(*(each[row // 2][None] for each in condition))
        alone = loops.ring(model, own)(codes[row][None], 0, 2.0)
        torch.testing.assert_close(together[row][None], alone, rtol=0, atol=EXACT)


def test_later_codebooks_are_not_heard_even_where_they_are_known(
    model: Masked, rng: np.random.Generator
) -> None:
    predict, codes = loops.ring(model, conditioning(rng, 20)), some_known(20)
    blank = codes.clone()
    blank[:, 2:] = GAP
    assert torch.equal(predict(codes, 1, 2.0), predict(blank, 1, 2.0))
    assert (codes[:, 2:] != GAP).any()  # and what was asked about is as it was


# By tiles.


def lines(tile: int) -> loops.LinePredictor:
    """A model of lines that hears a few frames, and what is told of a ring there."""
    return _model(tile)[0]


def on_ring(tile: int) -> Predict:
    """The same on the ring itself."""
    return _model(tile)[1]


def _model(tile: int) -> tuple[loops.LinePredictor, Predict]:
    heard = torch.randn(BOOKS, SIZE, SIZE + 1, 2 * REACH + 1, generator=seeded(1)).double()
    here = torch.randn(tile, SIZE, generator=seeded(2)).double()

    def on(places: Tensor, *, circular: bool = False) -> Predict:
        def predict(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
            assert codes.shape[-1] == len(places)
            x = F.one_hot(codes[:, stage], SIZE + 1).double().mT
            found = F.conv1d(pad(x, REACH, REACH, circular=circular), heard[stage])
            return found.mT * cfg_scale + here[places % tile]

        return predict

    return on, on(torch.arange(tile), circular=True)


TILES = [
    (30, 100), (33, 100), (20, 60), (1, 60), (50, 100),
    (50, 60), (37, 60), (40, 40), (41, 41), (42, 43), (9, 9),
]  # fmt: skip


@pytest.mark.parametrize(("tile", "window"), TILES)
def test_tiles_are_a_ring_where_a_window_shows_enough_of_it(tile: int, window: int) -> None:
    predict, wanted = loops.tiled(lines(tile), tile, window), on_ring(tile)
    codes = torch.randint(SIZE + 1, (2, BOOKS, tile))
    found = predict(codes, 2, 1.5)
    torch.testing.assert_close(found, wanted(codes, 2, 1.5), rtol=0, atol=EXACT)
    config = replace(ROUND, span=min(3, tile))
    written = [decode(ask, gaps(tile), GAP, seeded(5), config) for ask in (predict, wanted)]
    assert torch.equal(*written)


@pytest.mark.parametrize("tile", [30, 40, 59, 60])
def test_a_tile_is_asked_about_once_or_twice_in_whole_windows(tile: int) -> None:
    shown: list[int] = []

    def line(places: Tensor) -> Predict:
        def predict(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
            shown.append(codes.shape[-1])
            return torch.zeros(1, codes.shape[-1], SIZE)

        return predict

    assert loops.tiled(line, tile, 80)(gaps(tile), 0, 1.0).shape == (1, tile, SIZE)
    assert shown == ([80] if tile == 30 else [80, 80])


@pytest.mark.parametrize("tile", [0, 61])
def test_a_loop_longer_than_the_window_is_one_error(tile: int) -> None:
    with pytest.raises(LoopError, match=r"does not fit into the model's window of 60; give fewer"):
        loops.tiled(lines(61), tile, 60)


@pytest.mark.parametrize("known", [0, 5])
def test_neither_does_it_fit_as_loopgen_does_it(known: int) -> None:
    codes = gaps(61)
    codes[..., :known] = 1
    with pytest.raises(LoopError, match="does not fit"):
        loops.loopgen(lines(61)(torch.arange(60)), codes, 60, GAP, seeded(), OPEN)


@pytest.mark.parametrize("window", [120, 40])
def test_a_line_that_is_tiled_is_nearer_to_the_ring_than_one_that_ends(
    window: int, model: Masked, rng: np.random.Generator
) -> None:
    condition = conditioning(rng, 40)
    codes = torch.randint(SIZE + 1, (1, BOOKS, 40))
    line = loops.line_predictor(model, condition)
    wanted = loops.ring(model, condition)(codes, 1, 1.0)
    by_tiles = loops.tiled(line, 40, window)(codes, 1, 1.0)
    ended = line(torch.arange(40))(codes, 1, 1.0)
    seam = [-3, -2, -1, 0, 1, 2]
    off = [(each - wanted)[:, seam].abs().mean() for each in (by_tiles, ended)]
    assert off[0] < 0.2 * off[1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("by", ["ring", "tiles"])
def test_what_is_known_never_changes(by: str, seed: int, rng: np.random.Generator) -> None:
    random = np.random.default_rng(seed)
    tile = int(random.integers(9, 50))
    window = tile + int(random.integers(0, 40))
    predict = on_ring(tile) if by == "ring" else loops.tiled(lines(tile), tile, window)
    codes = some_known(tile, 2)
    config = DecodeConfig(
        steps=tuple(random.integers(1, 9, BOOKS).tolist()),
        temperature=float(random.uniform(0, 4)),
        fine_temperature=float(random.uniform(0, 1)),
        top_p=float(random.uniform(0, 1)),
        cfg_scale=float(random.uniform(0, 4)),
        choice_temperature=float(random.uniform(0, 1)),
        spans="stride1",
        span=int(random.integers(1, 6)),
        ring=bool(seed % 2),
    )
    found = decode(predict, codes, GAP, seeded(seed), config)
    known = codes != GAP
    assert torch.equal(found[known], codes[known])
    assert found.max() < GAP


# As LoopGen's code does it.

OPEN = DecodeConfig(steps=(20, 4, 2, 2), temperature=1.0, cfg_scale=1.0, spans="stride1")


class Shown(list[tuple[int, Tensor]]):
    """The stages and the codes that a model was asked about."""

    def on(self, predict: Predict) -> Predict:
        def asked(codes: Tensor, stage: int, cfg_scale: float) -> Tensor:
            self.append((stage, codes.clone()))
            return predict(codes, stage, cfg_scale)

        return asked


def as_loopgen(codes: Tensor, window: int) -> tuple[Tensor, Shown]:
    shown = Shown()
    tile = codes.shape[-1]
    places = torch.arange(window) - loops.margin(codes, window, GAP)
    predict = shown.on(lines(tile)(places))
    return loops.loopgen(predict, codes, window, GAP, seeded(), OPEN), shown


def as_we_do(codes: Tensor, window: int) -> tuple[Tensor, Shown]:
    shown = Shown()
    tile = codes.shape[-1]
    line = lines(tile)
    predict = loops.tiled(lambda places: shown.on(line(places)), tile, window)
    return decode(predict, codes, GAP, seeded(), replace(OPEN, ring=True)), shown


def stale(codes: Tensor, left: int, tile: int) -> float:
    """Share of a window's padding (T,) that is not what its tile has there."""
    places = torch.arange(len(codes)) - left
    padding = (places < 0) | (places >= tile)
    return float((codes != codes[left + places % tile])[padding].float().mean())


def test_padding_uses_up_half_of_what_may_be_opened() -> None:
    tile, window = 250, 500
    wanted = int(np.cos(np.pi / 2 * 4 / 19) * tile)
    assert wanted == 236
    inpaint_mask = []
    for way in (as_loopgen, as_we_do):
        _, shown = way(gaps(tile), window)
        fifth = [codes for stage, codes in shown if stage == 0][4]
        inpaint_mask.append(int((fifth[0, 0, 125:375] == GAP).sum()))
    assert 0.4 * wanted < inpaint_mask[0] < 0.6 * wanted
    assert abs(inpaint_mask[1] - wanted) <= 2


def test_padding_is_stale_after_the_last_step_of_a_stage() -> None:
    shares: list[list[float]] = [[], []]
    for seed in range(8):
        # Of a network that knows where in its window a frame is.
        logits = 3 * torch.randn(BOOKS, 1, 80, SIZE, generator=seeded(seed))

        def says(codes: Tensor, stage: int, cfg_scale: float, said: Tensor = logits) -> Tensor:
            return said[stage]

        theirs, ours = Shown(), Shown()
        loops.loopgen(theirs.on(says), gaps(30), 80, GAP, seeded(seed), OPEN)
        asked = ours.on(says)
        around = loops.tiled(lambda _, asked=asked: asked, 30, 80)  # type: ignore[misc]
        decode(around, gaps(30), GAP, seeded(seed), replace(OPEN, ring=True))
        for share, shown in zip(shares, (theirs, ours), strict=True):
            share += [stale(codes[0, 0], 25, 30) for stage, codes in shown if stage == 1]
    assert 0 < np.mean(shares[0]) < 0.1
    assert not any(shares[1])


def test_a_prompt_takes_away_what_is_on_the_left() -> None:
    codes = gaps(50)
    assert loops.margin(codes, 120, GAP) == 35
    codes[..., :10] = 1
    assert loops.margin(codes, 120, GAP) == 0
    ours = [shown for _, shown in as_we_do(codes, 120)[1]]
    assert all((shown[..., 35:45] == 1).all() for shown in ours)  # after 35 of the loop's end


def test_a_loop_as_long_as_the_window_does_not_go_round() -> None:
    tile = 40
    line = lines(tile)
    loop, _ = as_loopgen(gaps(tile), tile)
    assert loops.margin(loop, tile, GAP) == loops.margin(gaps(tile), tile, GAP) == 0
    ended = decode(line(torch.arange(tile)), gaps(tile), GAP, seeded(), OPEN)
    assert torch.equal(loop, ended)
    ours, _ = as_we_do(gaps(tile), tile)
    around = decode(on_ring(tile), gaps(tile), GAP, seeded(), replace(OPEN, ring=True))
    assert torch.equal(ours, around)
    assert not torch.equal(around, ended)


def test_a_prompt_may_be_opened() -> None:
    changed = []
    for seed in range(6):
        codes = gaps(40)
        codes[..., 8:20] = torch.randint(SIZE, (1, BOOKS, 12), generator=seeded(seed))
        found = [way(codes, 80)[0] for way in (as_loopgen, as_we_do)]
        changed.append([int((each != codes)[..., 8:20].sum()) for each in found])
    theirs, ours = np.sum(changed, 0)
    assert theirs > 0
    assert ours == 0


def test_spans_end_at_the_seam() -> None:
    with pytest.raises(LoopError, match="end at the seam"):
        loops.loopgen(lines(40)(torch.arange(80)), gaps(40), 80, GAP, seeded(), ROUND)


def test_what_is_known_of_one_codebook_is_copied_to_its_padding_too() -> None:
    codes = gaps(30)
    codes[:, 0] = torch.randint(SIZE, (1, 30))
    _, shown = as_loopgen(codes, 60)
    assert {stage for stage, _ in shown} == {1, 2, 3}
    left = loops.margin(codes, 60, GAP)
    assert not any(stale(seen[0, 0], left, 30) for _, seen in shown)
