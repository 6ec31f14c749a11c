"""Group averaging: peers that hold the same model form groups, and agree on whom each average counts. No torch, no clock, no IO."""
