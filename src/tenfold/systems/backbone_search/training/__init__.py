"""How a detector is trained: YOLOX's schedule, parameter groups and moving average."""
