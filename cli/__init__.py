"""Typer commands: words for people, no numerics."""
