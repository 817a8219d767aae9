"""Formats of files that hold arrays by name: bytes in, arrays out, and nothing known of any model."""
