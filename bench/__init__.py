"""Latency: of one session, and side by side with what one would use instead."""
