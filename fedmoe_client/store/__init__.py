"""What stays on the device: the history, the private parameters, the client's identity."""
