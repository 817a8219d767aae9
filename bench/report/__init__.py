"""What is told of it: rows, tables, pages, and comparison with earlier reports."""
