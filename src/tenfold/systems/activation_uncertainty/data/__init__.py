"""What is read: ratings, click logs, tables, and the three parts of a task's data."""
