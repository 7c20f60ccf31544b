"""What all packages share: settings and their loading, errors, sweeps."""

from fedmoe.packages import prefer_own_packages

prefer_own_packages()
