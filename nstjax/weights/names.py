"""Where an array of a file belongs, by its name in Keras, torchvision and others: (layer, part) of ours, or None."""

import re
from collections.abc import Callable

Place = tuple[str, str | None]  # layer and part; None if the array itself tells the part (`part_of`)

TORCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance"}
# torchvision's numbers of the convolutions of each block, counting ReLUs and pools too.
VGG_NUMBERS = {
    "vgg16": ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)),
    "vgg19": ((0, 2), (5, 7), (10, 12, 14, 16), (19, 21, 23, 25), (28, 30, 32, 34)),
}
SQUEEZENET_NUMBERS = {0: "conv1"} | {n: f"fire{i}" for i, n in enumerate((3, 4, 6, 7, 9, 10, 11, 12), 2)}


def _keras_part(name: str) -> tuple[str, str]:
    """("conv1_bn", "gamma") for Keras's "conv1_bn/gamma:0", with its groups; ("", "") if it belongs to no layer."""
    if name.startswith("optimizer"):  # Keras stores Adam's moments under the layers' names
        return "", ""
    match = re.fullmatch(r"(.+)/(kernel|bias|gamma|beta|moving_mean|moving_variance)(?::0)?", name)
    return (match[1], match[2].removeprefix("moving_")) if match else ("", "")


def vgg(name: str) -> Place | None:
    """The layer of our "conv1_2/bias", and of names with "block1_conv2", as in Keras and its ports."""
    if name.startswith("optimizer"):
        return None
    keras, own = r"(?<![a-z0-9])block(\d)_conv(\d)(?!\d)", r"(?<!\w)conv(\d)_(\d)(?!\d)"
    match = re.search(keras, name) or re.search(own, name)
    return (f"conv{match[1]}_{match[2]}", None) if match else None


def vgg_torchvision(network: str) -> Callable[[str], Place | None]:
    layers = {
        f"features.{number}": f"conv{block}_{i}"
        for block, numbers in enumerate(VGG_NUMBERS[network], 1)
        for i, number in enumerate(numbers, 1)
    }

    def place(name: str) -> Place | None:
        match = re.search(r"(?:^|\.)(features\.\d+)\.(?:weight|bias)$", name)
        return (layers.get(match[1], match[1]), None) if match else None

    return place


def squeezenet(name: str) -> Place | None:
    """Our "fire2_squeeze/kernel", and "fire2/squeeze1x1/kernel" of Keras's ports."""
    layer, part = _keras_part(name)
    match = re.search(r"(?:^|/)(conv1|fire\d[/_](?:squeeze|expand[13]x[13]))(?:1x1)?$", layer)
    return (match[1].replace("/", "_"), part) if match else None


def squeezenet_torchvision(name: str) -> Place | None:
    match = re.search(r"(?:^|\.)features\.(\d+)\.(?:(squeeze|expand1x1|expand3x3)\.)?(weight|bias)$", name)
    if not match:
        return None
    layer = SQUEEZENET_NUMBERS.get(int(match[1]), f"features.{match[1]}")
    return f"{layer}_{match[2]}" if match[2] else layer, {"weight": "kernel"}.get(match[3], match[3])


def resnet_torchvision(name: str) -> Place | None:
    pattern = r"(?:^|\.)(layer\d\.\d+\.)?(conv|bn|downsample\.)(\d)\.(weight|bias|running_mean|running_var)$"
    match = re.search(pattern, name)
    if not match:
        return None
    block, kind, number, part = match.groups()
    shortcut = kind == "downsample."
    layer = (block or "").replace(".", "_") + ("shortcut" if shortcut else f"conv{number}")
    norm = kind == "bn" or (shortcut and number == "1")
    return layer, TORCH_NORM[part] if norm else {"weight": "kernel"}.get(part, part)


def resnet_keras(name: str) -> Place | None:
    layer, part = _keras_part(name)
    match = re.search(r"(?:^|/)conv(\d)_(?:block(\d+)_(\d)_)?(?:conv|bn)$", layer)
    if not match:
        return None
    stage, block, number = match.groups()
    if block is None:
        return f"conv{stage}", part
    inner = "shortcut" if number == "0" else f"conv{number}"
    return f"layer{int(stage) - 1}_{int(block) - 1}_{inner}", part


def densenet_torchvision(name: str) -> Place | None:
    """The official file says denselayer1.norm.1 for what torchvision calls denselayer1.norm1 now."""
    pattern = r"(?:^|\.)features\.(?:denseblock(\d)\.denselayer(\d+)\.|transition(\d)\.)?(conv|norm)\.?(\d?)\."
    match = re.search(pattern + "(weight|bias|running_mean|running_var)$", name)
    if not match:
        return None
    block, number, transition, kind, index, part = match.groups()
    part = TORCH_NORM[part] if kind == "norm" else {"weight": "kernel"}.get(part, part)
    if block:
        inner = {"norm1": "norm", "norm2": "conv1"}.get(kind + index, kind + index)
        return f"block{block}_{number}_{inner}", part
    if transition:
        return f"transition{transition}_{kind}", part
    return {"norm0": "conv0"}.get(kind + index, kind + index), part


def densenet_keras(name: str) -> Place | None:
    layer, part = _keras_part(name)
    if match := re.search(r"(?:^|/)conv(\d)_block(\d+)_(0_bn|1_conv|1_bn|2_conv)$", layer):
        inner = {"0_bn": "norm", "1_conv": "conv1", "1_bn": "conv1", "2_conv": "conv2"}[match[3]]
        return f"block{int(match[1]) - 1}_{match[2]}_{inner}", part
    if match := re.search(r"(?:^|/)pool(\d)_(conv|bn)$", layer):
        return f"transition{int(match[1]) - 1}_{'norm' if match[2] == 'bn' else 'conv'}", part
    if re.search(r"(?:^|/)conv1[/_](?:conv|bn)$", layer):
        return "conv0", part
    return ("norm5", part) if re.search(r"(?:^|/)bn$", layer) else None


VIT_LAYERS = {
    "ln_1": "norm1",
    "self_attention.in_proj": "qkv",
    "self_attention.out_proj": "out",
    "ln_2": "norm2",
    "mlp.linear_1": "mlp1",  # in the official file
    "mlp.0": "mlp1",  # in torchvision now
    "mlp.linear_2": "mlp2",
    "mlp.3": "mlp2",
}


def vit_torchvision(name: str) -> Place | None:
    if match := re.search(r"(?:^|\.)(class_token|encoder\.pos_embedding)$", name):
        return "tokens", "class" if match[1] == "class_token" else "positions"
    kernel, norm = {"weight": "kernel", "bias": "bias"}, {"weight": "scale", "bias": "shift"}
    if match := re.search(r"(?:^|\.)(conv_proj|encoder\.ln)\.(weight|bias)$", name):
        return ("patches", kernel[match[2]]) if match[1] == "conv_proj" else ("norm", norm[match[2]])
    match = re.search(r"(?:^|\.)encoder\.layers\.encoder_layer_(\d+)\.(.+?)[._](weight|bias)$", name)
    if not match:
        return None
    inner = VIT_LAYERS.get(match[2], match[2])
    return f"block{int(match[1]) + 1}_{inner}", (norm if inner.startswith("norm") else kernel)[match[3]]


def efficientnet(name: str) -> Place | None:
    """Our "stage1_0_project/kernel"."""
    match = re.fullmatch(r"(stem|stage\d_\d_(?:expand|depthwise|project))/(kernel|bias)", name)
    return (match[1], match[2]) if match else None


EFFICIENTNET_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks


def efficientnet_torch(name: str) -> Place | None:
    """Names of efficientnet_pytorch, which numbers all blocks in one row."""
    pattern = r"(?:^|\.)(?:_blocks\.(\d+)\.)?_(conv_stem|(?:expand|depthwise|project)_conv|bn\d)\."
    match = re.search(pattern + "(weight|bias|running_mean|running_var)$", name)
    if not match:
        return None
    block, inner, part = match.groups()
    if block is None:  # bn1 belongs to the head
        return None if inner == "bn1" else ("stem", "kernel" if inner == "conv_stem" else TORCH_NORM[part])
    blocks = [f"stage{s}_{i}" for s, count in enumerate(EFFICIENTNET_STAGES, 1) for i in range(count)]
    place = blocks[int(block)] if int(block) < len(blocks) else block
    norms = {"bn0": "expand", "bn1": "depthwise", "bn2": "project"}
    return f"{place}_{norms.get(inner, inner.removesuffix('_conv'))}", TORCH_NORM[part] if inner in norms else "kernel"


def in_dense_layers(layer: str) -> bool:
    return layer == "conv0" or layer.endswith("_conv1")
