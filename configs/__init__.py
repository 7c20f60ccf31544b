"""The shipped settings files, one for each data set and experiment."""
