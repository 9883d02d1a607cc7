"""How a trained network runs: each engine is a proximal step held equal to the plain one by a test."""
