"""A small folder of pictures and boxes in the layout of PASCAL VOC."""

import numpy as np
from PIL import Image


def photo(number, height=40, width=60):
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)


def write_voc(folder, extra=""):
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for number in range(8):
        Image.fromarray(photo(number)).save(folder / "JPEGImages" / f"i{number}.jpg")
        (folder / "Annotations" / f"i{number}.xml").write_text(
            "<annotation><size><width>60</width><height>40</height></size>"
            "<object><name>dog</name><difficult>0</difficult><bndbox><xmin>2.0</xmin><ymin>3</ymin><xmax>30</xmax>"
            "<ymax>20</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9"
            "</ymax></bndbox></part></object>"
            f"<object><name>cat</name><difficult>{int(number == 1)}</difficult><bndbox><xmin>5</xmin><ymin>5</ymin>"
            f"<xmax>5</xmax><ymax>5</ymax></bndbox></object>{extra}</annotation>"
        )
    (folder / "ImageSets/Main/trainval.txt").write_text("".join(f"i{n} 1\n" for n in range(8)))
    return folder
