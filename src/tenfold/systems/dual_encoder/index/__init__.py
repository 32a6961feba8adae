"""Images encoded once, asked many times."""
