"""Rules of aggregation, one file a rule."""
