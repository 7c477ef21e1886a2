"""The trainer: one process that teaches a model, and brings what it learnt to a safe place."""
