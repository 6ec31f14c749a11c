"""Half an hour of real nodes that come and go: `python -m tests.soak --minutes 30`."""
