"""Networks that can be cut in stages."""
