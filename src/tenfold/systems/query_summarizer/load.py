"""``load``: a run or model folder as a summarizer."""

from pathlib import Path

from torch import nn

from tenfold.models.folder import Manifest, load_manifest, load_weights, no_larger_than_its_files, refuse_code
from tenfold.systems.query_summarizer.extractor.build_extractor import build_from_manifest, extractor_of
from tenfold.systems.query_summarizer.extractor.summarizer import QuerySummarizer

SYSTEM = "query-summarizer"


def load_network(folder: str | Path) -> tuple[nn.Module, Manifest]:
    """The trained part of an extractor, in eval mode, and its manifest.

    Args:
        folder: of a run, or of an imported model.

    Raises:
        UserError: the folder holds no extractor, or its weights are damaged or do not fit.
    """
    manifest = load_manifest(folder, SYSTEM)
    with no_larger_than_its_files(folder, manifest.arguments):
        network = build_from_manifest(manifest.builder, manifest.arguments, manifest.extra)
    load_weights(network, folder)
    return network.eval(), manifest


def load(folder: str | Path, *, factory: str | None = None) -> QuerySummarizer:
    """A run's or model folder's summarizer, ready to use.

    Args:
        folder: of a run, or of an imported model.
        factory: no extractor is made by code of the user's own; as in ``tenfold.load``.

    Raises:
        UserError: the folder holds no extractor, or the sentence encoder it was trained on is not installed.
    """
    network, manifest = load_network(folder)
    refuse_code(manifest, factory)
    extractor = extractor_of(network, str(manifest.extra.get("vectors", "")))  # type: ignore[arg-type]
    return QuerySummarizer(extractor, name=f"{SYSTEM} {Path(folder).name}")
