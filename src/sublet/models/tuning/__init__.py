"""Fine-tuning: what a tenant asked to be learnt, how far it is, and what it costs."""
