"""Which channels of a network belong together: a symbolic forward pass.

Every module here can tell, without computing anything, what its tensors' axes mean: which *channel group* an axis
is made of, and how large the map is that a convolution writes. Groups are what weight mapping moves (all blocks of a
stage that are added to each other share one), and the sizes give the exact number of multiply-adds.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Segment:
    """A run of channels of one group: axes after a concatenation have several."""

    group: str
    size: int


Axis = tuple[Segment, ...]


def width(axis: Axis) -> int:
    """Channels of an axis."""
    return sum(segment.size for segment in axis)


@dataclass(frozen=True)
class Flow:
    """A feature map between modules.

    Attributes:
        axis: its channels.
        height: rows; where the map is pooled to a point, 1.
        width: columns.
    """

    axis: Axis
    height: int
    width: int

    @property
    def channels(self) -> int:
        """Number of channels."""
        return width(self.axis)


@dataclass(frozen=True)
class ConvolutionRecord:
    """What one convolution connects.

    Attributes:
        name: of the module; its weight is ``name.weight``.
        outgoing: axis 0 of the weight.
        incoming: axis 1 of the weight; ``None`` where the convolution is depthwise.
        norm: name of the batch normalization that follows, or empty.
        kernel: side of the kernel.
        multiply_adds: of one image.
        activations: elements that it writes for one image.
        gate: whether it is part of a squeeze-and-excitation gate.
    """

    name: str
    outgoing: Axis
    incoming: Axis | None
    norm: str
    kernel: int
    multiply_adds: int
    activations: int
    gate: bool = False


@dataclass
class ChannelLayout:
    """All convolutions of a network in the order of the forward pass, with the groups of their axes."""

    records: list[ConvolutionRecord] = field(default_factory=list)

    def convolution(
        self, name: str, flow: Flow, group: str | Axis, *, out: int, kernel: int, stride: int = 1,
        depthwise: bool = False, norm: str = "", gate: bool = False,
    ) -> Flow:  # fmt: skip
        """Record a convolution with padding ``kernel // 2`` and give the map it writes.

        Args:
            name: of the module.
            flow: what it reads.
            group: name of the group of its output channels, or their whole axis where they belong to an earlier one.
            out: output channels.
            kernel: side of the kernel.
            stride: of both axes.
            depthwise: one filter per channel; the output has the input's axis.
            norm: name of the batch normalization that follows.
            gate: see ``ConvolutionRecord``.
        """
        height, columns = -(-flow.height // stride), -(-flow.width // stride)
        outgoing = flow.axis if depthwise else (Segment(group, out),) if isinstance(group, str) else group
        fan_in = 1 if depthwise else flow.channels
        written = out * height * columns
        self.records.append(
            ConvolutionRecord(
                name,
                outgoing,
                None if depthwise else flow.axis,
                norm,
                kernel,
                written * fan_in * kernel**2,
                written,
                gate,
            )
        )
        return Flow(outgoing, height, columns)

    @property
    def multiply_adds(self) -> int:
        """Of one image, convolutions only: half of what torch's ``FlopCounterMode`` counts."""
        return sum(record.multiply_adds for record in self.records)


def concatenate(*flows: Flow) -> Flow:
    """The map that ``torch.cat`` over channels gives."""
    return Flow(tuple(segment for flow in flows for segment in flow.axis), flows[0].height, flows[0].width)
