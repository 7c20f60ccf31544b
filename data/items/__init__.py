"""Tables of items as people have them, and the features that are made of their columns."""
