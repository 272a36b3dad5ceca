"""What runs after what. No pixels, no tensors."""
