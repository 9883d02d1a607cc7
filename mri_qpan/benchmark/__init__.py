"""Measured comparisons: protocols, peers, tables and figures."""
