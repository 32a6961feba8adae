"""The systems that exist, each with its room; what the command line offers follows from this list."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from tenfold.errors import UserError


@dataclass(frozen=True)
class System:
    """One system.

    Attributes:
        id: name on the command line.
        alias: the method's own name, also accepted.
        summary: one line.
        paper: where the method was published.
        package: import name of its room. Its ``recipe`` offers ``Config``, ``PRESETS`` and ``run``; its
            ``commands`` offers ``evaluate``, ``export``, ``import_official``, ``predict`` and ``VERBS``.
    """

    id: str
    alias: str
    summary: str
    paper: str
    package: str

    @property
    def recipe(self) -> ModuleType:
        """The experiment; importing it loads torch."""
        return self._part("experiment.recipe", "recipe")

    @property
    def commands(self) -> ModuleType:
        """What the command line can do with a finished run of it."""
        return self._part("cli", "commands")

    def _part(self, name: str, flat: str) -> ModuleType:
        """A module of the room; rooms move to wings one by one, and some are still flat."""
        wing, _, _ = name.partition(".")
        winged = find_spec(f"{self.package}.{wing}") is not None
        return import_module(f"{self.package}.{name if winged else flat}")


SYSTEMS = (
    System(
        id="backbone-search",
        alias="backbone-evolution",
        summary="finds the detector that fits a budget on your data: evolution of backbones with weight mapping",
        paper="Multi-Objective Evolutionary for Object Detection Mobile Architectures Search, arXiv 2211.02791, 2022",
        package="tenfold.systems.backbone_search",
    ),
    System(
        id="boosted-exits",
        alias="boostnet",
        summary="early-exit networks trained as gradient-boosted additive models",
        paper="Boosted Dynamic Neural Networks, AAAI 2023",
        package="tenfold.systems.boosted_exits",
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
    ),
    System(
        id="graph-fusion",
        alias="vem2l",
        summary="a text and a structure encoder of a sparse knowledge graph teach each other; one of them serves alone",
        paper="VEM2L: A Plug-and-play Framework for Fusing Text and Structure Knowledge on Sparse Knowledge Graph "
        "Completion, arXiv 2207.01528, 2022",
        package="tenfold.systems.graph_fusion",
    ),
    System(
        id="condensation-audit",
        alias="doorping",
        summary="condenses data sets, and audits condensed sets and models trained on them for backdoors",
        paper="Backdoor Attacks Against Dataset Distillation, NDSS 2023",
        package="tenfold.systems.condensation_audit",
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
