"""Speaking to a node from a machine that runs none: py-libp2p alone, in its own process."""
