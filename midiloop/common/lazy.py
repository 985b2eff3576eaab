"""Names at the top of a package, whose modules are imported as they are first used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def load(package: dict[str, Any], places: Mapping[str, str], name: str) -> Any:
    """What a package gives by a name; from then on it is there.

    Args:
        package: its globals.
        places: of each name, the module and what it is called there, as in "package.module.name".

    Raises:
        AttributeError: it has none of that name.
        ImportError: something that it needs is not installed.
    """
    if name not in places:
        raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
    module, _, called = places[name].rpartition(".")
    found = getattr(import_module(module), called)
    package[name] = found
    return found
