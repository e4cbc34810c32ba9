"""The running process: signals, Slurm, other ranks, memory."""
