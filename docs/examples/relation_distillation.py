"""Distil a timm ViT of DINO into a ViT-Tiny, and a transformers BERT into one of two layers, from local folders.

Run ``python relation_distillation.py vit TEACHER_FOLDER IMAGE_FOLDER OUT``, or with ``bert`` and a text file.
"""

import sys
from pathlib import Path

import timm
import torch
import transformers
from safetensors.torch import save_model
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from tenfold import distill_relations
from tenfold.data import read_image
from tenfold.data.shards import find_unlabelled


class Views(Dataset):
    """One random crop of an image, twice: jittered for the student, clean for the teacher."""

    def __init__(self, folder, size, mean, std):
        self.paths = find_unlabelled(folder).paths
        self.crop = v2.Compose([v2.RandomResizedCrop(size, scale=(0.2, 1.0)), v2.RandomHorizontalFlip()])
        self.jitter = v2.ColorJitter(0.4, 0.4, 0.4)
        self.normalize = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        view = self.crop(read_image(self.paths[index]))
        return self.normalize(self.jitter(view)), self.normalize(view)


def distil_vit(teacher_folder, images, out, *, epochs=100, batch=256, learning_rate=1.5e-4):
    """Teacher: a folder with config.json and weights, as timm's hub has them. Images: a folder, without labels."""
    teacher = timm.create_model(f"local-dir:{teacher_folder}")
    settings = teacher.pretrained_cfg
    size = settings["input_size"][-1]
    patch = teacher.patch_embed.patch_size[0]
    student = timm.create_model("vit_tiny_patch16_224", img_size=size, patch_size=patch, num_classes=0)
    views = Views(images, size, settings["mean"], settings["std"])
    batches = DataLoader(views, batch_size=min(batch, len(views)), shuffle=True, drop_last=True)
    found = distill_relations(student, teacher, batches, epochs=epochs, folder=out, learning_rate=learning_rate)
    save_model(student, str(Path(out) / "student.safetensors"))
    return found


def distil_bert(teacher_folder, text, out, *, epochs=3, batch=32, length=128, learning_rate=5e-4):
    """Teacher: a folder of save_pretrained with its tokenizer. Text: a file, one sample per line."""
    teacher = transformers.AutoModel.from_pretrained(teacher_folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher_folder, local_files_only=True)
    config = transformers.BertConfig(**(teacher.config.to_dict() | {"num_hidden_layers": 2}))
    student = transformers.BertModel(config)
    lines = [line for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]

    def encode(part):
        return dict(tokenizer(part, padding=True, truncation=True, max_length=length, return_tensors="pt"))

    batches = DataLoader(lines, batch_size=batch, shuffle=True, drop_last=len(lines) > batch, collate_fn=encode)
    # MiniLMv2: Q-Q, K-K and V-V over relation heads; padding takes no part.
    heads = teacher.config.num_attention_heads
    found = distill_relations(
        student,
        teacher,
        batches,
        epochs=epochs,
        folder=out,
        preset="minilmv2",
        heads=heads,
        learning_rate=learning_rate,
    )
    student.save_pretrained(Path(out) / "student")
    return found


if __name__ == "__main__":
    kind, teacher, data, out = sys.argv[1:]
    found = {"vit": distil_vit, "bert": distil_bert}[kind](teacher, data, out)
    print(found.history[-1], found.agreement)
