"""Configs from other people: every size has a bound, and whatever is odd is one line."""

from __future__ import annotations

import json
import logging
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from audioloop import hub
from audioloop.codec import encodec
from audioloop.tokens import musicgen
from audioloop.tokens.magnet import checkpoint as magnet
from audioloop.tokens.magnet.network import Magnet, MagnetConfig
from audioloop.tokens.model import TokenConfig
from midiloop import models
from midiloop.common import configs
from midiloop.errors import LoopError
from midiloop.models.layers import RollConfig
from midiloop.models.prior import PriorConfig
from model_folders import (
    KINDS,
    MAGNET,
    ODD,
    TEXTS,
    TINY,
    Loader,
    audiocraft,
    ours,
    published,
)

MORE_BYTES = 400 << 20  # that all bombs together may take, less than any of them wants


@pytest.fixture(autouse=True, scope="module")
def _quietly() -> None:
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.CRITICAL)


@pytest.fixture(params=[*TINY, "encodec", "musicgen", "magnet"])
def loader(request: pytest.FixtureRequest, tmp_path: Path) -> Loader:
    kind: str = request.param
    if kind in TINY:
        return ours(kind, tmp_path / "run")
    return audiocraft(tmp_path / "run") if kind == "magnet" else published(kind, tmp_path / "run")


def one_line(load: Callable[[], object]) -> str:
    """What a loader says of what it refuses."""
    with pytest.raises(LoopError) as refused:
        load()
    message = str(refused.value)
    assert "\n" not in message
    assert "; " in message
    assert len(message) < 900
    return message


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_what_is_right_is_read(loader: Loader) -> None:
    loader.say(loader.config)
    assert loader.load() is not None


def test_every_odd_value_of_every_field_is_one_line(loader: Loader) -> None:
    loader.say(loader.config)
    loader.load()
    before = peak_bytes()
    for name in loader.config:
        for value in ODD:
            loader.say({**loader.config, name: value})
            one_line(loader.load)
    assert peak_bytes() - before < MORE_BYTES


@pytest.mark.parametrize("text", TEXTS)
def test_a_config_that_is_none_is_one_line(text: str, loader: Loader) -> None:
    loader.text(TEXTS[text])
    one_line(loader.load)


def numbers(kind: type) -> Iterator[tuple[str, Any]]:
    """Fields of a config that are numbers, and what their types say."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        if re.search(r"\b(int|float)\b", str(hints[field.name])):
            yield field.name, hints[field.name]


@pytest.mark.parametrize(
    "kind",
    [
        *dict.fromkeys(kind.config for kind in KINDS.values()),
        MagnetConfig,
        encodec.Sizes,
        musicgen.Sizes,
    ],
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
def test_every_number_of_every_config_has_a_range(kind: type) -> None:
    assert list(numbers(kind))
    for name, hint in numbers(kind):
        assert "Range(" in str(hint), name


@pytest.mark.parametrize("kind", [kind.config for kind in KINDS.values()])
def test_every_preset_is_in_its_ranges(kind: type) -> None:
    found = asdict(kind())
    assert configs.from_json(kind, json.loads(json.dumps(found))) == kind()


def test_a_type_says_what_fits() -> None:
    assert get_args(configs.Width)[1] == configs.Range(1, 16_384)
    with pytest.raises(LoopError, match=r"layers is 0, and not a whole number from 1 to 128"):
        configs.checked(PriorConfig, {"layers": 0})
    with pytest.raises(LoopError, match=r"context is 'x', and not a whole number .* or null"):
        configs.checked(TokenConfig, {"context": "x"})
    with pytest.raises(LoopError, match=r"dim is a list of 3, and"):
        configs.checked(TokenConfig, {"dim": [1, 2, 3]})


def test_sizes_that_do_not_fit_together_are_one_line(tmp_path: Path) -> None:
    misfits: dict[str, dict[str, Any]] = {
        "loop-transformer": {"heads": 5}, "vq-vae": {"halvings": 9}, "codec": {"frame": 641},
        "masked": {"heads": 5}, "causal": {"reach": 4},
    }  # fmt: skip
    for kind, change in misfits.items():
        loader = ours(kind, tmp_path / kind)
        loader.say({**loader.config, **change})
        assert "can be made of this config" in one_line(loader.load)


def test_a_large_codebook_takes_no_memory(tmp_path: Path) -> None:
    loader = ours("codec", tmp_path / "run")
    before = peak_bytes()
    loader.say({**loader.config, "codebook_size": 65_536, "latent_dim": 16_384, "codebooks": 64})
    assert "the weights are not those of the codec" in one_line(loader.load)
    assert peak_bytes() - before < MORE_BYTES


# On which grid a model is.


def test_a_config_of_before_grids_is_one_of_the_usual_grid(tmp_path: Path) -> None:
    loader = ours("vq-vae", tmp_path / "run")
    loader.say({n: v for n, v in loader.config.items() if n not in models.GRID})
    model = models.load(tmp_path / "run").model
    assert model.config == TINY["vq-vae"]
    loader.say({n: v for n, v in loader.config.items() if n != "channels"})
    assert "differs in channels" in one_line(loader.load)


@pytest.mark.parametrize("kind", ["ar-lstm-vae", "nonar-lstm-vae", "cnn-vae", "vq-vae"])
def test_a_model_is_of_the_grid_that_its_config_says(kind: str) -> None:
    small = models.PRESETS[kind]["small"]
    grid = {"bars": 4, "steps_per_beat": 2, "drums": 5, "lowest_pitch": 30, "highest_pitch": 59}
    config = configs.from_json(type(small), {**asdict(small), **grid})
    assert isinstance(config, RollConfig)
    assert (config.steps, config.columns) == (32, 35)
    model = models.build(kind, config).eval()
    rolls = torch.rand(2, 32, 35) < 0.2
    assert model.reconstruct(rolls).shape == (2, 32, 35)  # type: ignore[operator]
    assert torch.isfinite(model.loss(rolls.byte(), 0.0).total)


# YAML, and what else a checkpoint of audiocraft may hide.

ALIASES = "a: &a [x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ALIASES + "\nlm_model: *i", "aliases"),
        (ALIASES + "\nlm_model: x", "aliases"),
        ("a: " + "[" * 200_000, "nested more than"),
        ("- " * 50_000, "nested more than"),
        ("x" * (1 << 19), "has no configuration"),
        ("lm_model: [1, 2]", "lm_model is a list of 2, not"),
        ("lm_model: " + "x" * 9000, "lm_model is xxx"),
        ("transformer_lm: {num_layers: 0x" + "f" * 9000 + "}", "a very large number"),
        ("transformer_lm: {num_layers: " + "9" * 9000 + "}", "xp.cfg is no YAML"),
        ("transformer_lm: {dim: true}", "dim is True, not a number"),
        ("masking: {span_len: x}", "span is 'x'"),
        ("dataset: {segment_duration: .inf}", "segment_s is inf"),
        ("d: 2001-99-99", "xp.cfg is no YAML"),
        ("? [a, b]\n: c", "xp.cfg is no YAML|of another shape|missing"),
    ],
)
def test_what_yaml_can_do_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    loader = audiocraft(tmp_path / "run")
    before = peak_bytes()
    if text.startswith(("masking", "dataset")):
        sizes = json.dumps({"transformer_lm": loader.config})[1:-1]
        text = f"{{{sizes}, {text.replace(': {', ': {', 1)}}}"
    loader.text(text.encode())
    assert re.search(says, one_line(loader.load))
    assert peak_bytes() - before < MORE_BYTES


def test_tensors_of_more_numbers_than_there_are_in_a_file_are_one_line(tmp_path: Path) -> None:
    weights = Magnet(MAGNET).state_dict()
    odd = {
        "a view": torch.zeros(1).expand(10**6, 10**6),
        "sparse": torch.eye(3).to_sparse(),
        "whole": torch.zeros(3, dtype=torch.int64),
        "meta": torch.empty(10**6, 10**6, device="meta"),
    }
    for tensor in odd.values():
        torch.save(
            {"best_state": {**weights, "a": tensor}, "xp.cfg": "a: 1"}, tmp_path / magnet.FILE
        )
        assert "plain tensors" in one_line(lambda: magnet.load(tmp_path))


# Names on the hub.


def test_a_name_may_say_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("huggingface_hub")
    asked: list[tuple[Any, ...]] = []

    def download(name: str, file: str, revision: str | None) -> str:
        asked.append((name, file, revision))
        return str(tmp_path / file)

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, *allow_patterns, revision))
        return str(tmp_path)

    monkeypatch.setattr(library, "hf_hub_download", download)
    monkeypatch.setattr(library, "snapshot_download", snapshot)
    assert hub.file("some/model@abc123", "x.json", "") == tmp_path / "x.json"
    assert hub.file("some/model", "x.json", "") == tmp_path / "x.json"
    assert hub.folder("some/model@v1", ["*.json"], "") == tmp_path
    (tmp_path / "a@b").mkdir()
    assert hub.folder(str(tmp_path / "a@b"), ["*"], "") == tmp_path / "a@b"
    assert asked == [
        ("some/model", "x.json", "abc123"),
        ("some/model", "x.json", None),
        ("some/model", "*.json", "v1"),
    ]
