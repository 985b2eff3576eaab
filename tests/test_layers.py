"""Data flows one way: a module imports only those before it, and importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

# Each module, and those of its own package that it may import.
LAYERS = {
    "errors": set[str](),
    "grid": {"errors"},
    "files": {"errors"},
    "configs": {"errors", "files"},
    "corpus": {"errors"},
    "channels": set(),
    "score": {"channels", "errors", "files", "corpus"},
    "pianoroll": {"errors", "grid", "score"},
    "interchange": {"errors", "grid", "score", "pianoroll"},
    "rules": {"errors", "grid", "score"},
    "workers": {"errors"},
    "mined": set(),
    "splits": set(),
    "manifest": {"errors", "files", "grid", "splits"},
    "store": {"errors", "files", "grid", "manifest", "mined", "splits"},
    "parts": {"files", "grid", "mined"},
    "seal": {"errors", "files", "grid", "manifest", "mined", "parts", "splits", "store"},
    "extract": {
        "errors", "files", "grid", "corpus", "score", "pianoroll", "rules", "workers",
        "mined", "parts", "store", "seal",
    },
    "bits": {"grid"},
    "metrics": {"bits", "errors", "grid"},
    "features": {"bits", "grid", "metrics"},
    "evaluate": {"bits", "features", "errors", "grid", "metrics"},
    "overview": {"bits", "metrics", "store"},
    "npz": {"grid", "pianoroll", "store"},
    "export": {"errors", "files", "grid", "npz", "score", "pianoroll", "store"},
    "page": {"errors", "files"},
    "plot": {"errors", "grid", "page"},
    "gallery": {
        "errors", "grid", "corpus", "score", "pianoroll", "rules", "extract", "store", "plot",
    },
    "figures": {"errors", "grid", "page", "plot"},
    "common": set(),
    "common.devices": {"errors"},
    "common.vq": {"common", "common.devices"},
    "models.sampling": {"errors"},
    "models.layers": {"configs", "grid"},
    "models.recurrent": set(),
    "models.lstm_vae": {"configs", "models.layers", "models.recurrent"},
    "models.cnn_vae": {"configs", "models.layers", "models.lstm_vae"},
    "models.vq_vae": {"common", "common.vq", "configs", "models.layers", "models.sampling"},
    "models.prior": {
        "configs", "errors", "models.layers", "models.recurrent", "models.sampling",
    },
    "models.form_prior": {"configs", "grid", "models.layers", "models.sampling"},
    "models": {
        "configs", "errors", "files", "models.layers", "models.lstm_vae", "models.cnn_vae",
        "models.vq_vae", "models.prior", "models.form_prior",
    },
    "data": {"errors", "grid", "store"},
    "checkpoint": {"configs", "errors", "files", "models", "models.layers"},
    "common.resume": {"checkpoint", "common", "common.devices", "configs", "errors", "files"},
    "common.task": {"common", "common.devices"},
    "common.train_config": {"common", "common.devices", "errors"},
    "common.trainer": {
        "checkpoint", "common", "common.devices", "common.resume", "common.task",
        "common.train_config", "errors", "files",
    },
    "training": set(),
    "training.objective": {
        "checkpoint", "common", "common.devices", "common.task", "data", "models",
        "models.layers", "models.vq_vae",
    },
    "train": {
        "common", "common.devices", "common.resume", "common.train_config", "common.trainer",
        "errors", "files", "grid", "store", "data", "models", "models.layers", "models.vq_vae",
        "models.prior", "models.form_prior", "checkpoint", "training.objective",
    },
    "loopsets": {"bits", "errors", "grid", "corpus", "score", "pianoroll", "store", "evaluate"},
    "generate": {
        "errors", "grid", "rules", "store", "metrics", "models.layers", "models.lstm_vae",
        "models.vq_vae", "models.prior", "models.form_prior", "models.sampling", "data",
        "checkpoint", "train", "training.objective",
    },
    "publish": {
        "errors", "files", "grid", "score", "pianoroll", "mined", "parts", "seal", "store",
        "metrics", "export", "plot", "workers",
    },
    "compare": {
        "errors", "files", "grid", "splits", "store", "metrics", "plot", "figures", "models",
        "models.layers", "models.vq_vae", "data", "checkpoint", "common", "common.train_config",
        "common.trainer",
        "train", "training.objective", "generate",
    },
}  # fmt: skip

# The same for audioloop, whose modules may import anything of midiloop; what needs PyTorch there
# only those that need it themselves.
AUDIO_LAYERS = {
    "riff": set[str](),
    "label": {"riff"},
    "wave": {"riff", "label"},
    "piece": {"label"},
    "effects": {"wave"},
    "beats": {"wave"},
    "synth": {"wave"},
    "render": {"effects", "label", "piece", "synth", "wave"},
    "batch": {"label", "piece", "render", "synth", "wave"},
    "mel": {"wave"},
    "seam": {"mel", "wave"},
    "verdict": {"seam", "wave"},
    "sources": set(),
    "described": {"label", "riff", "wave"},
    "check": {"described", "riff", "verdict", "wave"},
    "seam_figure": {"mel", "seam", "wave"},
    "circular": set(),
    "codec": {"circular"},
    "coder": {"codec", "wave"},
    "hub": set(),
    "encodec": {"circular", "hub", "wave"},
    "fidelity": set(),
    "balance": {"codec", "fidelity", "wave"},
    "reconstruct_figure": {"mel", "wave"},
    "reconstruct": {
        "circular", "coder", "described", "fidelity", "label", "reconstruct_figure", "seam",
        "sources", "wave",
    },
    "spectral": {"circular"},
    "adversary": {"circular", "spectral"},
    "renders": {"render", "synth", "wave"},
    "magnet": set(),
    "magnet.network": {"circular"},
    "magnet.decode": {"magnet.network"},
    "magnet.checkpoint": {"hub", "magnet.network"},
    "train": {
        "adversary", "balance", "codec", "coder", "fidelity", "renders", "spectral", "synth",
        "wave",
    },
    "conditions": set(),
    "tokens": {"circular", "conditions"},
    "coded": {"codec", "coder", "conditions", "render", "renders", "synth", "wave"},
    "token_models": {"coded", "codec", "tokens"},
    "token_train": {"coded", "coder", "conditions", "renders", "token_models", "tokens"},
    "magnet.loops": {"conditions", "magnet.decode", "tokens"},
    "priming": {"conditions", "magnet.decode", "tokens"},
    "fill": {
        "codec", "coder", "conditions", "magnet.decode", "magnet.loops", "priming", "token_models",
        "tokens", "wave",
    },
    "given": {
        "beats", "conditions", "described", "label", "piece", "render", "sources", "synth",
        "verdict", "wave",
    },
    "refine": {"coder", "conditions", "fill", "given", "label", "sources", "wave"},
    "prompted": {
        "coder", "encodec", "fill", "label", "magnet.checkpoint", "magnet.decode", "magnet.loops",
        "wave",
    },
    "intervals": set(),
    "perplexity": {"coder", "conditions", "intervals", "wave"},
    "musicgen": {"encodec", "hub"},
    "items": {"beats", "coded", "codec", "conditions", "render", "renders", "synth", "wave"},
    "ways": {
        "codec", "coder", "conditions", "fill", "magnet", "magnet.decode", "magnet.loops",
        "priming", "reconstruct", "tokens", "wave",
    },
    "measured": {
        "coder", "conditions", "fill", "mel", "perplexity", "seam", "tokens", "wave", "ways",
    },
    "summed": {"intervals", "measured", "perplexity", "ways"},
    "compare_tables": {"intervals", "items", "summed", "ways"},
    "compare_figure": {"measured", "summed", "ways"},
    "compare": {
        "coder", "compare_tables", "fill", "items", "measured", "renders", "summed", "synth",
        "token_models", "wave", "ways",
    },
}  # fmt: skip
AUDIO_NEED_TORCH = {
    "circular", "codec", "coder", "encodec", "fidelity", "balance", "reconstruct", "spectral",
    "adversary", "train", "magnet.network", "magnet.decode", "magnet.checkpoint",
    "conditions", "tokens", "coded", "token_train", "token_models", "perplexity", "musicgen",
    "magnet.loops", "priming", "fill", "given", "refine", "prompted",
    "items", "ways", "measured", "summed", "compare_tables", "compare_figure", "compare",
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(package: str) -> dict[str, Path]:
    """Files of a package by the dotted name of their module, less the package's own."""
    root = ROOT / package
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts != ("__init__",):
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES, AUDIO_MODULES = modules("midiloop"), modules("audioloop")
NEED_TORCH = {
    "data", "models", "checkpoint", "common", "training", "train", "generate", "compare",
}  # fmt: skip


def test_every_module_has_its_place() -> None:
    assert set(MODULES) == set(LAYERS)
    assert set(AUDIO_MODULES) == set(AUDIO_LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_imports_only_what_comes_before_it(name: str) -> None:
    own = set()
    for dotted in imported(MODULES[name]):
        package, *parts = dotted.split(".")
        assert package not in ("audioloop", "midiloop_cli")
        if package == "midiloop" and parts:
            own.add(".".join(parts[:2]) if ".".join(parts[:2]) in LAYERS else parts[0])
    assert own - {"__version__"} <= LAYERS[name]


@pytest.mark.parametrize("name", AUDIO_LAYERS)
def test_a_module_of_audio_imports_only_what_comes_before_it(name: str) -> None:
    own, symbolic = set(), set()
    for dotted in imported(AUDIO_MODULES[name]):
        package, *parts = dotted.split(".")
        assert package != "midiloop_cli"
        if package == "audioloop" and parts:
            own.add(".".join(parts[:2]) if ".".join(parts[:2]) in AUDIO_LAYERS else parts[0])
        if package == "midiloop" and parts:
            symbolic.add(parts[0])
    assert own <= AUDIO_LAYERS[name]
    if name not in AUDIO_NEED_TORCH:
        assert not symbolic & NEED_TORCH
        assert not own & AUDIO_NEED_TORCH


@pytest.mark.parametrize("layers", [LAYERS, AUDIO_LAYERS])
def test_the_order_has_no_cycle(layers: dict[str, set[str]]) -> None:
    order = list(layers)
    for name, allowed in layers.items():
        assert all(order.index(other) < order.index(name) for other in allowed)


@pytest.mark.parametrize(
    "module", ["midiloop", "midiloop.extract", "midiloop.gallery", "audioloop", "audioloop.batch"]
)
def test_importing_loads_neither_torch_nor_matplotlib(module: str) -> None:
    code = f"import sys, {module}; print(*{{n.split('.')[0] for n in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    slow = {"torch", "matplotlib", "pretty_midi", "pypianoroll", "pandas", "scipy", "fluidsynth"}
    assert not slow & set(loaded)


def test_help_imports_no_numpy() -> None:
    code = "import sys, midiloop_cli.main; print('numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_recipes_are_no_packages() -> None:
    assert not list((ROOT / "datasets").rglob("__init__.py"))
