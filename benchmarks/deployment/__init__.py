"""A federation of real processes: how long a round takes, and what it survives."""
