"""Finding the first node of a deployed model whose numbers are wrong."""
