"""Exponential moving averages at export: as one convolution or in blocks, which of the two, and the nodes of each."""
