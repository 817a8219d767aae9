"""A causal model as a stream: the graph of a step, the graph of many at once, and what both are held against."""
