"""What an index's ``index.json`` says."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["float32", "float16", "int8"]


class Segment(BaseModel):
    """Some images of an index; never changed once written, but for what is deleted.

    Attributes:
        name: of its files.
        count: number of records.
        vectors_sha256: of the vectors' file.
        ids_sha256: of the names' file.
        deleted: numbers of records that count no more.
    """

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"[0-9]{6}")
    count: int = Field(gt=0)
    vectors_sha256: str
    ids_sha256: str
    deleted: list[int] = []


class IndexManifest(BaseModel):
    """``index.json``.

    Attributes:
        format: version of this layout.
        fingerprint: of the model that made the vectors.
        kind: of the numbers.
        images: vectors per image.
        width: numbers of a vector.
        segments: in order.
        skipped: images that could not be read, each with the reason.
    """

    model_config = ConfigDict(extra="forbid")
    format: Literal["tenfold-visual-index-1"] = "tenfold-visual-index-1"
    fingerprint: str
    kind: Kind
    images: int = Field(gt=0)
    width: int = Field(gt=0)
    segments: list[Segment] = []
    skipped: dict[str, str] = {}
