"""Sizes of a small Mega of Edifice's, for tests that need a model and do not mind which."""

SMALL = {"embed_dim": 6, "hidden_size": 16, "ema_dim": 3, "num_layers": 2, "window_size": 8}
KINDS = ("softmax", "laplace")
"""Its attention functions, by their names on the command line."""
