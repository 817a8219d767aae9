"""Configurations of models as plain data."""
