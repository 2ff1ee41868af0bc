"""ResNet-50 (He 2016, arXiv 1512.03385) up to its last residual block, as one pure function."""

import re

from nstjax import layouts
from nstjax.features.layers import conv, max_pool
from nstjax.features.vgg import relu
from nstjax.weights import CAFFE, IMAGENET, MEANS, fold

BLOCKS = (3, 4, 6, 3)
WIDTH = 64  # channels of conv1 and of the first stage's bottlenecks


def layer_names():
    """Names of the layers in order: conv1, relu1, pool1, layer1_0, ..."""
    return ("conv1", "relu1", "pool1", *(f"layer{s}_{i}" for s, n in enumerate(BLOCKS, 1) for i in range(n)))


def features(params, image):
    """Activations {layer: [h, w, channels]} of conv1, relu1, pool1 and layer1_0 ... layer4_2; jit prunes.

    For an RGB picture [H, W, 3] in [0, 1]; `params` come from `nstjax.features.load`. layer2_3, named as torchvision
    does, is the fourth residual block of the second stage (Keras's conv3_block4_out, the papers' conv3_4), after its
    last ReLU; stages are at 1/4, 1/8, 1/16 and 1/32 of the picture's size. Batch norms are part of the convolutions.
    """
    out = {"conv1": conv(image - params["mean"], params["conv1"])}
    out["relu1"] = relu(out["conv1"])
    x = out["pool1"] = max_pool(out["relu1"])
    for name in layer_names()[3:]:
        short = conv(x, params[f"{name}_shortcut"]) if f"{name}_shortcut" in params else x
        for i in (1, 2):
            x = relu(conv(x, params[f"{name}_conv{i}"]))
        x = out[name] = relu(short + conv(x, params[f"{name}_conv3"]))
    return out


def shapes(strided="conv2"):
    """{layer: {part: shape}} of the params.

    strided: the convolution by which a stage halves the picture: conv2 in torchvision's net ("v1.5"), conv1 in Keras's,
    as in the paper. Its kernel is called "strided" then.
    """
    result = {"conv1": {"strided": (7, 7, 3, WIDTH), "bias": (WIDTH,)}}
    before = WIDTH
    for stage, count in enumerate(BLOCKS):
        width = WIDTH * 2**stage
        for i in range(count):
            kernels = {"conv1": (1, 1, before, width), "conv2": (3, 3, width, width), "conv3": (1, 1, width, 4 * width)}
            if i == 0:
                kernels["shortcut"] = (1, 1, before, 4 * width)
            for name, shape in kernels.items():
                halving = stage > 0 and i == 0 and name in (strided, "shortcut")
                kind = "strided" if halving else "kernel"
                result[f"layer{stage + 1}_{i}_{name}"] = {kind: shape, "bias": shape[3:]}
            before = 4 * width
    return result


def load(source="torchvision"):
    """Weights {"mean": [3], layer: {part: float32 array}}: keras', torchvision's, or a file's of either's names."""

    def in_files(parts):
        return {
            layer: {"kernel": own.get("kernel", own.get("strided"))} | dict.fromkeys(parts, own["bias"])
            for layer, own in shapes().items()
        }

    norm = ("gamma", "beta", "mean", "variance")
    known = {
        "torchvision": layouts.Layout(_torchvision, in_files(norm), IMAGENET, turned=True),
        "keras": layouts.Layout(_keras, in_files(("bias", *norm)), CAFFE),
    }
    kind, preprocessing, found = layouts.read("resnet50", source, known)
    strided, epsilon = {"torchvision": ("conv2", 1e-5), "keras": ("conv1", 1.001e-5)}[kind]
    tree: dict = {"mean": MEANS[preprocessing].copy()}
    for layer, own in shapes(strided).items():
        both = layouts.fold_norm(found[layer], epsilon=epsilon)
        tree[layer] = {"strided" if "strided" in own else "kernel": both["kernel"], "bias": both["bias"]}
    tree["conv1"]["strided"] = fold(tree["conv1"]["strided"], preprocessing)
    return tree


def _torchvision(name):
    pattern = r"(?:^|\.)(layer\d\.\d+\.)?(conv|bn|downsample\.)(\d)\.(weight|bias|running_mean|running_var)$"
    match = re.search(pattern, name)
    if not match:
        return None
    block, kind, number, part = match.groups()
    shortcut = kind == "downsample."
    layer = (block or "").replace(".", "_") + ("shortcut" if shortcut else f"conv{number}")
    norm = kind == "bn" or (shortcut and number == "1")
    return layer, layouts.TORCH_NORM[part] if norm else {"weight": "kernel"}.get(part, part)


def _keras(name):
    layer, part = layouts.keras_part(name) or ("", "")
    match = re.search(r"(?:^|/)conv(\d)_(?:block(\d+)_(\d)_)?(?:conv|bn)$", layer)
    if not match:
        return None
    stage, block, number = match.groups()
    if block is None:
        return f"conv{stage}", part
    inner = "shortcut" if number == "0" else f"conv{number}"
    return f"layer{int(stage) - 1}_{int(block) - 1}_{inner}", part
