"""Become another program that dies with the process that started it: `python -I -S launch.py PARENT_PID PROGRAM ARG...`

The kernel sends SIGKILL when the *thread* that started this process ends, so start it from a thread that lives as long
as the daemon. Run as a script, by path, so that nothing but the standard library's `ctypes` is imported: 20 ms.
It runs in a process group of its own, so this is what ties it to the daemon, not the terminal.
A preexec_fn would do the same inside the daemon, but it forks a process with hundreds of megabytes and many threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then execute the program."""
    parent_pid, program = int(sys.argv[1]), sys.argv[2]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent_pid:
        sys.exit("the daemon ended before its child had started")
    os.execv(program, sys.argv[2:])


if __name__ == "__main__":
    main()
