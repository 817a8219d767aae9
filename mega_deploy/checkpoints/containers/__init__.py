"""File formats of weights: bytes in, arrays by name out; nothing here knows a model."""
