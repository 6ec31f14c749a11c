"""Conversion between torch tensors and the bytes that peers send."""
