"""What all checks of components have in common: ``python -m strategies.check`` and its like."""
