"""Files that are read without running anything and written whole or not at all."""
