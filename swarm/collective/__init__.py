"""Outer steps (DiLoCo): a whole model on every peer, groups average how far they have come."""
