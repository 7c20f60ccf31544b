"""Exact sums: what leaves a client is a vector of integers modulo a power of two, to be added up."""
