"""What training changes in a sample, every matrix kept exact."""
