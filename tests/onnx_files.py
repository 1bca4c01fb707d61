"""A tiny network, in torch and as an ONNX file."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper


def network(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), torch.nn.ReLU())


def write(path, *, shape=("n", 3, "h", "w"), kind=TensorProto.FLOAT, seed=0, outputs=("map",), external=None):
    """The network above as an ONNX file; `outputs` are of `map`, `vector` and `tokens`."""
    conv = network(seed)[0]
    weights = [numpy_helper.from_array(conv.weight.detach().numpy(), "weight")]
    nodes, name = [], "pixels"
    if shape[-1] == 3:
        nodes.append(helper.make_node("Transpose", [name], ["first"], perm=[0, 3, 1, 2]))
        name = "first"
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [name], ["cast"], to=TensorProto.FLOAT))
        name = "cast"
    nodes += [
        helper.make_node("Conv", [name, "weight"], ["conv"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["map"]),
        helper.make_node("ReduceMean", ["map"], ["vector"], axes=[2, 3], keepdims=0),
        helper.make_node("Reshape", ["map", "flat"], ["flattened"]),
        helper.make_node("Transpose", ["flattened"], ["tokens"], perm=[0, 2, 1]),
    ]
    weights.append(numpy_helper.from_array(np.array([0, 6, -1]), "flat"))
    shapes = {"map": [shape[0], 6, "h2", "w2"], "vector": [shape[0], 6], "tokens": [shape[0], "t", 6]}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", kind, list(shape))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shapes[output]) for output in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    stored = {} if external is None else {"save_as_external_data": True, "location": external, "size_threshold": 100}
    onnx.save(model, path, **stored)
    return path
