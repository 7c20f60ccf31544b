"""What is asked of an expert, a backbone and a loss of one's own, tried out on a small model."""
