"""The demo: its proof, its bounds, and how it waits. The whole of it is run by hand, and by `make demo`."""
