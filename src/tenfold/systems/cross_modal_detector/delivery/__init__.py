"""Models on disk, exported files, drawings."""
