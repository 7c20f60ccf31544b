"""What a client computes: local training and evaluation."""
