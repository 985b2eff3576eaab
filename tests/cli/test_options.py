"""Options of every command: help texts, shared types, and none that is read and ignored."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from handmade import groove
from midiloop.errors import LoopError
from midiloop.midi import score
from midiloop_cli import main

GROUPS = {"midiloop": main.midiloop, "audioloop": main.audioloop}
COMMANDS = {
    f"{group} {name}": command
    for group, commands in GROUPS.items()
    for name, command in commands.commands.items()
}
OPTIONS = {
    f"{where} {option.opts[-1]}": option
    for where, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option)
}
SOURCES = {
    "lines.wav": b"",
    "dataset": None,
    "loops/manifest.json": b"{}",
    "song.mid": score.to_bytes(groove(8)),
}


def called(line: str, *args: object) -> Result:
    group, *rest = line.split()
    return CliRunner().invoke(GROUPS[group], [*rest, *map(str, args)])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an audio file, a MIDI file, a folder and a dataset, which is worked in."""
    monkeypatch.chdir(tmp_path)
    for name, data in SOURCES.items():
        if data is None:
            Path(name).mkdir()
        else:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_help_text_that_is_a_sentence(name: str) -> None:
    text = OPTIONS[name].help or ""
    assert re.match(r"[A-Z1-9]", text), text
    assert re.search(r"[.\]]$", text), text
    assert "The same" not in text, "it stands alone wherever the option is listed"


@pytest.mark.parametrize("name", OPTIONS)
def test_help_shows_the_default_that_the_option_has(name: str) -> None:
    option = OPTIONS[name]
    plain = option.default in (None, "*", ()) or not isinstance(option.default, str | int | float)
    assert option.is_flag or plain or option.show_default


def test_help_of_what_depends_on_notes_says_what_the_models_take() -> None:
    inpaint = pytest.importorskip("audioloop.pipelines.inpaint")
    text_to_audio = pytest.importorskip("audioloop.pipelines.text_to_audio")
    notes, free, text = inpaint.CONDITIONED, inpaint.UNCONDITIONED, text_to_audio.SAMPLING
    expected = {
        "--cfg-scale": f"{inpaint.BEST_OF_CFG_SCALE:g} with notes, {notes.cfg_scale:g} with notes "
        f"and --best-of 1, {free.cfg_scale:g} without notes, {text.cfg_scale:g} for a text",
        "--temperature": f"{notes.temperature:g} with notes, {free.temperature:g} without, "
        f"{text.temperature:g} for a text",
        "--top-p": f"{notes.top_p:g} with notes, {free.top_p:g} without, {text.top_p:g} for a text",
        "--choice-temperature": f"{inpaint.SAMPLING.choice_temperature:g}; "
        f"{text.choice_temperature:g} for a text",
        "--rescoring-weight": f"{inpaint.SAMPLING.rescoring_weight:g}",
        "--best-of": f"{inpaint.SAMPLING.best_of}",
    }
    for command in ("refine", "generate"):
        for option, said in expected.items():
            shown = OPTIONS[f"audioloop {command} {option}"].help or ""
            if command == "refine":  # it takes no text
                said = re.sub(r"[,;] [\d.]+ for a text", "", said)
            assert shown.endswith(f"Default: {said}."), (command, option)


def test_help_of_steps_says_what_is_taken() -> None:
    inpaint = pytest.importorskip("audioloop.pipelines.inpaint")
    for option, usual in (
        ("--decode-steps", inpaint.CONDITIONED),
        ("--unconditioned-decode-steps", inpaint.UNCONDITIONED),
    ):
        steps = ",".join(map(str, usual.steps))
        assert f"[default: {steps}]" in (OPTIONS[f"audioloop benchmark {option}"].help or "")


def test_one_option_takes_the_same_values_in_every_command() -> None:
    for name in ("--top-p", "--seed", "--device", "--json"):
        types = [
            option.type.to_info_dict() for key, option in OPTIONS.items() if key.endswith(name)
        ]
        assert types
        assert all(found == types[0] for found in types), name


@pytest.mark.parametrize("where", COMMANDS)
def test_every_command_reports_as_json_and_has_help(where: str) -> None:
    shown = called(where, "--help")
    assert shown.exit_code == 0
    assert "--json" in shown.stdout
    for paragraph in (COMMANDS[where].help or "").split("\n\n"):
        assert paragraph.strip().endswith(".")


# Every path that a command reads, with the least that it needs besides.
READ = {
    "midiloop extract none.mid -o o",
    "midiloop inspect none",
    "midiloop plot none.mid -o o.png",
    "midiloop export none --midi o",
    "midiloop train vq-vae none -o o",
    "midiloop generate none -o o",
    "midiloop generate -o o --like none.mid",
    "midiloop humanize none.mid -o o",
    "midiloop generate -o o --feel 1 --hands none",
    "midiloop evaluate none --reference dataset",
    "midiloop evaluate dataset --reference none",
    "midiloop reproduce none -o o",
    "audioloop render none.mid -o o",
    "audioloop render song.mid -o o --soundfont none.sf2",
    "audioloop check none.wav",
    "audioloop check lines.wav none.wav",
    "audioloop seam none.wav",
    "audioloop train codec none -o o --steps 1",
    "audioloop train codec dataset -o o --steps 1 --init-from none",
    "audioloop reconstruct none.wav -o o",
    "audioloop reconstruct lines.wav -o o --codec none",
    "audioloop refine none.mid -o o",
    "audioloop refine song.mid -o o --soundfont none.sf2",
    "audioloop refine song.mid -o o --masked-model none",
    "audioloop generate none.mid -o o",
    "audioloop generate -o o --codec none",
    "audioloop benchmark none -o o",
}


@pytest.mark.parametrize("line", sorted(READ))
def test_a_path_that_is_not_there_is_a_wrong_call(line: str, here: Path) -> None:
    before = sorted(here.iterdir())
    done = called(line)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert re.fullmatch(
        r"(midi|audio)loop: error: none[.a-z0-9]*: no such file or folder; check the path\n",
        done.stderr,
    )
    assert sorted(here.iterdir()) == before


def test_every_command_that_reads_is_tried() -> None:
    assert {" ".join(line.split()[:2]) for line in READ} == set(COMMANDS)


# What would change nothing, and the option that the message names.
UNUSED = {
    "midiloop generate -o o --keep drums": "--keep",
    "midiloop generate -o o --key H": "--key H",
    "midiloop generate -o o --like song.mid --key Am": "--keep drums",
    "midiloop generate -o o --like song.mid --vary drums --key Am": "--keep drums",
    "midiloop generate -o o --hands dataset": "--hands",
    "midiloop humanize song.mid -o o --feel 0 --seed 1": "--seed",
    "midiloop humanize song.mid -o o --feel 0 --swing 1 --hands dataset": "--hands",
    "midiloop export dataset --npz o.npz --feel 1": "--feel",
    "midiloop export dataset --midi o --seed 1": "--seed",
    "audioloop render song.mid -o o --seed 1": "--seed",
    "midiloop plot song.mid -o o.png --split test": "--split",
    "midiloop plot song.mid -o o.png --song x": "--song",
    "midiloop evaluate --reference dataset --split test": "--split",
    "midiloop export dataset": "--npz",
    "midiloop generate -o o --temperature 0 --top-p 0.9": "--top-p: --temperature 0",
    "audioloop render song.mid -o o --split test": "--split",
    "audioloop render song.mid -o o --song x": "--song",
    "audioloop render dataset song.mid -o o --split test": "--split",
    "audioloop render loops -o o --bars 4": "--bars",
    "audioloop render song.mid -o o --gain 3 --loudness -14": "--gain: --loudness",
    "audioloop refine song.mid -o o --temperature 0 --top-p 0.9": "--top-p: --temperature 0",
    "audioloop generate -o o --temperature 0 --top-p 0.9": "--top-p: --temperature 0",
    "audioloop render song.mid -o o --format ogg --depth 16": "ogg",
    "audioloop refine song.mid -o o --mask even --keep 0.5": "--keep",
    "audioloop refine lines.wav -o o --soundfont lines.wav": "--soundfont",
    "audioloop refine lines.wav -o o --kit 3": "--kit",
    "audioloop refine lines.wav -o o --bass 33": "--bass",
    "audioloop refine lines.wav -o o --ignore-notes": "--ignore-notes",
    "audioloop refine lines.wav -o o --best-of 2": "--best-of",
    "audioloop refine song.mid -o o --ignore-notes --best-of 2": "--best-of",
    "audioloop refine song.mid -o o --causal-model dataset": "--causal-model",
    "audioloop generate -o o --best-of 2": "--best-of",
    "audioloop generate -o o --causal-model dataset": "--causal-model",
    "audioloop generate -o o --encodec x": "--encodec",
    "audioloop generate -o o --t5 x": "--t5",
    "audioloop generate -o o --text x": "--magnet",
    **{
        f"audioloop generate -o o --text x --magnet dataset {option}": option.split()[0]
        for option in (
            "--kit 1", "--bass 33", "--causal-prefix", "--rescoring-weight 1", "--best-of 2",
            "--masked-model dataset", "--causal-model dataset", "--codec dataset",
        )
    },
    "audioloop seam lines.wav --causal-model dataset": "--perplexity",
    "audioloop seam lines.wav --perplexity --encodec x": "--musicgen",
    "audioloop reconstruct lines.wav -o o --codec dataset --encodec x": "--encodec",
    "audioloop train masked dataset -o o --steps 1 --decoder-only": "--decoder-only",
    "audioloop train masked dataset -o o --steps 1 --loss-weight mel=1": "--loss-weight",
    "audioloop train codec dataset -o o --steps 1 --decoder-only": "--init-from",
    "audioloop train codec dataset -o o --steps 1 --loops 5": "--loops",
    "audioloop train codec dataset -o o --steps 1 --codec dataset": "--codec",
}  # fmt: skip


@pytest.mark.parametrize(("line", "named"), UNUSED.items(), ids=list(UNUSED))
def test_an_option_that_would_change_nothing_is_refused(line: str, named: str, here: Path) -> None:
    if line.startswith("audioloop"):
        pytest.importorskip("torch")
    before = sorted(here.iterdir())
    done = called(line)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    "line",
    [
        "audioloop generate -o o --text drums --magnet an/other@v1",
        "audioloop reconstruct lines.wav -o o --encodec an/other@v1",
        "audioloop seam lines.wav --perplexity --musicgen an/other@v1",
    ],
)
def test_published_models_are_named_as_hugging_face_names_them(
    line: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("audioloop.hub")

    def asked(name: str) -> None:
        raise LoopError(f"asked for {name}")

    monkeypatch.setattr(hub, "at", asked)
    done = called(line)
    assert done.exit_code == 1
    assert done.stderr == "audioloop: error: asked for an/other@v1\n"


@pytest.mark.parametrize("name", ["extract", "generate"])
def test_an_interrupt_speaks_of_resume_where_there_is_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    command = main.midiloop.commands[name]
    monkeypatch.setattr(command, "callback", interrupted)
    sources = [str(tmp_path)] if name == "extract" else []
    done = CliRunner().invoke(main.midiloop, [name, *sources, "-o", str(tmp_path / "out")])
    resumes = any("--resume" in option.opts for option in command.params)
    assert done.exit_code == 130
    assert ("--resume" in done.output) == resumes
    assert resumes == (name == "extract")
