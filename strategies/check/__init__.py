"""The contract of a strategy, tried out with made-up clients."""
