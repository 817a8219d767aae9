"""Generating tokens with a stream of a language model."""
