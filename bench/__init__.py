"""Latency: of one session, and per configuration beside what one would use instead and what the machine can do."""
