"""The systems that exist, each with its room; what the command line offers follows from this list."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from tenfold.errors import UserError


@dataclass(frozen=True)
class System:
    """One system.

    Attributes:
        id: name on the command line.
        alias: the method's own name, also accepted.
        summary: one line.
        paper: where the method was published.
        package: import name of its room. Its ``experiment.settings`` offers ``Config`` and ``PRESETS``, its
            ``experiment.recipe`` ``run``, its ``experiment.trials`` ``TRIALS``; its ``cli`` offers ``evaluate``,
            ``export``, ``import_official``, ``predict`` and ``VERBS``; it offers ``load`` itself.
        needs: optional packages that preset ``tiny`` needs, by import name, each with the extra that brings it.
    """

    id: str
    alias: str
    summary: str
    paper: str
    package: str
    needs: tuple[tuple[str, str], ...] = ()

    @property
    def settings(self) -> ModuleType:
        """The settings of the experiment; importing them loads neither torch nor Lightning."""
        return import_module(f"{self.package}.experiment.settings")

    @property
    def recipe(self) -> ModuleType:
        """The experiment; importing it loads torch."""
        return import_module(f"{self.package}.experiment.recipe")

    @property
    def trials(self) -> dict[str, Any]:
        """The experiments that settle its main claims, by name: ``tenfold.settling.Trial``."""
        return dict(import_module(f"{self.package}.experiment.trials").TRIALS)

    @property
    def commands(self) -> ModuleType:
        """What the command line can do with a finished run of it."""
        return import_module(f"{self.package}.cli")

    @property
    def extras(self) -> list[str]:
        """Names of the extras that preset ``tiny`` needs."""
        return list(dict.fromkeys(extra for _, extra in self.needs))

    def missing_packages(self) -> list[str]:
        """Optional packages that preset ``tiny`` needs and that are not installed."""
        return [package for package, _ in self.needs if find_spec(package) is None]


SYSTEMS = (
    System(
        id="backbone-search",
        alias="backbone-evolution",
        summary="finds the detector that fits a budget on your data: evolution of backbones with weight mapping",
        paper="Multi-Objective Evolutionary for Object Detection Mobile Architectures Search, arXiv 2211.02791, 2022",
        package="tenfold.systems.backbone_search",
        needs=(("optuna", "search"), ("hotcoco", "search"), ("onnx", "onnx"), ("onnxscript", "onnx")),
    ),
    System(
        id="boosted-exits",
        alias="boostnet",
        summary="early-exit networks trained as gradient-boosted additive models",
        paper="Boosted Dynamic Neural Networks, AAAI 2023",
        package="tenfold.systems.boosted_exits",
    ),
    System(
        id="full-skip-depth",
        alias="fscn",
        summary="monocular depth in metres with full skip connections, and a scorer that names its protocol",
        paper="Rethinking Skip Connections in Encoder-decoder Networks for Monocular Depth Estimation, "
        "arXiv 2208.13441, 2022",
        package="tenfold.systems.full_skip_depth",
    ),
    System(
        id="dual-encoder",
        alias="dide",
        summary="asks a thousand images a question for the price of one: a dual encoder distilled from a fusion model",
        paper="Distilled Dual-Encoder Model for Vision-Language Understanding, EMNLP 2022",
        package="tenfold.systems.dual_encoder",
    ),
    System(
        id="activation-uncertainty",
        alias="activation-strength",
        summary="dropout-grade prediction uncertainty from neuron activations in one forward pass",
        paper="Dropout Prediction Uncertainty Estimation Using Neuron Activation Strength, 2021; WSDM 2021",
        package="tenfold.systems.activation_uncertainty",
    ),
    System(
        id="relation-distillation",
        alias="tinymim",
        summary="distils token relations of a masked-image-modelling teacher into a small ViT",
        paper="TinyMIM, CVPR 2023",
        package="tenfold.systems.relation_distillation",
        needs=(("timm", "timm"),),
    ),
    System(
        id="graph-fusion",
        alias="vem2l",
        summary="a text and a structure encoder of a sparse knowledge graph teach each other; one of them serves alone",
        paper="VEM2L: A Plug-and-play Framework for Fusing Text and Structure Knowledge on Sparse Knowledge Graph "
        "Completion, arXiv 2207.01528, 2022",
        package="tenfold.systems.graph_fusion",
        needs=(("pykeen", "graphs"),),
    ),
    System(
        id="condensation-audit",
        alias="doorping",
        summary="condenses data sets, and audits condensed sets and models trained on them for backdoors",
        paper="Backdoor Attacks Against Dataset Distillation, NDSS 2023",
        package="tenfold.systems.condensation_audit",
    ),
    System(
        id="query-summarizer",
        alias="qbert",
        summary="answers a question with citable sentences; builds training data from Wikipedia; fine-tunes sparsely",
        paper="Transforming Wikipedia into Augmented Data for Query-Focused Summarization, IEEE/ACM TASLP 2022",
        package="tenfold.systems.query_summarizer",
    ),
    System(
        id="cross-modal-detector",
        alias="cmt",
        summary="3-D boxes from cameras and LiDAR in plain PyTorch, trained to survive the loss of either",
        paper="Cross Modal Transformer: Towards Fast and Robust 3D Object Detection, ICCV 2023",
        package="tenfold.systems.cross_modal_detector",
    ),
)


def find_system(name: str) -> System:
    """The system with this id or alias.

    Raises:
        UserError: there is none.
    """
    for system in SYSTEMS:
        if name in (system.id, system.alias):
            return system
    raise UserError(f"there is no system {name!r}; there are: {', '.join(system.id for system in SYSTEMS)}")


def load(run: str | Path, *, factory: str | None = None) -> Any:
    """The served model of a run or a model folder of any system, ready to call.

    Args:
        run: folder of a finished run, of an import, or of a model.
        factory: ``package.module:function`` that the model may be made by, where it is one of the user's own: a file
            alone never runs code.

    Returns:
        What the system serves: a module in eval mode, or an object that is called as its system's ``load`` says.

    Raises:
        UserError: the folder holds no model, it is damaged, or needs a factory that was not allowed.
    """
    from tenfold.run import system_of

    room = import_module(find_system(system_of(run)).package)
    return room.load(run, factory=factory)


def load_network(run: str | Path, *, factory: str | None = None) -> tuple[Any, Any]:
    """The plain network of a run or a model folder of any system, for a system that takes one.

    Args:
        run: see ``load``.
        factory: see ``load``.

    Returns:
        The network in eval mode, which maps normalized images to its output without thresholds, guards or estimators
        around it; and the ``tenfold.data.Preprocessing`` of its images, or ``None`` where its manifest has none.

    Raises:
        UserError: as ``load``; or what is served is no network, or one of images that no other system makes.
    """
    from torch import nn

    from tenfold.data import Preprocessing
    from tenfold.files import printable
    from tenfold.models.folder import load_manifest

    served, manifest = load(run, factory=factory), load_manifest(run)
    network = getattr(served, "network", served)
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{printable(run)} is of {manifest.system}, which serves a {type(served).__name__} and no network"
        )
    if manifest.extra.get("zca"):
        raise UserError(f"{printable(run)} holds a network of whitened images, which no other system makes")
    said = manifest.extra.get("preprocessing")
    return network.eval(), None if said is None else Preprocessing.from_dict(said)
