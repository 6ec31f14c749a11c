"""The step ledger's cores, one at a time and a few together."""
