"""Trained forms: Mega as torch modules that read like their sources and can be trained."""
