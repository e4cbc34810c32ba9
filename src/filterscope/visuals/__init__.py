"""Pictures, numbers and tables drawn from probes."""
