"""The shell of mode `gossip`: tensors and the network for the core in protocols.gossip."""
