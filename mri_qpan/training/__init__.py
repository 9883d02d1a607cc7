"""Training: image bank, simulated measurements, loop, recipes."""
