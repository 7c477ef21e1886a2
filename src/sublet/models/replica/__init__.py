"""A replica: one process that serves one model, and counts its tokens exactly."""
