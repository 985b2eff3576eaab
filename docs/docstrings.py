"""Docstrings as the API reference reads them: one line for each name.

The house writes parameters that belong together in one line, as in ``song, split: which loops``.
Griffe knows one name a line; so each name gets a line of its own, with the same text.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SHARED = re.compile(r"^    (\w+(?:, \w+)+)(: .*(?:\n {5,}\S.*)*)", re.MULTILINE)


def one_name_a_line(text: str) -> str:
    """The docstring with lines of several names repeated for each."""
    return _SHARED.sub(
        lambda line: "\n".join(f"    {name}{line[2]}" for name in line[1].split(", ")), text
    )


class SharedLines(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of one object."""
        if obj.docstring:
            obj.docstring.value = one_name_a_line(obj.docstring.value)
