"""Mixture of experts in the simulator. It imports no core: they are marked while they are imported."""
