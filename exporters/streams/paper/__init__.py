"""The paper's causal models as streams: the same layers over the next steps of each stream, and what those carry."""
