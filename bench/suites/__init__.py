"""Fixed sets of contenders that answer one question."""
