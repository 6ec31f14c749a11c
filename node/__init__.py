"""The daemon: composition root, transport and directory processes, control socket, command line."""
