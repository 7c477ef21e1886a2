"""Pages of a tenant: what is its own, and nothing else."""
