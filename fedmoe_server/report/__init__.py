"""What a run shows: progress, plots, report, card."""
