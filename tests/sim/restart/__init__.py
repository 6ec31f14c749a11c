"""Coming back from the disk, in the simulator. See README.md."""
