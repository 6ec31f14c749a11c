"""The control socket: how the command line, and only its owner, speaks to a running daemon."""
