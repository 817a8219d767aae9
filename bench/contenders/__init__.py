"""What is timed: sessions of bundles, their peers, and the machine's limits."""
