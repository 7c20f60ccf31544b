"""What is asked of a client and of a metric of one's own, tried out on a tiny catalogue."""
