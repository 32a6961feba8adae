"""The small networks of the field, and any of a user's: how they are made."""
