"""What the tasks of the paper's models make of their layers, over whole sequences."""
