"""Where samples come from: nuScenes' tables, info files, a drive, a rig of one's own, a rendered world."""
