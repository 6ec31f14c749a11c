"""Let this process import hivemind's DHT without torch. Import this module before anything of hivemind.

`import hivemind` loads its averagers, its optimizers and torch: 3.1 s and 248 MB for a process that keeps a
dictionary. The DHT needs none of them; only three `__init__.py` on the way to it do. Without those: 0.2 s and 32 MB.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

from node.bare_packages import make_bare

_UTILS: Final = {
    "MSGPackSerializer": "serializer",
    "SerializerBase": "serializer",
    "get_dht_time": "timed_storage",
    "get_logger": "logging",
}
"""What the DHT takes from `hivemind.utils` by name, and the submodule that defines it."""


def _utils_name(name: str) -> Any:
    if name not in _UTILS:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"hivemind.utils.{_UTILS[name]}"), name)


make_bare("hivemind", "hivemind.dht", "hivemind.utils")
sys.modules["hivemind.utils"].__getattr__ = _utils_name  # type: ignore[method-assign]  # PEP 562
