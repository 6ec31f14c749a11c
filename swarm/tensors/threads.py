"""Loading torch with the number of cores it may use. Call it before anything else imports torch."""

from __future__ import annotations

import os


def load_torch(threads: int) -> None:
    """Import torch (2 to 3 s the first time) and let it use `threads` cores from the calling thread.

    Torch's threads wait for each other by spinning. On a home machine, where another program wants a core too, they
    then mostly wait for one that is not running: measured with 2 threads and one busy core, 900 tokens/s instead of
    7,000. Sleeping at once costs little on an idle machine. An environment that says otherwise is respected.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    import torch

    torch.set_num_threads(threads)
