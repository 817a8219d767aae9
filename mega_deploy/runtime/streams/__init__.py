"""Streams: the state that stays where the model runs, steps, prefill and replay of whole sequences."""
