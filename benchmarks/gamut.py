"""Ways to stay in [0, 1] while L-BFGS optimizes a picture, compared by the saved 8-bit picture's loss.

    python benchmarks/gamut.py [--content PATH --style PATH --size 256 --evaluations 200]

Gatys's loss (relu4_2; relu1_1 to relu5_1), from the content. Prints a table: the loss of the optimizer's floats, and
of the saved picture.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from tqdm import tqdm

from nstjax import features, images, losses, objectives, solvers, terminal
from nstjax.features import vgg
from nstjax.weights import PICTURES

STYLE = [f"relu{block}_1" for block in range(1, 6)]


def optimize(objective, image, data, *, evaluations, project):
    """The last picture and loss of L-BFGS."""
    solver = solvers.lbfgs(objective, project=project)
    for _, picture, terms in tqdm(solvers.run(solver, image, data, steps=evaluations), total=evaluations, leave=False):
        image, loss = picture, terms["loss"]
    return image, loss


def projection(objective, content, data, evaluations):
    """Clip after every step, the gradient taken at the clipped picture: nstjax's default."""
    return optimize(objective, content, data, evaluations=evaluations, project=solvers.in_gamut)


def clamp_at_the_end(objective, content, data, evaluations):
    """As peers do."""
    return optimize(objective, content, data, evaluations=evaluations, project=lambda image: image)


def clamp_and_restart(objective, content, data, evaluations, every=25):
    """Clamp and forget the curvature every 25 evaluations."""
    image = content
    for _ in range(evaluations // every):
        image, loss = clamp_at_the_end(objective, jnp.clip(image, 0, 1), data, every)
    return image, loss


def sigmoid(objective, content, data, evaluations):
    """Optimise the logit of the picture."""
    image, loss = optimize(
        lambda z, data: objective(jax.nn.sigmoid(z), data),
        jax.scipy.special.logit(jnp.clip(content, 0.01, 0.99)),
        data,
        evaluations=evaluations,
        project=lambda z: z,
    )
    return jax.nn.sigmoid(image), loss


def penalty(objective, content, data, evaluations, weight=1e8):
    """Add the mean squared distance from the gamut to the loss."""

    def penalized(image, data):
        loss, terms = objective(image, data)
        return loss + weight * jnp.mean((image - jnp.clip(image, 0, 1)) ** 2), terms

    return optimize(penalized, content, data, evaluations=evaluations, project=lambda image: image)


def lbfgs_b(objective, content, data, evaluations):
    """SciPy's L-BFGS-B, 20 pairs, with its line search."""
    value_and_grad = jax.jit(jax.value_and_grad(lambda image: objective(image, data)[0]))

    def evaluate(x):
        value, grad = value_and_grad(x.reshape(content.shape).astype(np.float32))
        return float(value), np.asarray(grad, np.float64).ravel()

    options = {"maxfun": evaluations, "maxiter": evaluations, "maxcor": 20, "ftol": 0, "gtol": 0}
    x0, bounds = content.astype(np.float64).ravel(), scipy.optimize.Bounds(0, 1)
    result = scipy.optimize.minimize(evaluate, x0, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    return result.x.reshape(content.shape).astype(np.float32), result.fun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--content", default=PICTURES / "astronaut.jpg")
    parser.add_argument("--style", default=PICTURES / "gale.jpg")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--evaluations", type=int, default=200)
    args = parser.parse_args()

    content, style = (images.load(path, size=args.size) for path in (args.content, args.style))
    objective, targets = objectives.neural_style(vgg.features, statistic=losses.gram)
    data = jax.jit(targets)(
        features.load("vgg19"),
        content,
        [objectives.Style(style)],
        weights={"content": 1.0, "style": 1e3},
        content_layers={"relu4_2": 1.0},
        style_layers=dict.fromkeys(STYLE, 1.0),
    )
    evaluate = jax.jit(objective)
    print("| method | loss of the floats | loss of the saved picture |\n|---|---|---|")
    for method in (projection, clamp_and_restart, lbfgs_b, penalty, sigmoid, clamp_at_the_end):
        image, loss = method(objective, content, data, args.evaluations)
        saved = np.round(np.clip(np.asarray(image), 0, 1) * 255).astype(np.float32) / 255
        print(f"| {method.__name__} | {loss:.4g} | {evaluate(saved, data)[0]:.4g} |", flush=True)


if __name__ == "__main__":
    terminal.tune_malloc()
    main()
