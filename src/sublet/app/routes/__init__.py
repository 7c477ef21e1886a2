"""The control plane's HTTP API, a file for each noun."""
