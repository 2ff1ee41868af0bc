"""Weights of networks: bundled with the package, downloaded with a checksum, or read from a file.

Whatever the source, a network's weights have one form: kernels [h, w, in, out] and biases of `conv(image - mean)` for
RGB images in [0, 1]. Caffe's and torchvision's preprocessing are folded into the first kernel, except for the mean,
which is subtracted before the zeros of the padding are added. Importing this package needs neither jax nor safetensors.
"""

from nstjax.weights.download import PICTURES as PICTURES
from nstjax.weights.download import bundled as bundled
from nstjax.weights.download import bundled_files as bundled_files
from nstjax.weights.download import bundled_folder as bundled_folder
from nstjax.weights.layouts import CAFFE as CAFFE
from nstjax.weights.layouts import CENTERED as CENTERED
from nstjax.weights.layouts import IMAGENET as IMAGENET
from nstjax.weights.layouts import MEANS as MEANS
from nstjax.weights.layouts import fold as fold
from nstjax.weights.reading import read as read
