"""Blocks that two systems share."""
