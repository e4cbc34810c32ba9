"""The process: signals, Slurm, run folder, memory."""
