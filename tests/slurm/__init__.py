"""A Slurm of two nodes on this machine, for `make slurm`."""
