"""Many clients trained at once."""
