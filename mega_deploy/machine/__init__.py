"""This machine: its processor cores, its NVIDIA driver and GPUs."""
