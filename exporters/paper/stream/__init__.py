"""The paper's models as streams: what they carry, one step, many steps, and the source that cross attention reads."""
