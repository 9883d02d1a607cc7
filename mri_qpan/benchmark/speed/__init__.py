"""What a reconstruction costs: engines, BART beside them, cold starts, cost against size."""
