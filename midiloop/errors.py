"""The errors that a caller may want to catch, and how messages count."""


class LoopError(ValueError):
    """Input that cannot be used; the message names the thing, the cause and the remedy.

    >>> import midiloop, numpy as np
    >>> try:
    ...     midiloop.decode(np.zeros((15, 93), bool))
    ... except midiloop.LoopError as error:
    ...     print(error)
    expected whole bars of 93 columns, got (15, 93)
    """


class CallError(LoopError):
    """A call that cannot be carried out as it stands; nothing was read or written."""


class MidiError(LoopError):
    """Bytes that hold no usable score.

    Args:
        reason: the machine-readable name of what is wrong, one of ``score.REASONS``.
        detail: the same for people, with the figures.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def counted(n: int, noun: str) -> str:
    """As in "1 loop", "2,000 loops"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
