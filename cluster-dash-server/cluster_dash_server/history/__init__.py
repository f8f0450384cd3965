"""Kinds of `Store`, figures over time: `memory` (nothing is kept) and `sqlite` (a file in the data folder)."""
