"""Training of models of codes: what they are given, and that they learn from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audioloop.codec import compression, encoded_dataset
from audioloop.codec.encoded_dataset import EncodedLoop
from audioloop.conditioning import NOTES, NULL_PROGRAM, Conditioning, ConditioningTensors, stack
from audioloop.tokens import train as token_train
from audioloop.tokens.model import TokenConfig
from audioloop.tokens.pretrained import KINDS
from audioloop.tokens.train import (
    TASKS,
    MaskedTask,
    TokenRecipe,
    TokenTask,
    random_spans,
    with_dropout,
    with_masks,
)
from handmade import random_rolls
from midiloop.common import checkpoint
from midiloop.common.engine import Inline
from midiloop.common.train_config import Budget, TrainConfig
from midiloop.common.trainer import Result, Trainer
from midiloop.dataset.parquet import LoopDataset
from midiloop.errors import CallError, LoopError
from small_codecs import saved
from soundfonts import bundled

CONFIG = TokenConfig(
    dim=32, heads=2, layers=2, widening=2, codebooks=3, codebook_size=64, reach=5, codec="tests"
)
RECIPE = TokenRecipe(line=40)
ALL = TokenRecipe(line=40, unconditional=0.0, without_notes=0.0, without_program=0.0)
BUDGET, ONCE = Budget(steps=6), Budget(steps=1)
SETTINGS = replace(token_train.TRAINING, batch_size=1, save_every_s=0)
CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
LENGTHS = (32, 48, 32, 48)
both = pytest.mark.parametrize("kind", ["masked", "causal"])


@pytest.fixture(scope="module", autouse=True)
def _one_thread_and_short_loops() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_train, "LOOP_FRAMES", 80)
        patch.setattr(token_train, "VALID_FRAMES", 60)
        yield
    torch.set_num_threads(before)


def numbered(number: int, n_frames: int) -> EncodedLoop:
    """A loop whose codes say which one it is, and which frame."""
    roll = random_rolls(np.random.default_rng(number), 1)[0, :16]
    codes = torch.arange(n_frames).expand(CONFIG.codebooks, -1).clone()
    codes[1] = number
    return EncodedLoop(codes, Conditioning(roll, 16, number, 32 + number))


def repeating(number: int, n_frames: int) -> EncodedLoop:
    """A loop of eight frames of random codes, again and again."""
    rng = torch.Generator().manual_seed(number)
    bar = torch.randint(CONFIG.codebook_size, (CONFIG.codebooks, 8), generator=rng)
    conditioning = numbered(number, n_frames).conditioning
    return EncodedLoop(bar.repeat(1, n_frames // 8), conditioning)


LOOPS = [numbered(number, n_frames) for number, n_frames in enumerate(LENGTHS)]


def task(
    kind: str,
    recipe: TokenRecipe = RECIPE,
    config: TokenConfig = CONFIG,
    of: Callable[[int, int], EncodedLoop] = numbered,
    heard: str = "tests",
    seed: int = 0,
) -> TokenTask:
    loops = [of(number, n_frames) for number, n_frames in enumerate(LENGTHS)]
    return TASKS[kind](kind, config, recipe, seed, loops, loops, 50.0, CPU, {"dataset": heard})


def run(
    folder: Path,
    kind: str,
    *,
    budget: Budget = BUDGET,
    settings: TrainConfig = SETTINGS,
    resume: bool = False,
    **more: Any,
) -> Result:
    made = task(kind, seed=settings.seed, **more)
    return Trainer(made, budget, settings).fit(folder, about={"of": "tests"}, resume=resume)


def run_until(at: int, folder: Path, kind: str, *, resume: bool = False) -> None:
    """A run that is interrupted in the step ``at``, counted from 0."""
    step = Trainer._step

    def stopping(running: Trainer) -> dict[str, Tensor]:
        if running.step == at:
            raise KeyboardInterrupt
        return step(running)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(folder, kind, resume=resume)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module", params=["masked", "causal"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of either kind that nobody interrupted; its folder is called as the kind."""
    folder: Path = tmp_path_factory.mktemp("whole") / request.param
    run(folder, request.param)
    return folder


# Gaps.


@pytest.mark.parametrize("span", [1, 3, 5])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_about_the_asked_share_is_open(span: int, share: float, rng: np.random.Generator) -> None:
    found = random_spans([share] * 400, 150, span, rng)
    assert found.shape == (400, 150)
    assert found.dtype == np.bool_
    assert found.mean() == pytest.approx(share, abs=0.02)


def test_each_row_has_a_share_of_its_own(rng: np.random.Generator) -> None:
    shares = np.linspace(0.1, 0.9, 9)
    assert random_spans(shares, 5_000, 3, rng).mean(1) == pytest.approx(shares, abs=0.02)


@pytest.mark.parametrize("n_frames", [16, 37])
@pytest.mark.parametrize("span", [1, 3, 5])
def test_gaps_are_spans_from_anywhere_round_the_ring(
    span: int, n_frames: int, rng: np.random.Generator
) -> None:
    found = random_spans([0.4] * 500, n_frames, span, rng)
    begins = found & ~np.roll(found, 1, 1)
    for after in range(span):
        assert np.roll(found, -after, 1)[begins].all()
    assert (found[:, 0] & found[:, -1] & ~found[:, span - 1 if span > 1 else 1]).any()
    assert found.mean(0) == pytest.approx(found.mean(), abs=0.1)


@pytest.mark.parametrize("share", [0.0, 1e-9, 1.0])
@pytest.mark.parametrize("n_frames", [1, 2, 50])
def test_something_is_always_open(share: float, n_frames: int, rng: np.random.Generator) -> None:
    found = random_spans([share] * 20, n_frames, 3, rng)
    assert found.any(1).all()
    if share == 1:
        assert found.mean() > 0.99
    else:
        assert (found.sum(1) == min(3, n_frames)).all()


@pytest.mark.parametrize("stage", range(3))
def test_one_codebook_has_gaps_those_before_it_none_and_those_after_it_only(stage: int) -> None:
    codes = torch.randint(64, (2, 3, 20))
    before, open_ = codes.clone(), torch.rand(2, 20) < 0.4
    given = with_masks(codes, stage, open_, 64)
    assert torch.equal(codes, before)
    for book in range(3):
        mask_token = open_ if book == stage else torch.full_like(open_, book > stage)
        assert torch.equal(given[:, book] == 64, mask_token)
        assert torch.equal(given[:, book][~mask_token], codes[:, book][~mask_token])


# What is told.


def many(n: int) -> ConditioningTensors:
    return stack([LOOPS[0].conditioning.on(32, 50.0)]).repeated(n)


def parts(condition: ConditioningTensors) -> dict[str, Tensor]:
    """Of which loops what is said: bool (B,)."""
    return {
        "notes": condition.frames[:, :NOTES].flatten(1).any(1),
        "beat": condition.frames[:, NOTES:].flatten(1).any(1),
        "kit": condition.kit != NULL_PROGRAM,
        "bass": condition.bass != NULL_PROGRAM,
    }


def test_nothing_is_dropped_that_is_not_to_be(rng: np.random.Generator) -> None:
    whole = many(50)
    assert all(
        torch.equal(*pair) for pair in zip(with_dropout(whole, ALL, rng), whole, strict=True)
    )


def test_all_is_dropped_that_is_to_be(rng: np.random.Generator) -> None:
    whole = many(50)
    found = with_dropout(whole, TokenRecipe(unconditional=1.0), rng)
    assert all(torch.equal(*pair) for pair in zip(found, whole.null(), strict=True))
    said = parts(
        with_dropout(
            whole, TokenRecipe(unconditional=0.0, without_notes=1.0, without_program=1.0), rng
        )
    )
    assert not (said["notes"] | said["kit"] | said["bass"]).any()
    assert 20 <= said["beat"].sum() <= 45


def test_shares_of_what_is_dropped(rng: np.random.Generator) -> None:
    whole = many(4000)
    found = with_dropout(
        whole, TokenRecipe(unconditional=0.1, without_notes=0.3, without_program=0.2), rng
    )
    said = parts(found)
    share = {name: float((~of).float().mean()) for name, of in said.items()}
    notes, beat, programs = (0.1 + 0.9 * share for share in (0.3, 0.3 / 3, 0.2))
    assert share == pytest.approx(
        {"notes": notes, "beat": beat, "kit": programs, "bass": programs}, abs=0.03
    )
    assert not (~said["beat"] & said["notes"]).any()  # notes without a beat are never told
    together = ~said["kit"] & ~said["bass"] & ~said["notes"]
    assert float(together.float().mean()) == pytest.approx(0.1 + 0.9 * 0.3 * 0.2**2, abs=0.03)
    conditioning = whole.frames[:1]
    assert torch.equal(found.frames[said["notes"]][:5], conditioning.expand(5, -1, -1))
    beat_only = found.frames[~said["notes"] & said["beat"]][:5]
    assert torch.equal(beat_only[:, NOTES:], conditioning[:, NOTES:].expand(5, -1, -1))


# What batches are of.


def check_aligned(codes: Tensor, condition: ConditioningTensors) -> None:
    """Codes and what is told are of the same loop, and of the same frames of it."""
    for row, (frames, kit) in enumerate(zip(condition.frames, condition.kit, strict=True)):
        loop = LOOPS[int(codes[row, 1, 0])]
        n_frames = loop.codes.shape[1]
        places = (codes[row, 0, 0] + torch.arange(codes.shape[2])) % n_frames
        assert torch.equal(codes[row], loop.codes[:, places])
        assert torch.equal(frames, loop.conditioning.on(n_frames, 50.0).frames[0, :, places])
        assert kit == loop.conditioning.kit


@both
def test_lines_go_round_loops_from_anywhere(kind: str) -> None:
    made = task(kind, replace(ALL, line=60))
    codes, condition = made.lines(30, np.random.default_rng(0))
    assert codes.shape == (40, 3, 60)  # as many frames as 30 loops of 80
    check_aligned(codes, condition)
    assert len(set(codes[:, 0, 0].tolist())) > 15
    assert set(codes[:, 1, 0].tolist()) == {0, 1, 2, 3}


def test_rings_are_whole_loops_of_one_length() -> None:
    made = task("masked", ALL)
    assert isinstance(made, MaskedTask)
    seen = set()
    for seed in range(20):
        codes, condition = made._circular(5, np.random.default_rng(seed))
        check_aligned(codes, condition)
        assert codes.shape[2] in LENGTHS
        assert not codes[:, 0, 0].any()
        assert sorted(codes[:, 1, 0].tolist()) == ([0, 2] if codes.shape[2] == 32 else [1, 3])
        seen.add(codes.shape[2])
    assert seen == {32, 48}


class Seen(nn.Module):
    """Notes what `Masked` is given, and expects of every code the same."""

    def __init__(self) -> None:
        super().__init__()
        self.config = CONFIG
        self.given: list[tuple[Tensor, int, bool]] = []

    def forward(
        self, codes: Tensor, _: ConditioningTensors, stage: int, *, circular: bool
    ) -> Tensor:
        self.given.append((codes, stage, circular))
        return torch.zeros(len(codes), codes.shape[2], CONFIG.codebook_size)


def seen(recipe: TokenRecipe, n_steps: int) -> list[tuple[Tensor, int, bool]]:
    made, stub = task("masked", recipe=recipe), Seen()
    model: Any = stub
    made.model = model
    for number in range(n_steps):
        loss = made.loss(made.batch(number, 1, np.random.default_rng([0, number])))
        assert float(loss) == pytest.approx(math.log(CONFIG.codebook_size))
    return stub.given


def test_every_so_many_steps_are_lines() -> None:
    for line_every, expected in ((3, [True, True, False] * 2), (1, [False] * 6), (0, [True] * 6)):
        given = seen(replace(RECIPE, line_every=line_every), 6)
        assert [circular for *_, circular in given] == expected
        for codes, _, circular in given:
            assert codes.shape[2] in (LENGTHS if circular else (RECIPE.line,))


def test_codebooks_are_filled_in_their_shares() -> None:
    stages = [stage for _, stage, _ in seen(replace(RECIPE, first=0.4), 400)]
    found = np.bincount(stages, minlength=3) / 400
    assert found == pytest.approx([0.4, 0.3, 0.3], abs=0.08)
    assert {stage for _, stage, _ in seen(replace(RECIPE, first=1.0), 20)} == {0}
    assert {stage for _, stage, _ in seen(replace(RECIPE, first=0.0), 40)} == {1, 2}


def test_gaps_are_as_many_as_a_quarter_of_a_cosine_says() -> None:
    shares = []
    for codes, stage, _ in seen(replace(RECIPE, span=1), 400):
        shares += (codes[:, stage] == CONFIG.mask_token).float().mean(-1).tolist()
        assert (codes[:, stage + 1 :] == CONFIG.mask_token).all()
        assert (codes[:, :stage] != CONFIG.mask_token).all()
    expected = np.cos((np.arange(9) + 1) / 10 * np.pi / 2)[::-1]
    assert np.quantile(shares, (np.arange(9) + 1) / 10) == pytest.approx(expected, abs=0.08)


# What is learned.


@both
@torch.no_grad()
def test_a_model_that_expects_nothing_is_as_bad_as_chance(kind: str) -> None:
    made = task(kind)
    for head in made.model.heads:
        assert isinstance(head, nn.Linear)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    chance = pytest.approx(math.log(CONFIG.codebook_size))
    assert made.validate(made.model) == {"nats": chance, "nats_unconditional": chance}
    assert float(made.loss(made.batch(0, 1, np.random.default_rng(0)))) == chance


@both
def test_a_model_learns(kind: str, tmp_path: Path) -> None:
    settings = TrainConfig(
        batch_size=4,
        learning_rate=1e-2,
        warmup_steps=5,
        ema_decay=0.9,
        validate_every=5,
        save_every_s=1e9,
    )
    budget = Budget(steps=90)
    found = run(tmp_path, kind, budget=budget, settings=settings, recipe=ALL, of=repeating).history
    assert found[-1]["nats"] < 0.6 * found[0]["nats"]
    assert found[-1]["loss"] < 0.6 * found[0]["loss"]
    assert found[-1]["nats"] < found[-1]["nats_unconditional"]  # for it heard which loop it is


@both
def test_products_of_half_as_many_bits_are_about_the_same(kind: str) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        made = task(kind)
        once = Trainer(made, BUDGET, replace(SETTINGS, precision=precision))
        losses.append(float(once._step()["loss"]))
        assert all(weight.dtype == torch.float32 for weight in made.model.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


# Going on.


def test_a_run_that_was_interrupted_ends_bit_for_bit_as_one_that_was_not(
    whole: Path, tmp_path: Path
) -> None:
    for number, at in enumerate((0, 1, 4)):
        run_until(at, tmp_path, whole.name, resume=number > 0)
    assert run(tmp_path, whole.name, resume=True).steps == BUDGET.steps
    assert (tmp_path / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_another_seed_is_another_run(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, whole.name, settings=replace(SETTINGS, seed=1))
    assert (tmp_path / WEIGHTS).read_bytes() != (whole / WEIGHTS).read_bytes()


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "more steps": ({"budget": Budget(steps=7)}, "steps 6, not 7"),
    "another seed": ({"settings": replace(SETTINGS, seed=1)}, "seed 0, not 1"),
    "another recipe": (
        {"recipe": replace(RECIPE, without_program=0.5)},
        "without_program 0.12, not 0.5",
    ),
    "another precision": (
        {"settings": replace(SETTINGS, precision="bfloat16")},
        "precision 'float32', not 'bfloat16'",
    ),
    "another model": ({"config": replace(CONFIG, heads=4)}, "another model"),
    "codes of another codec": ({"config": replace(CONFIG, codec="other")}, "another model"),
    "other loops": ({"heard": "others"}, "another dataset"),
}


@pytest.mark.parametrize(("other", "says"), OTHERS.values(), ids=OTHERS)
def test_a_run_goes_on_only_as_it_was_begun(other: dict[str, Any], says: str, whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(CallError, match=f"the run was begun with {says}; resume it as") as bad:
        run(whole, whole.name, resume=True, **other)
    assert "\n" not in str(bad.value)
    assert contents(whole) == before


def test_a_run_of_the_other_kind_is_another_run(whole: Path) -> None:
    (other,) = {"masked", "causal"} - {whole.name}
    with pytest.raises(CallError, match="the run was begun with another model"):
        run(whole, other, resume=True)


# On disk.


def test_a_model_comes_back_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    model, kind, about = checkpoint.load_any(whole, KINDS)
    assert kind == whole.name
    assert isinstance(model, KINDS[kind].model)
    assert model.config == CONFIG
    assert not model.training
    assert about["of"] == "tests"
    made = task(kind)
    made.save(tmp_path, model, {})
    assert (tmp_path / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    again, *_ = checkpoint.load_any(tmp_path, KINDS)
    with torch.no_grad():
        figures = [made.validate(one) for one in (model, again)]
    assert figures[0] == figures[1]
    history = json.loads((whole / "training.json").read_text())["history"]
    assert history[-1]["nats"] == figures[0]["nats"]


# From a dataset.


@pytest.fixture
def codec(tmp_path: Path) -> Path:
    return saved(tmp_path / "codec", 8)


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_dataset, "LOOPS_A_SHARD", 2)
    monkeypatch.setattr(token_train, "N_VALID", 1)


@pytest.mark.usefixtures("_few")
def test_both_kinds_are_trained_from_a_dataset_on_the_same_loops(
    dataset: LoopDataset, codec: Path, tmp_path: Path
) -> None:
    budget = Budget(steps=2)
    name, folders = tmp_path / "loops", []
    for kind in ("masked", "causal"):
        seen: list[int] = []
        result = token_train.tokens(
            kind, dataset, tmp_path / kind, budget, bundled(), training=SETTINGS, n_loops=3,
            folder=name, codec=codec, config=CONFIG, recipe=RECIPE, device=CPU, engine=Inline(),
            on_encoded=seen.append,
        )  # fmt: skip
        assert (result.steps, len(result.history)) == (2, 1)
        assert all(math.isfinite(value) for value in result.history[0].values())
        assert bool(seen) == (kind == "masked")  # the other finds them
        folders.append({path: path.stat().st_ino for path in name.rglob("*.*")})
        model, found, about = checkpoint.load_any(tmp_path / kind, KINDS)
        assert found == kind
        shape = compression.load(codec)
        expected = replace(
            CONFIG, codebooks=4, codebook_size=32, codec=encoded_dataset.encode_loop(shape)
        )
        assert model.config == expected
        assert about["trained"]["steps"] == 2
        assert about["data"]["loops"] == 3
        assert about["data"]["soundfonts"] == [bundled().name]
        assert about["data"]["rules"] == dataset.manifest["rules"]["name"]
    assert folders[0] == folders[1]
    assert {path.parent.name for path in folders[0]} == {"train", "valid"}


@pytest.mark.usefixtures("_few")
def test_what_is_kept_is_of_the_dataset_and_the_soundfont_that_were_asked_for(
    dataset: LoopDataset, reordered: LoopDataset, codec: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "n_loops": 2,
        "codec": codec,
        "config": CONFIG,
        "device": CPU,
        "engine": Inline(),
        "training": SETTINGS,
    }
    token_train.tokens("causal", dataset, tmp_path / "run", ONCE, bundled(), **given)
    about = checkpoint.read_config(tmp_path / "run")
    assert about["data"]["fingerprint"] == dataset.fingerprint
    again = {**given, "resume": True}
    with pytest.raises(CallError, match="holds loops that were coded with another dataset"):
        token_train.tokens("causal", reordered, tmp_path / "run", ONCE, bundled(), **again)
    elsewhere = {**again, "folder": tmp_path / "coded"}
    with pytest.raises(CallError, match="the run was begun with another dataset; resume it"):
        token_train.tokens("causal", reordered, tmp_path / "run", ONCE, bundled(), **elsewhere)
    font = tmp_path / bundled().name  # of the same name and size
    data = bytearray(bundled().read_bytes())
    data[data.index(b"INAM") + 8] ^= 1
    font.write_bytes(data)
    with pytest.raises(CallError, match="holds loops that were coded with another SoundFont"):
        token_train.tokens("causal", dataset, tmp_path / "run", ONCE, font, **again)
    token_train.tokens("causal", dataset, tmp_path / "run", ONCE, bundled(), **again)


@pytest.mark.parametrize("empty", ["train", "valid"])
def test_an_empty_split_is_seen_before_anything_is_rendered(
    empty: str, dataset: LoopDataset, codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select = LoopDataset.select

    def less(self: LoopDataset, **asked: Any) -> Iterator[Any]:
        return iter(()) if asked.get("split") == empty else select(self, **asked)

    def rendered(*_: Any) -> None:
        raise AssertionError("rendered")

    monkeypatch.setattr(LoopDataset, "select", less)
    monkeypatch.setattr(encoded_dataset, "do_job", rendered)
    given: dict[str, Any] = {
        "n_loops": 2,
        "codec": codec,
        "config": CONFIG,
        "device": CPU,
        "engine": Inline(),
        "training": SETTINGS,
    }
    with pytest.raises(LoopError, match=f"no loop is in the {empty} split"):
        token_train.tokens("masked", dataset, tmp_path / "run", ONCE, bundled(), **given)
    odd = {**given, "config": replace(CONFIG, heads=5)}
    with pytest.raises(CallError, match="sizes that no masked model can have"):
        token_train.tokens("masked", dataset, tmp_path / "run", ONCE, bundled(), **odd)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_few")
def test_loops_are_kept_beside_the_run_unless_said_otherwise(
    dataset: LoopDataset, codec: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "n_loops": 2,
        "codec": codec,
        "config": CONFIG,
        "device": CPU,
        "engine": Inline(),
        "training": SETTINGS,
    }
    token_train.tokens("causal", dataset, tmp_path / "run", ONCE, bundled(), **given)
    found = {path.name for path in (tmp_path / "run" / "coded").iterdir()}
    assert found == {"train", "valid"}
    with pytest.raises(CallError, match="a run is there already"):
        token_train.tokens("causal", dataset, tmp_path / "run", ONCE, bundled(), **given)


@pytest.mark.usefixtures("_few")
def test_a_model_that_learns_more_begins_as_it_was(
    dataset: LoopDataset, codec: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "n_loops": 2, "folder": tmp_path / "loops", "codec": codec, "config": CONFIG, "device": CPU,
        "training": SETTINGS, "engine": Inline(),
    }  # fmt: skip
    token_train.tokens("causal", dataset, tmp_path / "run", ONCE, bundled(), **given)
    # So small a rate moves no weight: what comes out is what it began with.
    still = replace(SETTINGS, learning_rate=1e-30)
    more = {**given, "training": still, "init_from": tmp_path / "run", "config": None}
    token_train.tokens("causal", dataset, tmp_path / "more", ONCE, bundled(), **more)
    before, after = (checkpoint.load_any(tmp_path / name, KINDS)[0] for name in ("run", "more"))
    for name, weight in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], weight, rtol=1e-6, atol=0)
    elsewhere = {**more, "init_from": codec}
    with pytest.raises(LoopError, match="no model is called 'codec'; there are masked, causal"):
        token_train.tokens("masked", dataset, tmp_path / "other", ONCE, bundled(), **elsewhere)
    strange = {**more, "codec": saved(tmp_path / "strange", 9)}
    with pytest.raises(LoopError, match="another codec"):
        token_train.tokens("causal", dataset, tmp_path / "other", ONCE, bundled(), **strange)


def test_a_model_begins_with_what_it_has_in_common_with_one_of_the_other_kind(
    dataset: LoopDataset, codec: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "n_loops": 2, "folder": tmp_path / "loops", "codec": codec, "device": CPU,
        "engine": Inline(),
        "training": replace(SETTINGS, learning_rate=1e-30),
    }  # fmt: skip
    deep = replace(CONFIG, layers=CONFIG.layers + 1)
    token_train.tokens("causal", dataset, tmp_path / "run", ONCE, bundled(), config=CONFIG, **given)
    for name, init_from in (("fresh", None), ("begun", tmp_path / "run")):
        token_train.tokens(
            "masked", dataset, tmp_path / name, ONCE, bundled(), config=deep,
            init_from=init_from, **given,
        )  # fmt: skip
    causal, fresh, begun = (
        checkpoint.load_any(tmp_path / name, KINDS)[0].state_dict()
        for name in ("run", "fresh", "begun")
    )
    assert begun.keys() == fresh.keys()
    last = f"layers.{CONFIG.layers}."
    taken = {name for name in begun if not name.startswith("heads") and not name.startswith(last)}
    assert {name.partition(".")[0] for name in taken} == {"codes", "listener", "layers", "norm"}
    for name, weight in begun.items():
        source = causal if name in taken else fresh
        torch.testing.assert_close(weight, source[name], rtol=1e-6, atol=1e-20)


def test_no_loops_to_learn_from(dataset: LoopDataset, tmp_path: Path) -> None:
    with pytest.raises(CallError, match="0 loops to train on; give 1 or more"):
        token_train.tokens(
            "masked", dataset, tmp_path / "run", ONCE, bundled(), n_loops=0, device=CPU
        )
    assert not (tmp_path / "run").exists()
