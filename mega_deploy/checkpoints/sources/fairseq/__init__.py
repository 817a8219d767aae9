"""Checkpoints of fairseq's Mega models."""
