"""Pages of whoever runs this Sublet."""
