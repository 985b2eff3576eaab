"""``python -m midiloop_cli``, where the command is not on the path."""

from midiloop_cli.main import midiloop

midiloop()
