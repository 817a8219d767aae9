"""The LaplaceAttention op: its specification, a plain reference, and what serves it."""
