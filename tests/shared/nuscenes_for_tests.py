"""nuScenes tables with everything that scoring treats specially, and random results for them; numpy alone.

Ten classes, boxes without points, a bicycle rack, attributes and none, objects seen once, class ``trailer`` absent.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

CATEGORIES = {
    "car": "vehicle.car", "truck": "vehicle.truck", "bus": "vehicle.bus.rigid",
    "construction_vehicle": "vehicle.construction", "pedestrian": "human.pedestrian.adult",
    "motorcycle": "vehicle.motorcycle", "bicycle": "vehicle.bicycle", "traffic_cone": "movable_object.trafficcone",
    "barrier": "movable_object.barrier",
}  # fmt: skip
ATTRIBUTES = {
    "car": ["vehicle.moving", "vehicle.parked"], "truck": ["vehicle.moving", "vehicle.stopped"],
    "bus": ["vehicle.moving", "vehicle.stopped"], "construction_vehicle": ["vehicle.parked"],
    "pedestrian": ["pedestrian.moving", "pedestrian.standing"],
    "motorcycle": ["cycle.with_rider", "cycle.without_rider"],
    "bicycle": ["cycle.with_rider", "cycle.without_rider"],
}  # fmt: skip
VERSION = "v1.0-tests"


def token(*parts):
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def turn(yaw):
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def write_tables(root, scenes=3, frames=4, objects=30, seed=0):
    """Write the tables (no sensor files); gives the tokens of the samples by scene."""
    root = Path(root)
    (root / VERSION).mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    rows = {name: [] for name in (
        "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log", "scene",
        "sample", "sample_data", "sample_annotation", "map")}  # fmt: skip
    for name in [*CATEGORIES.values(), "static_object.bicycle_rack", "animal"]:
        rows["category"].append({"token": token(name), "name": name, "description": ""})
    for name in sorted({text for texts in ATTRIBUTES.values() for text in texts}):
        rows["attribute"].append({"token": token(name), "name": name, "description": ""})
    rows["visibility"].append({"token": "4", "level": "", "description": ""})
    rows["sensor"].append({"token": token("lidar"), "channel": "LIDAR_TOP", "modality": "lidar"})
    rows["calibrated_sensor"].append(
        {"token": token("lidar"), "sensor_token": token("lidar"), "translation": [0.9, 0.0, 1.8],
         "rotation": turn(-1.57), "camera_intrinsic": []})  # fmt: skip
    rows["log"].append({"token": token("log"), "logfile": "", "vehicle": "", "date_captured": "", "location": ""})
    rows["map"].append({"token": token("map"), "log_tokens": [token("log")], "category": "", "filename": ""})
    samples = {}
    for scene in range(scenes):
        own = [token(scene, frame) for frame in range(frames)]
        samples[f"scene-{scene}"] = own
        rows["scene"].append({"token": token("scene", scene), "name": f"scene-{scene}", "log_token": token("log"),
                              "nbr_samples": frames, "first_sample_token": own[0], "last_sample_token": own[-1],
                              "description": ""})  # fmt: skip
        place = draw.uniform(-300, 300, 2)
        for frame, sample in enumerate(own):
            time = 1_000_000 * (10 * scene + 100) + 500_000 * frame
            pose = [float(place[0] + 2 * frame), float(place[1]), 0.0]
            data = token(sample, "lidar")
            rows["sample"].append({"token": sample, "timestamp": time, "scene_token": token("scene", scene),
                                   "prev": own[frame - 1] if frame else "",
                                   "next": own[frame + 1] if frame + 1 < frames else ""})  # fmt: skip
            rows["ego_pose"].append({"token": data, "timestamp": time, "rotation": turn(0.3), "translation": pose})
            rows["sample_data"].append(
                {"token": data, "sample_token": sample, "ego_pose_token": data,
                 "calibrated_sensor_token": token("lidar"), "timestamp": time, "fileformat": "pcd",
                 "is_key_frame": True, "height": 0, "width": 0,
                 "filename": f"samples/LIDAR_TOP/{sample}.pcd.bin", "prev": "", "next": ""})  # fmt: skip
        for number in range(objects):
            name = list(CATEGORIES)[number % len(CATEGORIES)]
            category = "static_object.bicycle_rack" if number == objects - 1 else CATEGORIES[name]
            instance = token(scene, "instance", number)
            rows["instance"].append({"token": instance, "category_token": token(category), "nbr_annotations": frames,
                                     "first_annotation_token": "", "last_annotation_token": ""})  # fmt: skip
            start, speed, yaw = draw.uniform(-45, 45, 2), draw.uniform(-3, 3, 2), draw.uniform(-3, 3)
            size = draw.uniform(0.5, 5, 3)
            if category.endswith("rack"):
                start, speed, size = np.zeros(2), np.zeros(2), np.array([30.0, 30.0, 3.0])
            seen = [0] if number % 7 == 3 else range(frames)
            for frame in seen:
                texts = ATTRIBUTES.get(name, [])
                text = texts[int(draw.integers(len(texts)))] if texts and draw.random() < 0.8 else None
                centre = place + start + speed * 0.5 * frame
                rows["sample_annotation"].append(
                    {"token": token(scene, number, frame), "sample_token": own[frame], "instance_token": instance,
                     "visibility_token": "4", "attribute_tokens": [token(text)] if text else [],
                     "translation": [*centre.tolist(), float(size[2] / 2)], "size": size.tolist(),
                     "rotation": turn(yaw), "prev": token(scene, number, frame - 1) if frame and len(seen) > 1 else "",
                     "next": token(scene, number, frame + 1) if frame + 1 < frames and len(seen) > 1 else "",
                     "num_lidar_pts": int(draw.integers(0, 4)), "num_radar_pts": 0})  # fmt: skip
    for name, content in rows.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(content))
    (root / VERSION / "splits.json").write_text(json.dumps({"some": list(samples)}))
    return samples


def random_results(root, path, each=60, seed=1):
    """Write a result file: true boxes moved, some of another class, and noise; scores with ties."""
    folder = Path(root) / VERSION
    annotations = json.loads((folder / "sample_annotation.json").read_text())
    names = {row["token"]: row["name"] for row in json.loads((folder / "category.json").read_text())}
    instances = {
        row["token"]: names[row["category_token"]] for row in json.loads((folder / "instance.json").read_text())
    }
    back = {category: name for name, category in CATEGORIES.items()}
    draw = np.random.default_rng(seed)
    every = [*CATEGORIES, "trailer"]
    results = {row["token"]: [] for row in json.loads((folder / "sample.json").read_text())}
    for row in annotations:
        name = back.get(instances[row["instance_token"]])
        if name is None or draw.random() < 0.2:
            continue
        name = every[int(draw.integers(len(every)))] if draw.random() < 0.1 else name
        for _ in range(int(draw.integers(1, 3))):
            centre = np.array(row["translation"]) + draw.normal(0, 0.8, 3)
            _add(results, row["sample_token"], name, centre, np.array(row["size"]) * draw.uniform(0.7, 1.3, 3), draw)
    for sample, rows in results.items():
        origin = np.array(rows[0]["translation"]) if rows else np.zeros(3)
        while len(rows) < each:
            name = every[int(draw.integers(len(every)))]
            _add(results, sample, name, origin + draw.uniform(-30, 30, 3), draw.uniform(0.5, 5, 3), draw)
    meta = {"use_camera": True, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}
    Path(path).write_text(json.dumps({"meta": meta, "results": results}))


def _add(results, sample, name, centre, size, draw):
    texts = ATTRIBUTES.get(name, [""]) if name != "trailer" else ["vehicle.parked"]
    results[sample].append(
        {"sample_token": sample, "translation": centre.tolist(), "size": size.tolist(),
         "rotation": turn(float(draw.uniform(-3, 3))), "velocity": draw.normal(0, 1, 2).tolist(),
         "detection_name": name, "detection_score": float(np.round(draw.random(), 2)),
         "attribute_name": texts[int(draw.integers(len(texts)))]})  # fmt: skip
