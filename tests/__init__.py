"""Tests mirror the four rooms; the simulator lives in tests/sim."""
