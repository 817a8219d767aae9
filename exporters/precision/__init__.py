"""Graphs in lower precisions: which nodes stay float32, the casts, and int8."""
