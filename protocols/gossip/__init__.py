"""Gossip averaging: what each peer decides by itself. No torch, no clock, no IO."""
