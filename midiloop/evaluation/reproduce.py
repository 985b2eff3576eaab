"""Train the paper's models under one budget, and set its tables beside ours.

A comparison is a folder::

    runs/MODEL/…       what `codec_train.run` leaves
    rows/NAME.json     what was measured of a model
    report.md .json    tables 1 to 4, the paper's figures in brackets
    *.png              curves, reconstructions, codes and loops

What is there already is neither trained nor measured again.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from midiloop import models
from midiloop.common import checkpoint, files
from midiloop.common.resume import RunRecord
from midiloop.common.train_config import Budget, TrainConfig
from midiloop.common.trainer import Progress
from midiloop.dataset import tensors
from midiloop.dataset.parquet import LoopBatch, LoopDataset
from midiloop.dataset.splits import SPLITS
from midiloop.errors import CallError, counted
from midiloop.evaluation import sources, two_sample
from midiloop.evaluation.profile import LoopSet
from midiloop.evaluation.two_sample import Sample
from midiloop.generation import sample
from midiloop.generation.sample import GenerationRequest, Generator
from midiloop.grid import LOOP, Roll
from midiloop.metrics import form
from midiloop.metrics import paper as metrics_paper
from midiloop.metrics.bits import as_bits
from midiloop.models.layers import RollModel
from midiloop.models.vq_vae import VQVAE, VQVAEConfig
from midiloop.plotting import figures, plot
from midiloop.training import recipes
from midiloop.training.objective import Objective, mean_error

NAMES = {
    "ar-lstm-vae": "AR LSTM-VAE",
    "nonar-lstm-vae": "NonAR LSTM-VAE",
    "cnn-vae": "CNN-VAE",
    "vq-vae": "VQ-VAE",
}
TRAINING_SET = "training set"
SHIPPED = "midiloop's own"
TEMPERATURES = (0.0, 1.0, 1.5, 2.0)
# t, L and K of table 2.
LATENTS = ((32, 16, 256), (32, 16, 512), (32, 32, 512), (64, 16, 256), (64, 16, 512), (64, 32, 512))
PICTURED = 4
AUC = "AUC"
FORM = tuple(
    f"{part} {relation}"
    for part, relations in (
        ("bass", ("exact", "transposed", "varied", "new")),
        ("drums", ("exact", "varied", "new")),
    )
    for relation in relations
)  # of `form.ROWS`

# Han, Ihm and Lim 2021, arXiv:2111.07657: reconstruction errors, and the rows of musical metrics.
PAPER_ERRORS = {
    "ar-lstm-vae": 3.68e-3,
    "nonar-lstm-vae": 3.37e-3,
    "cnn-vae": 3.81e-3,
    "vq-vae": 5.11e-3,
}
PAPER_LATENT_ERRORS = dict(
    zip(LATENTS, (6.05e-3, 5.11e-3, 5.06e-3, 3.89e-3, 3.33e-3, 3.02e-3), strict=True)
)
NONE = float("nan")
PAPER_ROWS = {
    TRAINING_SET: (4.43e-4, 1.00, 1.00, 0.0, 1.00, 0.51, 10.50, 0.92),
    "ar-lstm-vae": (4.05e-3, 0.99, 0.44, 1.51e-2, NONE, NONE, 10.61, 0.73),
    "nonar-lstm-vae": (2.79e-3, 1.00, 0.41, 1.89e-2, NONE, NONE, 10.79, 0.75),
    "cnn-vae": (7.33e-3, 0.96, 0.71, 4.44e-2, NONE, NONE, 13.81, 0.77),
    "vq-vae argmax": (1.44e-3, 1.00, 0.98, 1.10e-3, 0.28, 4.08e-3, 8.77, 0.94),
    "vq-vae temp 1": (4.25e-3, 1.00, 0.98, 2.21e-3, 7.97e-2, 0.50, 9.94, 0.91),
    "vq-vae temp 1.5": (1.23e-2, 1.00, 0.98, 2.56e-3, 2.45e-2, 0.90, 11.58, 0.89),
    "vq-vae temp 2": (1.82e-2, 1.00, 0.97, 3.09e-3, 2.89e-3, 0.99, 14.05, 0.88),
    "vq-vae argmax, copied": (1.56e-3, 1.00, 0.98, 1.01e-3, 0.25, 4.11e-3, 8.69, 0.95),
    "vq-vae temp 1, copied": (3.58e-3, 1.00, 0.98, 2.18e-3, 7.12e-2, 0.62, 10.02, 0.91),
    "vq-vae temp 1.5, copied": (6.89e-3, 1.00, 0.98, 2.61e-3, 2.25e-2, 0.92, 11.44, 0.90),
    "vq-vae temp 2, copied": (9.99e-3, 1.00, 0.97, 3.14e-3, 2.95e-3, 0.99, 13.72, 0.88),
}


@dataclass(frozen=True)
class Reproduction:
    """What was measured.

    Attributes:
        about: budget, dataset and machine.
        errors: reconstruction error of each model on the test split.
        latent_errors: the same for VQ-VAEs with other (t, L, K).
        rows: the eight metrics, and ``FND kick``, by name of the row.
    """

    about: dict[str, Any]
    errors: dict[str, float]
    latent_errors: dict[tuple[int, int, int], float]
    rows: dict[str, dict[str, float]]


def run(
    dataset: LoopDataset,
    out: Path,
    budget: Budget,
    config: TrainConfig,
    *,
    n: int,
    device: torch.device,
    resume: bool = False,
    on_progress: Callable[[str, Progress], None] = lambda *_: None,
    on_loops: Callable[[str, int], None] = lambda *_: None,
) -> Reproduction:
    """Train, generate, measure and draw.

    Args:
        budget, config: the same for every model.
        n: loops that each generator writes.
        on_loops: called with the name of a row and how many more loops of it there are.

    Raises:
        CallError: ``out`` is there and ``resume`` is not asked for, or another run works in it.
        LoopError: a split is empty.
        ImportError: matplotlib is not installed.
    """
    files.check_parent(out)
    files.check_writable(out)
    is_there = out.exists()
    with files.working_in(out):
        if is_there and not resume:
            raise CallError(f"{out}: exists already; go on with --resume, or choose another name")
        _check_start(dataset)
        return _run(dataset, out, budget, config, n, device, on_progress, on_loops)


def _run(
    dataset: LoopDataset,
    out: Path,
    budget: Budget,
    config: TrainConfig,
    n: int,
    device: torch.device,
    on_progress: Callable[[str, Progress], None],
    on_loops: Callable[[str, int], None],
) -> Reproduction:
    for folder in ("rows", "runs/latents"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        recipes.run(
            name,
            dataset,
            out / "runs" / name,
            budget,
            config,
            device=device,
            resume=True,
            on_progress=_under(name, on_progress),
        )
    for latent in LATENTS:
        if latent_config(*latent) != models.PRESETS["vq-vae"]["paper"]:
            _train_latent(latent, dataset, out, budget, config, device, on_progress)
    measure = _Measure(dataset, out, n, device, on_loops)
    found = Reproduction(
        {
            "epochs": budget.epochs,
            "settings": asdict(config),
            "loops": n,
            "counts": dataset.manifest["counts"],
            "fingerprint": dataset.fingerprint,
            "rules": dataset.manifest["rules"]["name"],
            "device": device.type,
            "torch": torch.__version__,
        },
        {name: measure.error(out / "runs" / name / name) for name in NAMES},
        {latent: measure.error(latent_folder(out, latent)) for latent in LATENTS},
        measure.rows(),
    )
    write_report(found, out)
    draw(dataset, out, device)
    return found


def _check_start(dataset: LoopDataset) -> None:
    """Raise what would go wrong hours later, while nothing is lost yet."""
    dataset.check_grid(LOOP)  # that of the paper's tables
    importlib.import_module("matplotlib")
    for split in SPLITS:
        if not any(True for _ in dataset.select(split=split, limit=1)):
            raise tensors.no_loops(dataset, split)


def _under(
    name: str, on_progress: Callable[[str, Progress], None]
) -> Callable[[str, Progress], None]:
    return lambda stage, done: on_progress(f"{name} {stage}", done)


def latent_config(t: int, dim: int, size: int) -> VQVAEConfig:
    """The paper's VQ-VAE with t codes of L dimensions out of K."""
    halvings = (LOOP.steps // t).bit_length() - 1
    return replace(VQVAEConfig(), halvings=halvings, latent_dim=dim, codebook_size=size)


def latent_folder(out: Path, latent: tuple[int, int, int]) -> Path:
    """Where the VQ-VAE of a latent size lies."""
    if latent_config(*latent) == models.PRESETS["vq-vae"]["paper"]:
        return out / "runs" / "vq-vae" / "vq-vae"
    return out / "runs" / "latents" / "t{}-L{}-K{}".format(*latent)


def _train_latent(
    latent: tuple[int, int, int],
    dataset: LoopDataset,
    out: Path,
    budget: Budget,
    config: TrainConfig,
    device: torch.device,
    on_progress: Callable[[str, Progress], None],
) -> None:
    folder = latent_folder(out, latent)
    stage = recipes.Stage(folder.name, "vq-vae", latent_config(*latent))
    recipes.run_stages(
        [stage],
        dataset,
        folder.parent,
        budget,
        config,
        device=device,
        resume=True,
        on_progress=on_progress,
    )


class _Measure:
    """Measures models once, and keeps what it found in the folder."""

    def __init__(
        self,
        dataset: LoopDataset,
        out: Path,
        n: int,
        device: torch.device,
        on_loops: Callable[[str, int], None],
    ) -> None:
        self.dataset, self.out, self.n, self.device = dataset, out, n, device
        self.on_loops = on_loops
        self._prints: NDArray[np.uint64] | None = None

    def error(self, folder: Path) -> float:
        """Mean reconstruction error of a model on the test split, all of its loops."""

        def measured() -> dict[str, float]:
            model = models.load(folder, self.device).model
            assert isinstance(model, RollModel)
            loops = tensors.load(self.dataset, "test", self.device, distinct=False)
            return {"error": mean_error(Objective(model), loops)}

        return self._once(f"error of {folder.name}", {}, [folder], measured)["error"]

    def rows(self) -> dict[str, dict[str, float]]:
        """Rows of tables 3 and 4, and that of the model that comes with midiloop."""
        rows = {TRAINING_SET: self._once(TRAINING_SET, {}, [], self._training_set)}
        for name in NAMES:
            generator = sample.load(self.out / "runs" / name, self.device)
            wishes = {name: GenerationRequest(self.n, keep_rules=False)}
            if name == "vq-vae":
                wishes = {
                    row_name(t, copied): GenerationRequest(
                        self.n, temperature=t, copy_latents=copied, keep_rules=False
                    )
                    for copied in (False, True)
                    for t in TEMPERATURES
                }
            rows |= {
                row: self.generated(row, self.out / "runs" / name, generator, request)
                for row, request in wishes.items()
            }
        if sample.SHIPPED.exists():
            shipped = sample.load(sample.SHIPPED, self.device)
            rows[SHIPPED] = self.generated(
                SHIPPED, sample.SHIPPED, shipped, GenerationRequest(self.n)
            )
        return rows

    def generated(
        self, name: str, run: Path, generator: Generator, request: GenerationRequest
    ) -> dict[str, float]:
        """The metrics of what the generator of a run writes."""

        def measured() -> dict[str, float]:
            drawn = sample.sample(
                generator, request, on_loops=lambda more: self.on_loops(name, more)
            )
            return measure(drawn.rolls, self._training_prints(), self._test_loops())

        found = [path.parent for path in sorted(run.glob("*/config.json"))]
        return self._once(name, asdict(request), found, measured)

    def _training_set(self) -> dict[str, float]:
        batches = [*self.dataset.select(split="train")]
        rolls = np.concatenate([batch.rolls for batch in batches])
        row, real = measure(rolls, self._training_prints()), self._test_loops()
        songs = np.concatenate([batch.md5s for batch in batches])
        control = two_sample.sample([LoopSet(rolls, songs)])
        if min(control.n_songs, real.n_songs) >= two_sample.MIN_SONGS:
            row[AUC] = two_sample.tell_apart(control, real).value
        return row

    def _test_loops(self) -> Sample:
        return two_sample.sample(sources.of_dataset(self.dataset.path, "test"))

    def _training_prints(self) -> NDArray[np.uint64]:
        if self._prints is None:
            batches = self.dataset.select(split="train")
            prints = [LOOP.fingerprints(LOOP.pack(batch.rolls)) for batch in batches]
            self._prints = np.concatenate(prints)
        return self._prints

    def _once(
        self,
        name: str,
        request: dict[str, Any],
        folders: Sequence[Path],
        measured: Callable[[], dict[str, float]],
    ) -> dict[str, float]:
        """What was measured before, of the same models, dataset and wish; else what is now."""
        models = {folder.name: checkpoint.identity(folder) for folder in folders}
        record = RunRecord(
            self.out / "rows" / f"{name.replace(' ', '_')}.json",
            {
                "dataset": self.dataset.fingerprint,
                "models": models,
                "request": request,
                "measures": [*FORM, AUC],  # earlier versions measured less
            },
        )
        if found := record.found():
            return dict(found["measured"])
        row = measured()
        record.write(finished=True, measured=row)
        return row


def measure(
    rolls: Roll, reference: NDArray[np.uint64], real: Sample | None = None, seed: int = 0
) -> dict[str, float]:
    """The eight metrics of rolls, FND of the kick alone, the shares of `form`, and the AUC.

    Args:
        reference: fingerprints that ``OS`` counts copies of.
        real: loops that a classifier tells the rolls from; without them there is no ``AUC``, nor
            where the rolls are too few for one.
    """
    row = metrics_paper.evaluate([rolls], reference)
    row["FND kick"] = float(metrics_paper.first_note_drum(rolls, drums=("kick",)).mean())
    shares: dict[str, list[float]] = {}
    for bits in as_bits(rolls, LOOP).pieces():
        for name, share in form.measure(bits).items():
            sums = shares.setdefault(name, [0.0, 0.0])
            sums[0], sums[1] = sums[0] + share.part.sum(), sums[1] + share.whole.sum()
    row |= {name: float(part / whole) for name, (part, whole) in shares.items() if whole}
    if real is not None:
        drawn = two_sample.sample([LoopSet(rolls)])
        if min(drawn.n_songs, real.n_songs) >= two_sample.MIN_SONGS:
            row[AUC] = two_sample.tell_apart(drawn, real, seed).value
    return row


def row_name(temperature: float, copied: bool) -> str:
    """As in ``vq-vae temp 1.5, copied``."""
    name = f"vq-vae temp {temperature:g}" if temperature else "vq-vae argmax"
    return f"{name}, copied" if copied else name


def write_report(found: Reproduction, out: Path) -> None:
    """Write ``report.md`` and ``report.json``."""
    latents = {"t={} L={} K={}".format(*key): error for key, error in found.latent_errors.items()}
    as_json = {**asdict(found), "latent_errors": latents}
    files.write(out / "report.json", (json.dumps(as_json, indent=1) + "\n").encode())
    files.write(out / "report.md", report(found).encode())


def report(found: Reproduction) -> str:
    """The four tables as Markdown, the paper's figures in brackets, and the rankings."""
    about, counts = found.about, found.about["counts"]
    drawn = [name for name in PAPER_ROWS if "copied" not in name]
    copied = [row_name(t, True) for t in TEMPERATURES]
    lines = [
        "# Comparison of the paper's models",
        "",
        f"{counted(counts['loops'], 'loop')} ({counts['distinct_loops']:,} distinct) of "
        f"{counted(counts['songs'], 'song')}, rules {about['rules']}; "
        f"{counted(about['epochs'], 'epoch')} at batch {about['settings']['batch_size']} for every "
        f"model, {about['settings']['precision']}, {about['device']}; "
        f"{counted(about['loops'], 'loop')} from each generator. The paper's figures, on another "
        "and larger corpus and after 2,000 epochs, stand in brackets.",
        "",
        "## Table 1: reconstruction error, test split",
        "",
        *_table(
            ("model", "error"),
            [(NAMES[m], _pair(found.errors[m], PAPER_ERRORS[m])) for m in NAMES],
        ),
        "",
        "## Table 2: reconstruction error by size of the VQ-VAE's latent, test split",
        "",
        *_table(
            ("t", "L", "K", "error"),
            [
                (*map(str, latent), _pair(error, PAPER_LATENT_ERRORS[latent]))
                for latent, error in found.latent_errors.items()
            ],
        ),
        "",
        "## Table 3: musical metrics",
        "",
        *_metrics_table(found.rows, [*drawn, SHIPPED]),
        "",
        "## Table 4: the same with latents 0, 1 copied to 16, 17",
        "",
        *_metrics_table(found.rows, copied),
        "",
        "## How bars relate, and whether a classifier tells loops from real ones",
        "",
        "Percent of bars after the first, of bass and drums, where varied is percent of those that "
        "are no exact repeat; AUC of a classifier against distinct "
        "loops of the test split, 0.5 where none is told apart. That of the training set is the "
        "control.",
        "",
        *_form_table(found.rows, [*drawn, *copied, SHIPPED]),
        "",
        "## Rankings",
        "",
        *rankings(found),
    ]
    return "\n".join(lines) + "\n"


def rankings(found: Reproduction) -> list[str]:
    """For each measure, whether our models stand in the paper's order, as lines of Markdown."""
    rows = {**{name: name for name in NAMES}, "vq-vae": row_name(1.0, False)}
    lines = [_ranking("reconstruction error, lowest first", found.errors, PAPER_ERRORS)]
    for at, metric in enumerate(metrics_paper.TABLE):
        if metric in ("OS", "US"):
            continue  # the paper gives them for the VQ-VAE alone
        off = {
            m: abs(found.rows[r][metric] - found.rows[TRAINING_SET][metric])
            for m, r in rows.items()
        }
        paper = {m: abs(PAPER_ROWS[r][at] - PAPER_ROWS[TRAINING_SET][at]) for m, r in rows.items()}
        lines.append(_ranking(f"{metric}, nearest to the training set first", off, paper))
    return lines


def _ranking(what: str, ours: Mapping[str, float], paper: Mapping[str, float]) -> str:
    orders = [
        " < ".join(NAMES[name] for name in sorted(NAMES, key=values.__getitem__))
        for values in (ours, paper)
    ]
    if orders[0] == orders[1]:
        return f"- {what}: {orders[0]}, as in the paper."
    return f"- {what}: {orders[0]}; **in the paper** {orders[1]}."


def _metrics_table(rows: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> list[str]:
    body = []
    for name in names:
        if name not in rows:
            continue
        paper = PAPER_ROWS.get(name, (NONE,) * len(metrics_paper.TABLE))
        cells = [
            _pair(rows[name][metric], value)
            for metric, value in zip(metrics_paper.TABLE, paper, strict=True)
        ]
        body.append(
            (
                NAMES.get(name, name.replace("vq-vae", "VQ-VAE")),
                *cells,
                f"{rows[name]['FND kick']:.3f}",
            )
        )
    return _table(("model", *metrics_paper.TABLE, "FND kick"), body)


def _form_table(rows: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> list[str]:
    body = [
        (
            NAMES.get(name, name.replace("vq-vae", "VQ-VAE")),
            *(_percent(rows[name].get(share)) for share in FORM),
            f"{rows[name][AUC]:.3f}" if AUC in rows[name] else "",
        )
        for name in names
        if name in rows
    ]
    return _table(("model", *FORM, AUC), body)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _pair(ours: float, paper: float) -> str:
    return _figure(ours) if np.isnan(paper) else f"{_figure(ours)} ({_figure(paper)})"


def _figure(value: float) -> str:
    return (
        f"{value:.2e}" if 0 < abs(value) < 0.02 else f"{value:.3g}" if value < 1 else f"{value:.2f}"
    )


def draw(dataset: LoopDataset, out: Path, device: torch.device) -> None:
    """Draw curves, reconstructions, the codes of loops (Figure 4) and frequent codes (Figure 5)."""
    histories = {}
    for path in sorted((out / "runs").glob("*/*/training.json")):
        if path.parent.parent.name in NAMES and path.parent.name != recipes.PRIOR:
            histories[NAMES[path.parent.name]] = files.read_json(path)["history"]
    figures.curves(histories, out / "curves.png")
    batch = LoopBatch.joined([*dataset.spread(PICTURED, per_song=1, split="test")])
    rolls = torch.from_numpy(batch.rolls).to(device)
    rebuilt = {}
    for name, shown in NAMES.items():
        model = models.load(out / "runs" / name / name, device).model
        assert isinstance(model, RollModel)
        rebuilt[shown] = model.reconstruct(rolls).cpu().numpy()
    figures.reconstructions(batch.rolls, rebuilt, out / "reconstructions.png")
    codec = models.load(out / "runs" / "vq-vae" / "vq-vae", device).model
    assert isinstance(codec, VQVAE)
    titles = [Path(song).stem for song in batch.songs]
    size = codec.config.codebook_size
    figures.codes(
        list(codec.encode(rolls).cpu().numpy()), titles, out / "codes.png", codebook_size=size
    )
    training = tensors.load(dataset, "train", device)
    codes = recipes.encoded(codec, training).cpu().numpy()
    pictures = []
    for rank, title in enumerate(("most frequent", "second most", "second least", "least")):
        at = rank if rank < 2 else rank - 4
        code = torch.from_numpy(figures.frequent_codes(codes, size, at))[None].to(device)
        with torch.no_grad():
            roll = codec.rolls(codec.decode(code))[0].cpu().numpy()
        pictures.append(
            plot.Picture(roll, f"{title} frequent codes" if rank else "most frequent codes")
        )
    plot.contact_sheet(pictures, out / "frequent.png", columns=2)
