"""A server of real clients: its folder, certificates and submissions."""
