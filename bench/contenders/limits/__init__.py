"""Contenders that bound what a machine can reach, and where the time of a call goes."""
