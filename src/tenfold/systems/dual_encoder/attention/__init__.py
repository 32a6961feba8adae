"""Where teacher and student keep the queries and keys that the method compares."""
