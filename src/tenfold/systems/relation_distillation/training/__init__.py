"""How students are trained: optimizer, objectives, fine-tuning, segmentation."""
