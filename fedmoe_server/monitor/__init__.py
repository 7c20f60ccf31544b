"""What a browser and Prometheus are shown of a server: read only, and for this machine alone."""
