"""The files of the published programs: read without trust, and written."""
