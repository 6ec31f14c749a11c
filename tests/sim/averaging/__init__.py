"""Group averaging in the simulator. It imports nothing here: a process that measures branches marks the cores before."""
