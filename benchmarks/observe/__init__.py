"""What it costs a node to be looked at."""
