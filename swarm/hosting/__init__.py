"""A torch module served to peers: forward, recomputing backward, the optimizer step, batching, one compute thread."""
