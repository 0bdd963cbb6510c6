# SPDX-License-Identifier: Apache-2.0
"""The trees that the benchmarks walk: parameters of networks, optimizer states, extreme shapes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

Shape = tuple[int, ...]

BLOCKS = {  # blocks per stage, and whether they are bottlenecks
    "resnet18": ((2, 2, 2, 2), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
EXPANSION = 4  # of a bottleneck's last convolution


def resnet_shapes(model: str) -> Iterator[tuple[str, Shape]]:
    """The names and shapes of a ResNet's parameters, in the order of its modules."""
    stages, bottleneck = BLOCKS[model]
    yield "conv1.weight", (64, 3, 7, 7)
    yield from _norm("bn1", 64)
    inputs = 64
    for stage, blocks in enumerate(stages):
        width = 64 * 2**stage
        outputs = width * EXPANSION if bottleneck else width
        for block in range(blocks):
            prefix = f"layer{stage + 1}.{block}"
            kernels = ((1, width), (3, width), (1, outputs)) if bottleneck else ((3, width),) * 2
            channels = inputs
            for i, (kernel, out) in enumerate(kernels, start=1):
                yield f"{prefix}.conv{i}.weight", (out, channels, kernel, kernel)
                yield from _norm(f"{prefix}.bn{i}", out)
                channels = out
            if block == 0 and inputs != outputs:
                yield f"{prefix}.downsample.0.weight", (outputs, inputs, 1, 1)
                yield from _norm(f"{prefix}.downsample.1", outputs)
            inputs = outputs
    yield "fc.weight", (1000, inputs)
    yield "fc.bias", (1000,)


def _norm(prefix: str, channels: int) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.weight", (channels,)
    yield f"{prefix}.bias", (channels,)


def transformer_names(stem: list[str], layer: list[str], layers: int) -> Iterator[str]:
    """Names of a transformer's parameters, each layer alike."""
    for name in stem:
        yield from (f"{name}.weight", f"{name}.bias")
    for i in range(layers):
        for name in layer:
            yield from (f"layers.{i}.{name}.weight", f"layers.{i}.{name}.bias")


VIT_H_LAYER = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
VIT_H = list(transformer_names(["patch_embed", "norm", "head"], VIT_H_LAYER, 32))
GPT_2_LAYER = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
GPT_2 = list(transformer_names(["wte", "ln_f"], GPT_2_LAYER, 12))


def nested(names: Iterator[str] | list[str], container: type, leaves: Iterator[Any]) -> Any:
    """Leaves under dotted names, nested as modules are; names interned, as attributes are."""
    tree = container()
    for name in names:
        *modules, parameter = map(sys.intern, name.split("."))
        node = tree
        for module in modules:
            node = node.setdefault(module, container())
        node[parameter] = next(leaves)
    return tree


def resnet_tree(model: str, container: type, make: Callable[[Shape], Any]) -> Any:
    """The parameters of a ResNet, nested as its modules are."""
    names, shapes = zip(*resnet_shapes(model))
    return nested(names, container, map(make, shapes))


class Moments(NamedTuple):
    """An optimizer's state as transformations keep it."""

    count: Any
    mu: Any
    nu: Any


@dataclass
class Layer:
    """A custom node; the benchmark registers it with every library that takes such."""

    weight: Any
    bias: Any


def trees(make: Callable[[Shape], Any]) -> dict[str, Any]:
    """Every tree by name; ``make`` gives the leaves."""

    def leaf() -> Any:
        return make(())

    def leaves() -> Iterator[Any]:
        while True:
            yield make(())

    deep: Any = leaf()
    for _ in range(500):
        deep = [deep]
    resnet50 = [name for name, _ in resnet_shapes("resnet50")]
    built = {
        f"{model} {container.__name__}": resnet_tree(model, container, make)
        for container in (OrderedDict, dict)
        for model in BLOCKS
    }
    return built | {
        "vit-h dict": nested(VIT_H, dict, leaves()),
        "gpt-2 dict": nested(GPT_2, dict, leaves()),
        "gpt-2 state dict": OrderedDict((name, leaf()) for name in GPT_2),
        "adam state dict": {
            "state": {
                i: {"step": leaf(), "exp_avg": leaf(), "exp_avg_sq": leaf()} for i in range(160)
            },
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": list(range(160))}],
        },
        "moments namedtuple": Moments(
            leaf(), nested(resnet50, dict, leaves()), nested(resnet50, dict, leaves())
        ),
        "namedtuples": [Moments(leaf(), leaf(), leaf()) for _ in range(100)],
        "custom nodes": [Layer(leaf(), {"b": leaf()}) for _ in range(100)],
        "list of 1e5": [leaf()] * 100_000,
        "dict of 1e5": {f"key{i}": i for i in range(100_000)},
        "depth 500": deep,
        "one leaf": leaf(),
        "dict of 3": {"a": leaf(), "b": leaf(), "c": leaf()},
    }
