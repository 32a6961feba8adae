"""How two encoders teach each other: batches, objectives, teachers, densification, the schedule."""
