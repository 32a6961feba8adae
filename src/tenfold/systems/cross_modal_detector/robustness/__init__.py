"""What happens to a detector when sensors fail, drift or see less."""
