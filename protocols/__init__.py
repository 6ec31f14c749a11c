"""What peers say and what they decide. Pure: no clock, no IO, no tensors, no randomness of its own."""
