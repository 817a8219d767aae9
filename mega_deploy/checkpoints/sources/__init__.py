"""Systems that train Mega: their arrays and options as the weights and configuration of our models."""
