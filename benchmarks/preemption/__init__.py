"""What leaving and coming back costs, measured on real daemons: `python -m benchmarks.preemption`."""
