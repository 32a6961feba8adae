"""Images with boxes: COCO, VOC and YOLO files, drawn scenes, batches, average precision."""
