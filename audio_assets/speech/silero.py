"""Silero VAD's network, laid out anew: the same weights and the same probabilities in under a third of the CPU time.

The packaged network runs its convolutions over one frame of 32 ms at a time: batches of hundreds of images that are
one to four columns wide, which onnxruntime works off one by one (measured: 57 µs a frame, nearly all of it there). A
convolution over four columns is a product of matrices, and with the columns of all frames below each other it is one
large product instead of hundreds of small ones (16 µs a frame). The weights come from the installed package at run
time; what is built here is the graph around them.

A network of another shape than the one that is known, or one that gives other probabilities, is run as it is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from audio_assets.speech.engine import Samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FRAME = 512
"""Samples per probability: what Silero VAD takes at 16 kHz."""

CONTEXT = 64
"""Samples of the frame before that it sees, too."""

STATE = 128
"""Width of its recurrent state."""

TOLERANCE = 1e-4
"""Largest difference of a probability that passes for the same network; rounding alone makes under 1e-6."""

_HOP = 128
_WINDOW = 256
_COLUMNS = 4
_BINS = 129
_OPSET = 18
_IR_VERSION = 9


@lru_cache(maxsize=1)
def session() -> Any:
    """The onnxruntime session, loaded once: inputs ``input`` (n, 576), ``h`` and ``c`` (1, 1, 128).

    Outputs: probabilities (n, ...), and the new ``h`` and ``c``. The frames are one stream, in order.
    """
    packaged = packaged_session()
    try:
        rebuilt = _load(rebuild(_network()))
        agree = _difference(packaged, rebuilt) <= TOLERANCE
    except Exception:  # whatever another release of the network brings, speech must be found
        return packaged
    return rebuilt if agree else packaged


def packaged_session() -> Any:
    """The network as faster-whisper packages it."""
    from faster_whisper.vad import get_vad_model

    return get_vad_model().session


def rebuild(network: Path) -> bytes:
    """The network of the ONNX file ``network`` as products of matrices: an ONNX model, serialized.

    Raises:
        KeyError: it has not the weights that are expected.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(network)).graph.initializer}
    graph = _Graph()

    # The spectrum: four overlapping windows of each frame, each a row, times the packaged Fourier basis.
    padded = graph.node("Pad", ["input", graph.constant(np.array([0, 0, 0, CONTEXT]))], mode="reflect")
    windows = [graph.columns(padded, k * _HOP, k * _HOP + _WINDOW) for k in range(_COLUMNS)]
    rows = graph.node("Concat", windows, axis=0)
    basis = weights["encoder.feature_extractor.forward_basis_buffer"][:, 0, :]
    squares = []
    for part in (basis[:_BINS], basis[_BINS:]):
        projected = graph.node("MatMul", [rows, graph.constant(part.T)])
        squares.append(graph.node("Mul", [projected, projected]))
    magnitude = graph.node("Sqrt", [graph.node("Add", squares)])
    columns = graph.node_many("Split", [magnitude], _COLUMNS, axis=0, num_outputs=_COLUMNS)

    # Four convolutions of three taps; columns outside the frame are zeros, so their taps are left out.
    for layer, stride in enumerate((1, 2, 2, 1)):
        kernel = weights[f"encoder.conv_layers.{layer}.weight"]
        bias = weights[f"encoder.conv_layers.{layer}.bias"]
        columns = [graph.convolution(columns, at, kernel, bias) for at in range(0, len(columns), stride)]
    [encoded] = columns

    sequence = graph.node("Unsqueeze", [encoded, graph.constant(np.array([1]))])
    recurrent = [graph.constant(weights[f"onnx::LSTM_{n}"]) for n in (209, 210, 211)]
    states = graph.node_many(
        "LSTM", [sequence, *recurrent, "", "h", "c"], 3, names=(None, "hn", "cn"), hidden_size=STATE
    )[0]
    flat = graph.node("Reshape", [states, graph.constant(np.array([-1, STATE]))])
    out = weights["decoder.conv1d.weight"][:, :, 0].T
    logits = graph.dense(graph.node("Relu", [flat]), out, weights["decoder.conv1d.bias"])
    probabilities = graph.node("Sigmoid", [logits])
    graph.node("Reshape", [probabilities, graph.constant(np.array([-1]))], name="speech_probs")

    def value(name: str, shape: Sequence[int | str]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state = [1, 1, STATE]
    made = helper.make_graph(
        graph.nodes,
        "silero",
        [value("input", ["frames", CONTEXT + FRAME]), value("h", state), value("c", state)],
        [value("speech_probs", ["frames"]), value("hn", state), value("cn", state)],
        graph.constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())


class _Graph:
    """ONNX nodes and constants, with names made up as they come."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: np.ndarray[Any, Any]) -> str:
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], name: str | None = None, **attributes: Any) -> str:
        return self.node_many(kind, inputs, 1, names=(name,), **attributes)[0]

    def node_many(
        self, kind: str, inputs: Sequence[str], outputs: int, names: Sequence[str | None] = (), **attributes: Any
    ) -> list[str]:
        from onnx import helper

        given = [*names, *[None] * (outputs - len(names))]
        made = [name or f"{kind}_{len(self.nodes)}_{i}" for i, name in enumerate(given)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, **attributes))
        return made

    def columns(self, data: str, start: int, stop: int) -> str:
        bounds = [self.constant(np.array([n])) for n in (start, stop, 1)]
        return self.node("Slice", [data, *bounds])

    def dense(self, data: str, matrix: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> str:
        return self.node("Gemm", [data, self.constant(matrix), self.constant(bias)])

    def convolution(
        self, columns: Sequence[str], at: int, kernel: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]
    ) -> str:
        """The output column whose middle tap is at input column ``at``, through a rectifier."""
        taps = [(k, at + k - 1) for k in range(kernel.shape[2]) if 0 <= at + k - 1 < len(columns)]
        seen = [columns[column] for _, column in taps]
        joined = seen[0] if len(seen) == 1 else self.node("Concat", seen, axis=1)
        matrix = np.concatenate([kernel[:, :, k] for k, _ in taps], axis=1).T
        return self.node("Relu", [self.dense(joined, matrix, bias)])


def _network() -> Path:
    from pathlib import Path

    from faster_whisper.utils import get_assets_path

    [network] = Path(get_assets_path()).glob("silero_vad*.onnx")
    return network


def _load(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Readers are the parallelism; a pool of threads in each session would only spin.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"], sess_options=options)


def _difference(one: Any, other: Any) -> float:
    """Largest difference of probabilities and states on half a second of noise that swells and fades."""
    frames = 16
    loudness = np.linspace(0.0, 0.5, frames, dtype=np.float32)[:, None]
    noise = np.random.default_rng(0).standard_normal((frames, CONTEXT + FRAME), dtype=np.float32)
    zero: Samples = np.zeros((1, 1, STATE), np.float32)
    given = {"input": noise * loudness, "h": zero, "c": zero}
    pairs = zip(one.run(None, given), other.run(None, given), strict=True)
    return max(float(np.abs(a.reshape(-1) - b.reshape(-1)).max()) for a, b in pairs)
