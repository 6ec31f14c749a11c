"""Drives the real protocol cores in virtual time, over a fake network, under faults drawn from one seed."""
