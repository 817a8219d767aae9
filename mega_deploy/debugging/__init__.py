"""A bundle in the formats of other people's tools for debugging: Polygraphy."""
