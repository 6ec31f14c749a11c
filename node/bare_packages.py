"""Import a part of a package without the rest: for processes that use a small corner of a large library.

Importing `a.b.c` runs `a/__init__.py` and `a/b/__init__.py`, and those of large libraries load everything there is. A
bare package is an empty module with the real folder as its path: its submodules are found and run as they are, only
its own `__init__` is left out. Nothing is faked: a submodule that needs a name from that `__init__` fails at import,
at once and by name.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path


def make_bare(*names: str) -> None:
    """Install bare packages, parents before children. Raises ImportError when one is imported already or missing."""
    for name in names:
        if name in sys.modules:
            raise ImportError(f"{name} has been imported before it was made bare", name=name)
        package = types.ModuleType(name)
        package.__path__ = [str(_folder(name))]
        sys.modules[name] = package


def _folder(name: str) -> Path:
    parent, _, last = name.rpartition(".")
    if parent:
        folder = Path(sys.modules[parent].__path__[0]) / last
        if not folder.is_dir():
            raise ImportError(f"{parent} has no package {last}", name=name)
        return folder
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{name} is not installed", name=name)
    return Path(next(iter(spec.submodule_search_locations)))
