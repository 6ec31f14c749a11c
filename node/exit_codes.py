"""What each exit code says to a script or a supervisor. docs/operations.md explains them to people.

Numbers follow sysexits.h and systemd where those name the case; all are below 126, which shells keep for themselves.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
"""Done; for `status`: running and healthy; for `run`: drained and left."""
FAILED: Final = 1
"""Something failed that no other code names."""
USAGE: Final = 2
"""The command line itself was wrong (click's own code)."""
NOT_RUNNING: Final = 3
"""No daemon answers on the control socket (what systemctl and LSB call "not running")."""
UNHEALTHY: Final = 4
"""The daemon answers and says that it is not healthy: no peers, isolated, over its memory limit."""
UNAVAILABLE: Final = 69
"""A one-shot command reached none of the addresses it was given."""
TRY_AGAIN: Final = 75
"""The world was not ready (port in use, another daemon still draining): a restart may help."""
NO_PERMISSION: Final = 77
"""A file or folder may not be read or written, or may be read by too many."""
CONFIG: Final = 78
"""Settings, run file or invite are wrong: a restart never helps, a person must change something."""
