"""How it is timed: processes, rounds, samples and statistics."""
