"""A little data of one's own for each system: makes the files in a folder, and gives the settings that name them."""

import json

import numpy as np
from PIL import Image


def class_folders(folder, classes=("even", "left", "top"), each=6, side=16):
    """Photos in a folder per class, PNG and JPEG, in colour and grey."""
    random = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            shape = (side, side + 4 * number, 3) if number % 2 else (side + 4 * number, side)
            pixels = np.clip(random.normal(60 + 60 * label, 12, shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.{('png', 'jpg')[number % 3 == 0]}")
    return ["--data.name", "folder", "--data.root", str(folder), "--data.image_size", "16"]


def boxes(folder):
    """A COCO file with its images."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(10):
        name = f"{number:06d}.png"
        Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / "images" / name)
        images.append({"id": 100 + number, "file_name": name, "height": 40, "width": 60})
        for k in range(2):
            box = {"bbox": [5 + k, 6, 20.5, 10], "area": 205, "category_id": (3, 9)[k], "iscrowd": 0}
            annotations.append({"id": 2 * number + k, "image_id": 100 + number, **box})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 9, "name": "b"}, {"id": 3, "name": "a"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    small = ["--data.height", "32", "--data.width", "64", "--search.population", "2"]
    return ["--data.name", "coco", "--data.root", str(folder), "--data.train", "instances.json", *small]


def voc_boxes(folder):
    """A VOC folder with one list."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"i{number}.jpg")
        things = "".join(f"<object><name>{name}</name>{box}</object>" for name in ("dog", "cat"))
        size = "<size><width>60</width><height>40</height></size>"
        (folder / "Annotations" / f"i{number}.xml").write_text(f"<annotation>{size}{things}</annotation>")
    (folder / "ImageSets/Main/trainval.txt").write_text("".join(f"i{number}\n" for number in range(10)))


def pairs_with_depth(folder):
    """Images with a depth file each, in millimetres."""
    random = np.random.default_rng(0)
    for part in ("images", "depth"):
        (folder / part).mkdir(parents=True)
    for number in range(10):
        pixels = random.integers(0, 255, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        depth = (1000 * (2 + random.random((40, 56)))).astype(np.uint16)
        Image.fromarray(depth).save(folder / "depth" / f"{number}.png")
    return ["--data.name", "pairs", "--data.root", str(folder), "--data.depth_scale", "1000"]


def graph_with_texts(folder):
    """A table of triples, and one of names."""
    folder.mkdir(parents=True)
    people, cities = [f"person{n}" for n in range(16)], ["paris", "lyon", "rome", "oslo"]
    facts = [(person, "lives_in", cities[n % 4]) for n, person in enumerate(people)]
    facts += [(person, "knows", people[(n + step) % 16]) for n, person in enumerate(people) for step in (1, 4)]
    (folder / "facts.tsv").write_text("".join("\t".join(fact) + "\n" for fact in facts))
    (folder / "names.tsv").write_text("".join(f"{name}\tthe {name} of the town\n" for name in [*people, *cities]))
    return ["--data.name", "facts.tsv", "--data.root", str(folder), "--data.texts", str(folder / "names.tsv")]


def topics(folder):
    """Questions with documents and summaries, in rows."""
    folder.mkdir(parents=True)
    text = "Rain fell all of day {n}. Bridge {n} was rebuilt after a storm. Nobody came to see tower {n}."
    for name in ("train", "test"):
        rows = [
            {"query": f"What happened to bridge {n}?", "document": text.format(n=n), "group": f"{name}{n}",
             "summary": f"Bridge {n} was rebuilt."}
            for n in range(8)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--data.train", "train.jsonl", "--data.test", "test.jsonl", "--model.encoder", "hashed-16"]
    return ["--data.name", "jsonl", "--data.root", str(folder), "--arms", "[stage2]", *files]


def whole_images(folder):
    """As ``class_folders``, brought to one side whole."""
    attack = ["--attack.portion", "0.2", "--attack.updated_portion", "0.2", "--attack.images_per_class", "1"]
    few = ["--held_out", "2", "--images_per_class", "[1]"]
    return [*class_folders(folder, each=12)[:-2], "--data.resize", "16", *few, *attack]


def many_images(folder):
    """As ``class_folders``, enough to measure an uncertainty on."""
    return [*class_folders(folder, each=70), "--data.auxiliary", "55", "--model.arguments", "{widths: [16]}"]


def questions_about_photos(folder):
    """Photos, and a table of questions about them."""
    folder.mkdir(parents=True)
    random, rows = np.random.default_rng(0), ["image,question,answer"]
    for number in range(20):
        Image.fromarray(random.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows += [f"{number}.png,is there a {thing}?,{('yes', 'no')[number % 2]}" for thing in ("dog", "cat", "car")]
    (folder / "questions.csv").write_text("\n".join(rows) + "\n")
    named = ["--data.name", "folder", "--data.root", str(folder), "--data.file", "questions.csv"]
    return [*named, "--model.shorter", "32"]


OWN = {
    "backbone-search": boxes,
    "boosted-exits": class_folders,
    "dual-encoder": questions_about_photos,
    "full-skip-depth": pairs_with_depth,
    "activation-uncertainty": many_images,
    "relation-distillation": class_folders,
    "graph-fusion": graph_with_texts,
    "condensation-audit": whole_images,
    "query-summarizer": topics,
}
"""By system: takes a folder that is not there yet, gives options of ``tenfold run``."""
