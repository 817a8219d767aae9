"""Reports of a benchmark: rows, tables, pages, and comparison with earlier ones."""
