"""A registered model at work on pictures."""
