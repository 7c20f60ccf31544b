"""Layers around a strategy: partial aggregation, guards, cohorts."""
