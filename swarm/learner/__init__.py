"""A whole model on one peer, with its share of the data and an optimizer: what modes without stages train."""
