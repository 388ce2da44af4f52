"""The engine: trains any family and knows none."""
