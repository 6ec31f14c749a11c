"""Group averaging beside hivemind's DecentralizedAverager."""
