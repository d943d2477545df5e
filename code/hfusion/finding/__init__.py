"""Who reads what: siblings found by reading a model, or by running it."""
