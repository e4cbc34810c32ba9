"""The command line: scripts, errors in one line, resume, sweeps."""
