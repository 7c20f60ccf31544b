"""What all packages share: settings and their loading, errors, sweeps."""
