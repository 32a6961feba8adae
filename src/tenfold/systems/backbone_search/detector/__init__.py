"""YOLOX-Lite: backbones, neck, head, label assignment, losses, post-processing."""
