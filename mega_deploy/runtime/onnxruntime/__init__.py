"""Sessions on onnxruntime: its CPU provider, its GPU providers, and bfloat16 by emulation."""
