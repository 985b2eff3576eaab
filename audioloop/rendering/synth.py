"""FluidSynth as an offline renderer: library, SoundFont, and events on blocks of 64 samples.

The synth is the system's libfluidsynth, or else the one inside the wheel of ``pygame-ce``, which
pip brings without root. Nothing is loaded until a `SoundFont` is made.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.util
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from audioloop.io.wave import Samples, needs
from midiloop.errors import CallError, LoopError

BLOCK = 64  # samples; FluidSynth handles events only where such a block starts
RATES = (8_000, 96_000)
DEFAULT_RATE = 44_100
# Enough that no voice is ever stolen: which one it takes depends on more than the notes.
POLYPHONY = 512
GAIN = 0.25  # well below full scale; the output is float, and its level is set later
DRUM_CHANNEL, MAX_CHANNELS = 9, 256
DRUM_BANK = 128
_CHANNELS_A_PORT = 16  # FluidSynth has channels in multiples of 16

_LogFunction = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_NO_LOG = _LogFunction(lambda *_: None)

SOUNDFONT_FOLDERS = (
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
)
SOUNDFONT_NAMES = ("FluidR3_GM.sf2", "FluidR3_GM2-2.sf2", "default.sf2", "GeneralUser-GS.sf2")
BUNDLED_SOUNDFONT = "TimGM6mb.sf2"  # inside pretty_midi
LIBRARY_VARIABLE = "AUDIOLOOP_FLUIDSYNTH"
SOUNDFONT_VARIABLE = "AUDIOLOOP_SOUNDFONT"

NOTE_OFF, CONTROL, BEND, NOTE_ON = range(4)


class _Handles(NamedTuple):
    settings: int
    synth: int


class Event(NamedTuple):
    """A MIDI event at the start of a block; sorted, events of one block are in playing order.

    Attributes:
        block: index of the block, from 0.
        kind: `NOTE_OFF`, `CONTROL`, `BEND` or `NOTE_ON`.
        channel: 0 to 255; 9 has the drums.
        number: pitch or controller; unused for a bend.
        value: velocity, controller's value, or bend from -8192 to 8191.
    """

    block: int
    kind: int
    channel: int
    number: int
    value: int


def libraries() -> list[str]:
    """FluidSynth libraries that were found, in order of preference.

    The variable ``AUDIOLOOP_FLUIDSYNTH`` names one that comes first.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    system = ctypes.util.find_library("fluidsynth") or ctypes.util.find_library("fluidsynth-3")
    return [library for library in (named, system, _wheel_library()) if library]


def _wheel_library() -> str | None:
    """The library that the wheel of pygame-ce carries, found without importing pygame."""
    spec = importlib.util.find_spec("pygame")
    if spec is None or not spec.submodule_search_locations:
        return None
    pygame = Path(spec.submodule_search_locations[0])
    for folder in (pygame.parent / "pygame_ce.libs", pygame / ".dylibs", pygame):
        for path in sorted(folder.glob("libfluidsynth*")):
            return str(path)
    return None


def soundfont(path: Path | None = None) -> Path:
    """The SoundFont to use: the one given, a system's FluidR3, or the one inside pretty_midi.

    The variable ``AUDIOLOOP_SOUNDFONT`` names one that comes before a system's.

    Raises:
        LoopError: there is none, or the one given is not a SoundFont.
    """
    named = path or os.environ.get(SOUNDFONT_VARIABLE)
    if named:
        return _checked(Path(named))
    for folder in map(Path, SOUNDFONT_FOLDERS):
        for name in SOUNDFONT_NAMES:
            if (folder / name).is_file():
                return folder / name
    if bundled := bundled_soundfont():
        return bundled
    raise LoopError(
        "no SoundFont on this machine: pip install pretty_midi, which brings one, "
        "or name one with --soundfont"
    )


def bundled_soundfont() -> Path | None:
    """The SoundFont inside pretty_midi, found without importing it, or None."""
    spec = importlib.util.find_spec("pretty_midi")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / BUNDLED_SOUNDFONT
    return path if path.is_file() else None


def _checked(path: Path) -> Path:
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] != b"RIFF" or head[8:12] != b"sfbk":
        raise LoopError(f"{path}: no SoundFont (it does not begin as one); give a .sf2 file")
    size = int.from_bytes(head[4:8], "little") + 8
    if path.stat().st_size < size:
        raise LoopError(
            f"{path}: a SoundFont cut off after {path.stat().st_size:,} of {size:,} bytes; "
            "fetch it again"
        )
    return path


# The wheels of pygame-ce for Windows carry no FluidSynth.
_REMEDIES = {
    "linux": "pip install pygame-ce, which brings one, or install your system's libfluidsynth "
    "(Debian: libfluidsynth3)",
    "darwin": "pip install pygame-ce, which brings one, or brew install fluid-synth",
    "win32": "unpack a release of FluidSynth from github.com/FluidSynth/fluidsynth, and let "
    f"{LIBRARY_VARIABLE} name the libfluidsynth-3.dll in its bin folder",
}


def load(library: str | None = None) -> ModuleType:
    """The ``fluidsynth`` module of pyfluidsynth, on the first library that loads.

    Raises:
        ImportError: there is no pyfluidsynth, or no library.
    """
    if "fluidsynth" in sys.modules:  # others may have imported it before
        return _without_log(sys.modules["fluidsynth"])
    if importlib.util.find_spec("fluidsynth") is None:
        raise needs("pyfluidsynth")
    causes = []
    for found in [library] if library else libraries():
        # pyfluidsynth looks its library up while it is imported, and may print what it found.
        with _library_found(found), contextlib.redirect_stdout(io.StringIO()):
            try:
                return _without_log(importlib.import_module("fluidsynth"))
            except (ImportError, OSError, AttributeError) as error:
                sys.modules.pop("fluidsynth", None)
                causes.append(f"{found} does not load ({error})")
    raise ImportError(
        "; ".join(causes or ["no FluidSynth library on this machine"])
        + f"; {_REMEDIES.get(sys.platform, _REMEDIES['linux'])}"
    )


@contextlib.contextmanager
def _library_found(path: str) -> Iterator[None]:
    """Let pyfluidsynth, which takes no path, find the library at ``path``."""
    defaults = ctypes.util.find_library

    def found(name: str) -> str:  # noqa: ARG001 - the only library it asks for
        return path

    ctypes.util.find_library = found
    try:
        yield
    finally:
        ctypes.util.find_library = defaults


class SoundFont:
    """A SoundFont in memory, for synths of one rate.

    >>> import audioloop
    >>> audioloop.SoundFont(rate=48_000).rate
    48000

    Args:
        path: a .sf2 file; None for the one that `soundfont` finds.
        rate: sample rate in Hz, 8,000 to 96,000.

    Raises:
        LoopError: it cannot be loaded.
        CallError: the rate is out of range.
        ImportError: FluidSynth is missing.
    """

    def __init__(self, path: Path | None = None, rate: int = DEFAULT_RATE) -> None:
        check_rate(rate)
        path = path or soundfont()
        self.path, self.rate = path, rate
        self._api = load()
        self._owner = self._new(_CHANNELS_A_PORT)
        with _without_stderr():  # FluidSynth's other loaders print messages of their own
            number = self._api.fluid_synth_sfload(self._owner.synth, os.fsencode(path), 0)
        self._number = number
        if number == -1:
            self._delete(self._owner)
            raise LoopError(f"{path}: FluidSynth cannot load this SoundFont; give another")
        self._font = self._api.fluid_synth_get_sfont_by_id(self._owner.synth, number)

    def _new(self, n_channels: int) -> _Handles:
        api = self._api
        settings = api.new_fluid_settings()
        for name, number in (("synth.sample-rate", float(self.rate)), ("synth.gain", GAIN)):
            api.fluid_settings_setnum(settings, name.encode(), number)
        for name, value in (
            ("synth.polyphony", POLYPHONY),
            ("synth.midi-channels", n_channels),
            ("synth.reverb.active", 0),
            ("synth.chorus.active", 0),
            ("synth.lock-memory", 0),
            ("synth.dynamic-sample-loading", 1),
        ):
            api.fluid_settings_setint(settings, name.encode(), value)
        return _Handles(settings, api.new_fluid_synth(settings))

    def _delete(self, handles: _Handles) -> None:
        self._api.delete_fluid_synth(handles.synth)
        self._api.delete_fluid_settings(handles.settings)

    @contextlib.contextmanager
    def synth(self, programs: Mapping[int, int]) -> Iterator[Synth]:
        """A new synth, which takes a millisecond and has no state left from earlier loops.

        Args:
            programs: General MIDI program by channel; those of channel 9 are drum kits.
        """
        # Samples stay in memory while any synth has their preset selected. The owner selects it as
        # well, since the next loop mostly needs the same.
        for channel, program in programs.items():
            if channel < _CHANNELS_A_PORT:
                Synth(self._api, self._owner.synth).program(self._number, channel, program)
        n_ports = 1 + max(programs, default=0) // _CHANNELS_A_PORT
        handles = self._new(n_ports * _CHANNELS_A_PORT)
        # The synth only borrows the font: a font that it still has is freed together with it.
        number = _call(self._api, "add_sfont", handles.synth, self._font)
        try:
            synth = Synth(self._api, handles.synth)
            for channel, program in programs.items():
                synth.program(number, channel, program)
            yield synth
        finally:
            _call(self._api, "remove_sfont", handles.synth, self._font)
            self._delete(handles)


class Synth:
    """A FluidSynth without effects that renders float32; `SoundFont.synth` makes one."""

    def __init__(self, api: ModuleType, synth: int) -> None:
        self._api, self._synth = api, synth
        self._write = api.cfunc(
            "fluid_synth_write_float",
            ctypes.c_int,
            ("synth", ctypes.c_void_p, 1),
            ("len", ctypes.c_int, 1),
            ("lout", ctypes.c_void_p, 1),
            ("loff", ctypes.c_int, 1),
            ("lincr", ctypes.c_int, 1),
            ("rout", ctypes.c_void_p, 1),
            ("roff", ctypes.c_int, 1),
            ("rincr", ctypes.c_int, 1),
        )

    def program(self, font: int, channel: int, program: int) -> None:
        """Select a preset, or as General MIDI synths do, the nearest one where it is missing."""
        bank = DRUM_BANK if channel == DRUM_CHANNEL else 0
        if self._api.fluid_synth_program_select(self._synth, channel, font, bank, program) != 0:
            self._api.fluid_synth_program_change(self._synth, channel, program)

    @property
    def n_voices(self) -> int:
        """Number of active voices."""
        return int(self._api.fluid_synth_get_active_voice_count(self._synth))

    def play(self, events: Sequence[Event], first: int, out: Samples) -> None:
        """Send events and render into ``out``, continuing from the synth's present state.

        Args:
            events: those of these blocks, in order.
            first: index of the first block.
            out: float32 (2, whole blocks of samples), each channel in one piece.
        """
        left, right = out[0].ctypes.data, out[1].ctypes.data

        def render(start: int, end: int) -> None:
            if end > start:
                offset, frames = start * BLOCK, (end - start) * BLOCK
                self._write(self._synth, frames, left, offset, 1, right, offset, 1)

        at = 0
        for event in events:
            here = event.block - first
            render(at, here)
            at = here
            self._send(event)
        render(at, out.shape[1] // BLOCK)

    def _send(self, event: Event) -> None:
        api, (_, kind, channel, number, value) = self._api, event
        if kind == NOTE_ON:
            api.fluid_synth_noteon(self._synth, channel, number, value)
        elif kind == NOTE_OFF:
            api.fluid_synth_noteoff(self._synth, channel, number)
        elif kind == CONTROL:
            api.fluid_synth_cc(self._synth, channel, number, value)
        else:
            api.fluid_synth_pitch_bend(self._synth, channel, value + 8192)


def check_rate(rate: int) -> None:
    """Raise `CallError` for a rate that FluidSynth does not render."""
    if not RATES[0] <= rate <= RATES[1]:
        raise CallError(
            f"FluidSynth renders {RATES[0]:,} to {RATES[1]:,} Hz, not {rate:,}; give another --rate"
        )


def version() -> str:
    """Version of the FluidSynth library in use, as in "2.3.1"."""
    text = load()._fl.fluid_version_str
    text.restype = ctypes.c_char_p
    return str(text().decode())


def _call(api: ModuleType, name: str, synth: int, font: int) -> int:
    """Call a function on a synth and a font that pyfluidsynth does not wrap."""
    function = getattr(api._fl, f"fluid_synth_{name}")
    function.restype, function.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]
    return int(function(synth, font))


def _without_log(api: ModuleType) -> ModuleType:
    """Turn FluidSynth's log off: errors are raised here, in one line each."""
    set_log = api._fl.fluid_set_log_function
    set_log.restype, set_log.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_int, _LogFunction, ctypes.c_void_p],
    )
    for level in range(5):
        set_log(level, _NO_LOG, None)
    return api


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what C code writes to stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
