"""What every simulated mode shares: virtual time, networks, faults, the run, and those who watch it."""
