"""Detections scored as nuScenes scores them, and its result files."""
