"""Pure functions from a network's maps to coordinates and people."""
