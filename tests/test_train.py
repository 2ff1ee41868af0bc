"""Training steps: the loss is the paper's, devices make no difference, and it learns."""

import errno
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import narrow_vgg as narrow

from nstjax import checkpoint, features, flow, losses, nets, parallel, resumable, stable, train
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.nets import adain, layers, texture
from nstjax.nets.transform import TransformNet

CONTENT, STYLE = {"relu2_2": 1.0}, {"relu1_2": 1.0, "relu3_3": 0.5}


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    """What takes time here is compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pictures(n, seed=0, size=16):
    coarse = np.random.default_rng(seed).uniform(size=(n, 4, 4, 3)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (n, size, size, 3), "linear")).clip(0, 1)


def setting(norm=layers.InstanceNorm, transformation=None):
    """(state, step factory, data) of a tiny net and a narrow VGG."""
    net = TransformNet(width=4, blocks=1, norm=norm)
    transformation = transformation or optax.sgd(10.0)

    def forward(params, stats, batch, key):
        out, new = net.apply({"params": params, "batch_stats": stats}, batch, train=True, mutable=["batch_stats"])
        return out, new.get("batch_stats", {})

    params = features.prepare(narrow("vgg16"), winograd=False)
    acts = vgg.features(params, pictures(1, seed=9)[0])
    data = {
        "network": params,
        "style": {name: losses.gram(acts[name]) for name in STYLE},
        "weights": {"content": 1.0, "style": 10.0, "tv": 0.1},
        "content_layers": CONTENT,
        "style_layers": STYLE,
        "rate": 1.0,
    }
    gram = lambda x, mask=None: losses.gram(x, mask=mask)  # noqa: E731
    loss = train.perceptual(forward, vgg.features, statistic=gram)
    state = train.init(net, transformation, jax.random.key(0), pictures(1))
    return state, lambda axis=None: train.make_step(loss, transformation, axis=axis), data, forward


@pytest.fixture(scope="module")
def one_step():
    state, make, data, forward = setting()
    batch = pictures(8)
    return state, batch, data, forward, *jax.jit(make())(state, batch, data)


def test_terms_are_means_over_the_batch(one_step):
    state, batch, data, forward, _, terms = one_step
    out, _ = forward(state.params, state.stats, batch, None)
    expected = {"content": [], "style": [], "tv": []}
    for picture, photograph in zip(out, batch, strict=True):
        acts, wanted = (vgg.features(data["network"], x) for x in (picture, photograph))
        expected["content"].append(float(((acts["relu2_2"] - wanted["relu2_2"]) ** 2).mean()))
        grams = {name: losses.gram(acts[name]) for name in STYLE}
        expected["style"].append(sum(STYLE[n] * float(((grams[n] - data["style"][n]) ** 2).mean()) for n in STYLE))
        expected["tv"].append(float(losses.total_variation(picture)))
    for name, values in expected.items():
        assert float(terms[name]) == pytest.approx(data["weights"][name] * np.mean(values), rel=1e-4), name
    assert float(terms["loss"]) == pytest.approx(sum(float(terms[name]) for name in expected), rel=1e-5)


@pytest.mark.parametrize("devices", [2, 8])
def test_several_devices_step_as_one(one_step, devices):
    state, batch, data, _, alone, terms = one_step
    _, make, _, _ = setting()
    step = parallel.data_parallel(make("devices"), devices=jax.devices()[:devices])
    together, its_terms = step(state, batch, data)
    assert int(together.step) == 1
    moved = 0.0
    for before, a, b in zip(*map(jax.tree.leaves, (state.params, alone.params, together.params)), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 + 1e-4 * float(np.abs(a - before).max()))
        moved += float(np.abs(a - before).max())
    assert moved > 0.03
    assert float(its_terms["loss"]) == pytest.approx(float(terms["loss"]), rel=1e-4)


def test_a_batch_that_does_not_divide_is_refused(one_step):
    state, batch, data, *_ = one_step
    step = parallel.data_parallel(lambda *args: args, devices=jax.devices()[:3])
    with pytest.raises(ValueError, match="batch of 8 cannot be split over 3"):
        step(state, batch, data)


def test_training_lowers_the_loss_and_moves_the_averages_of_batch_norm():
    state, make, data, _ = setting(layers.BatchNorm, optax.adam(3e-3))
    step, before = jax.jit(make()), jax.tree.leaves(state.stats)
    history = []
    for i in range(40):
        state, terms = step(state, pictures(4, seed=i), data)
        history.append(float(terms["loss"]))
    assert np.mean(history[-5:]) < 0.7 * np.mean(history[:5])
    assert all(not np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(state.stats), strict=True))


def test_a_rate_of_zero_changes_nothing_but_the_counts(one_step):
    state, batch, data, *_ = one_step
    _, make, _, _ = setting()
    still, _ = jax.jit(make())(state, batch, data | {"rate": jnp.zeros(())})
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (state.params, still.params)), strict=True))
    assert int(still.step) == 1


# --- nets that hold still


def stability(forward, shake, data):
    """The term "stable" of images that a function paints, of weight 2."""
    loss = train.perceptual(forward, vgg.features, shake=shake)
    keys = jax.random.split(jax.random.key(0), 3)
    more = {"weights": data["weights"] | {"stable": 2.0}}
    _, (terms, stats) = jax.jit(loss)(0.0, {}, pictures(3), keys, data | more)
    assert stats == {}
    return float(terms["stable"])


def to_the_right(image, key):
    """The next frame of a camera that goes 2 pixels to the right."""
    along = jnp.broadcast_to(jnp.array([2.0, 0.0]), (*image.shape[:2], 2))
    return flow.warp(image, along), stable.Motion(along, flow.inside(along))


def test_a_net_that_moves_with_its_image_is_stable(one_step):
    _, _, data, *_ = one_step
    negative = lambda params, stats, batch, keys: (1 - batch, stats)  # noqa: E731
    still = functools.partial(stable.shaken, noise=0.0)
    assert stability(negative, still, data) == pytest.approx(0, abs=1e-10)
    assert 0.5 * 2 * 0.05**2 < stability(negative, functools.partial(stable.shaken, noise=0.05), data) < 2 * 0.05**2


def test_strokes_that_stay_where_they_are_cost_their_change_along_the_motion(one_step):
    _, _, data, *_ = one_step
    ramp = jnp.broadcast_to(0.03 * jnp.arange(16)[:, None], (16, 16, 3))
    fixed = lambda params, stats, batch, keys: (0 * batch + ramp, stats)  # noqa: E731
    assert stability(fixed, to_the_right, data) == pytest.approx(2 * (2 * 0.03) ** 2, rel=1e-4)
    downward = lambda params, stats, batch, keys: (0 * batch + ramp.swapaxes(0, 1), stats)  # noqa: E731
    assert stability(downward, to_the_right, data) == pytest.approx(0, abs=1e-10)


def test_training_for_stability_lowers_it_and_leaves_the_others_finite():
    state, _, data, forward = setting(layers.BatchNorm)
    data["weights"] = {"content": 0.0, "style": 0.0, "tv": 0.0, "stable": 1.0}
    adam = optax.adam(3e-3)
    step = jax.jit(train.make_step(train.perceptual(forward, vgg.features, shake=stable.shaken), adam))
    state, history = state._replace(optimizer=adam.init(state.params)), []
    for i in range(25):
        state, terms = step(state, pictures(4, seed=i), data)
        assert np.isfinite(list(map(float, terms.values()))).all()
        history.append(float(terms["stable"]))
    assert np.mean(history[-5:]) < 0.7 * np.mean(history[:5])


# --- the other nets' losses


def textures(content):
    """(state, step factory, batch, data) of a texture net, normalised over the whole batch as if on one device."""
    scales = 3
    net = nets.TextureNet(width=2, norm=layers.BatchNorm)
    spread = net.clone(norm=functools.partial(layers.BatchNorm, axis_name="devices"))
    _, _, data, _ = setting()

    def loss(module):
        def forward(params, stats, batch, keys):
            z = texture.noises(keys, (16, 16), scales=scales)
            variables = {"params": params, "batch_stats": stats}
            inputs = (z, batch if content else None)
            out, new = module.apply(variables, *inputs, train=True, mutable=["batch_stats"])
            return out, new["batch_stats"]

        gram = losses.gram
        return train.perceptual(forward, vgg.features, statistic=gram)

    batch = pictures(8) if content else np.zeros((8, 0), np.float32)
    z = texture.noise(jax.random.key(0), (1, 16, 16), scales=scales)
    state = train.init(net, optax.sgd(1.0), jax.random.key(0), z, pictures(1) if content else None)
    data["content_layers"] = CONTENT if content else {}
    return (
        state,
        lambda axis=None: train.make_step(loss(spread if axis else net), optax.sgd(1.0), axis=axis),
        batch,
        data,
    )


def arbitrary():
    """The same of AdaIN's decoder."""
    decoder, params = nets.Decoder(channels=(6, 5, 4), level=1.0), features.prepare(narrow("vgg19"), winograd=False)
    state = train.init(decoder, optax.sgd(1.0), jax.random.key(0), adain.encode(params, pictures(1)))
    batch = {"content": pictures(8), "style": pictures(8, seed=1) ** 2}
    data = {"network": params, "weights": {"content": 1.0, "style": 10.0}, "content_layers": {"relu4_1": 0.5}}
    data |= {"style_layers": {"relu1_1": 1.0, "relu2_1": 0.5, "relu4_1": 0.25}, "rate": 0.1}

    def make(axis=None):
        return train.make_step(adain.loss(decoder), optax.sgd(1.0), axis=axis)

    return state, make, batch, data


CASES = {
    "texture": functools.partial(textures, content=False),
    "ulyanov": functools.partial(textures, content=True),
    "adain": arbitrary,
}


@pytest.mark.parametrize("case", CASES)
def test_the_other_losses_step_on_eight_devices_as_on_one(case):
    state, make, batch, data = CASES[case]()
    alone, terms = jax.jit(make())(state, batch, data)
    step = parallel.data_parallel(make("devices"))
    together, its_terms = step(*parallel.replicate((state,)), batch, parallel.replicate(data))
    assert ("content" in terms) == (case != "texture") and ("tv" in terms) == (case != "adain")
    assert float(terms["loss"]) == pytest.approx(sum(float(terms[name]) for name in terms if name != "loss"), rel=1e-5)
    for name in terms:
        assert float(its_terms[name]) == pytest.approx(float(terms[name]), rel=1e-4), name
    moved = 0.0
    trees = [(each.params, each.stats) for each in (state, alone, together)]
    for before, a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 + 1e-3 * float(np.abs(a - before).max()))
        moved = max(moved, float(np.abs(a - before).max()))
    assert moved > 0.01


def test_adains_terms_are_the_papers():
    state, make, batch, data = arbitrary()
    _, terms = jax.jit(make())(state, batch, data)
    params, decoder = data["network"], nets.Decoder(channels=(6, 5, 4), level=1.0)
    content = style = 0.0
    for photograph, painting in zip(batch["content"], batch["style"], strict=True):
        x, y = (np.asarray(vgg.features(params, p)["relu4_1"]) for p in (photograph, painting))
        mean, std = x.mean((0, 1)), np.sqrt(x.var((0, 1)) + 1e-5)
        wanted = (x - mean) / std * np.sqrt(y.var((0, 1)) + 1e-5) + y.mean((0, 1))
        acts = vgg.features(params, decoder.apply({"params": state.params}, wanted[None])[0])
        painted = vgg.features(params, painting)
        content += 0.5 * float(((acts["relu4_1"] - wanted) ** 2).mean()) / 8
        for name, weight in data["style_layers"].items():
            for statistic in (np.mean, lambda x, axis: np.sqrt(np.var(x, axis) + 1e-5)):
                d = statistic(np.asarray(acts[name]), (0, 1)) - statistic(np.asarray(painted[name]), (0, 1))
                style += 10 * weight / 2 * float((d**2).mean()) / 8
    assert float(terms["content"]) == pytest.approx(content, rel=1e-3)
    assert float(terms["style"]) == pytest.approx(style, rel=1e-3)


def test_noise_is_a_pictures_own_wherever_it_is_computed():
    keys = jax.random.split(jax.random.key(0), 4)
    whole, half = (texture.noises(k, (8, 12), scales=2) for k in (keys, keys[2:]))
    for a, b in zip(whole, half, strict=True):
        np.testing.assert_array_equal(a[2:], b)
    assert [z.shape for z in whole] == [(4, 8, 12, 3), (4, 4, 6, 3)]


def test_one_process_gathers_its_own_number():
    assert parallel.gather(3).tolist() == [3]


# --- steps that must be rejected


def rejected(kind):
    """(state, step factory, batch, data) of a toy with a finite loss, but something else that is not."""
    start = {"an infinite gradient": 0.0, "parameters that overflow": 3.39e38}.get(kind, 1.0)
    transformation = {
        "an infinite gradient": optax.chain(optax.clip(1.0), optax.sgd(0.1)),  # which would hide it
        "parameters that overflow": optax.sgd(3e38),
    }.get(kind, optax.adam(0.1))

    def loss(params, stats, batch, keys, data):
        w = params["w"]
        value = {
            "an infinite gradient": lambda: jnp.sqrt(jnp.abs(w)),
            "an optimizer's state that overflows": lambda: 1e25 * w,
            "parameters that overflow": lambda: -0.1 * w,
        }.get(kind, lambda: w**2)()
        if kind == "a batch":
            value = value + batch.mean()
        stats = {"mean": jnp.where(kind == "averages", jnp.nan, 0.0) + stats["mean"]}
        return value.sum() + 0 * batch.mean(), ({"part": jnp.ones(())}, stats)

    params = {"w": jnp.full(3, start)}
    batch = np.ones((8, 2), np.float32)
    if kind == "a batch":
        batch[5, 1] = np.nan  # on one of eight devices
    state = train.State(
        jnp.zeros((), jnp.int32), params, {"mean": jnp.zeros(3)}, transformation.init(params), jax.random.key(0)
    )
    return state, lambda axis=None: train.make_step(loss, transformation, axis=axis), batch, {"rate": jnp.float32(1)}


REJECTED = {
    "a batch": "the batch is not finite",
    "an infinite gradient": "the gradient or the parameters are not finite",
    "an optimizer's state that overflows": "the gradient or the parameters are not finite",
    "parameters that overflow": "the gradient or the parameters are not finite",
    "averages": "the gradient or the parameters are not finite",
}


@pytest.mark.parametrize("kind", [*REJECTED, "nothing"])
def test_a_step_reports_whatever_is_not_finite_on_all_devices(kind):
    state, make, batch, data = rejected(kind)
    _, terms = jax.jit(make())(state, batch, data)
    assert bool(jnp.isfinite(terms["loss"])) == (kind == "nothing")
    several = jax.pmap(make("devices"), "devices", in_axes=(None, 0, None))
    new, terms = several(state, batch.reshape(8, 1, 2), data)
    assert np.isfinite(terms["loss"]).tolist() == [kind == "nothing"] * 8
    assert train.finite(new.params["w"]) or kind != "nothing"


def counted(position):
    """A stream of batches, each its own number."""
    number = position or 0
    while True:
        number += 1
        yield np.full((8, 2), number, np.float32), number


START = train.State(np.int32(0), np.float32(0), {}, (), jax.random.key(0))


def counting(state, batch, data):
    """A step that adds the rate, and another number for each batch."""
    new = state._replace(step=state.step + 1, params=np.float32(state.params + float(data["rate"])))
    return new, {"loss": 1.0 / batch.mean()}


def assert_sound(folder):
    """That all of what was saved is finite."""
    for path in folder.glob("checkpoint-*.safetensors"):
        assert all(np.isfinite(x).all() for x in safetensors.numpy.load_file(path).values() if x.dtype.kind == "f")
    assert all(np.isfinite(list(row.values())).all() for row in resumable.history(folder))


@pytest.mark.parametrize("kind", REJECTED)
def test_what_is_not_finite_is_never_saved_and_named_at_the_end(tmp_path, kind):
    state, make, bad, _ = rejected(kind)
    step, calls = jax.jit(make()), []

    def stream(position):
        return ((bad, number) for number in range(1 + (position or 0), 100))

    def called(*args):
        calls.append(args)
        return step(*args)

    with pytest.raises(InputError) as error:
        resumable.fit(called, state, stream, {}, steps=12, folder=tmp_path, every=1)
    advice = "check the images to train on" if kind == "a batch" else "lower --learning-rate"
    assert str(error.value).startswith(f"{REJECTED[kind]} three times in a row, last at step 1: {advice}")
    assert [float(args[2]["rate"]) for args in calls] == [1, 0.5, 0.25]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["params", "stats", "optimizer"])
def test_a_state_that_is_not_finite_is_rejected_whoever_made_the_step(tmp_path, part):
    def step(state, batch, data):
        new, terms = counting(state, batch, data)
        return new._replace(**{part: np.float32("inf")} if new.step == 6 else {}), terms

    start = START._replace(stats=np.float32(0), optimizer=np.float32(0))
    with pytest.raises(InputError, match="three times in a row, last at step 6"):
        resumable.fit(step, start, counted, {}, steps=12, folder=tmp_path, every=4)
    assert_sound(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["checkpoint-00000004.safetensors"]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=9, max_size=9), st.integers(1, 5))
def test_failures_count_in_a_row_only(tmp_path_factory, failures, every):
    """Each step fails up to twice, then succeeds: the training comes to its end, however many fail in all."""
    folder, left = tmp_path_factory.mktemp("a"), list(failures)

    def step(state, batch, data):
        new, terms = counting(state, batch, data)
        if left[int(state.step)]:
            left[int(state.step)] -= 1
            new = new._replace(params=np.float32("nan"))
        return new, terms

    end = resumable.fit(step, START, counted, {}, steps=9, folder=folder, every=every)
    assert int(end.step) == 9 and np.isfinite(end.params)
    assert_sound(folder)
    rate = checkpoint.extra(checkpoint.latest(folder))["rate"]
    assert rate == 0.5 ** sum(failures)
    assert [row["step"] for row in resumable.history(folder)] == list(range(1, 10))


def test_a_training_goes_on_after_a_rollback_with_its_rate(tmp_path):
    def step(state, batch, data):
        broken = float(data["rate"]) > 0.5 and int(state.step) == 5
        new, terms = counting(state, batch, data)
        return new, terms | ({"loss": np.inf} if broken else {})

    whole = resumable.fit(step, START, counted, {}, steps=12, folder=tmp_path / "whole", every=3)
    resumable.fit(step, START, counted, {}, steps=8, folder=tmp_path / "parts", every=3)
    parts = resumable.fit(step, START, counted, {}, steps=12, folder=tmp_path / "parts", every=3)
    assert float(whole.params) == float(parts.params) == 3 + 9 * 0.5
    for file in ("loss.csv", "checkpoint-00000012.safetensors"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_the_loop_yields_each_step_and_each_rollback_to_the_last_snapshot():
    """Step 6 fails at the full rate: from the snapshot after step 4 it goes on with half of it."""

    def step(state, batch, data):
        new, terms = counting(state, batch, data)
        failed = float(data["rate"]) > 0.5 and int(state.step) == 5
        return new, terms | ({"loss": np.nan} if failed else {})

    seen = list(train.fit(step, train.Progress(START), counted, {}, steps=7, every=4))
    assert [int(now.state.step) for now in seen] == [1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert [now.rate for now in seen] == [1.0] * 5 + [0.5] * 4
    assert [bool(now.rejected) for now in seen] == [False] * 5 + [True] + [False] * 3
    assert seen[5].state == seen[3].state and seen[5].terms == {} and "loss is not finite" in seen[5].rejected
    assert [now.position for now in seen] == [1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert float(seen[-1].state.params) == 4 + 3 * 0.5


ENDS = [OSError("the disk"), KeyboardInterrupt(), MemoryError(), InputError("the data"), SystemExit(3), ValueError("x")]


@pytest.mark.parametrize("where", ["stream", "step", "stopped", "sample"])
@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_whatever_ends_a_training_what_was_done_is_saved(tmp_path, where, error):
    def fail(*args):
        raise error

    def stream(position):
        return (pair if pair[1] != 8 else fail() for pair in counted(position))

    def step(state, batch, data):
        return fail() if batch[0, 0] == 8 else counting(state, batch, data)

    broken = {
        "stream": {"stream": stream},
        "step": {"step": step},
        "stopped": {"stopped": lambda: calls.append(1) or (len(calls) == 8 and fail())},
        "sample": {"sample": fail, "every": 7},
    }[where]
    calls: list = []
    usual = {"step": counting, "state": START, "stream": counted, "data": {}, "folder": tmp_path / "a", "every": 5}
    with pytest.raises(type(error)) as caught:
        resumable.fit(**usual | broken, steps=12)
    assert caught.value is error
    assert checkpoint.step(checkpoint.latest(tmp_path / "a")) == 7
    assert len(resumable.history(tmp_path / "a")) == 7
    resumable.fit(**usual, steps=12)
    resumable.fit(**usual | {"folder": tmp_path / "b"}, steps=12)
    for file in ("loss.csv", "checkpoint-00000012.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_nothing_is_saved_where_nothing_was_done(tmp_path):
    def stream(position):
        raise OSError("no data")
        yield

    with pytest.raises(OSError, match="no data"):
        resumable.fit(counting, START, stream, {}, steps=12, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_the_older_checkpoint_stays(tmp_path, monkeypatch):
    resumable.fit(counting, START, counted, {}, steps=4, folder=tmp_path, every=2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"^[^\n]*No space left on device[^\n]*$"):
        resumable.fit(counting, START, counted, {}, steps=12, folder=tmp_path, every=2)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("text", ["", "nonsense", "step,loss\n1", "step,loss\n1,2,3\n", "step,loss\nnan,1\n", "\0\xff"])
def test_damaged_losses_are_refused_in_one_line(tmp_path, text):
    resumable.fit(counting, START, counted, {}, steps=4, folder=tmp_path, every=2)
    (tmp_path / "loss.csv").write_bytes(text.encode("latin1"))
    if text in ("", "nonsense"):  # no rows: the curves begin anew
        assert resumable.history(tmp_path) == []
        return
    with pytest.raises(InputError, match=r"^[^\n]*loss\.csv[^\n]*$"):
        resumable.fit(counting, START, counted, {}, steps=6, folder=tmp_path, every=2)


@pytest.mark.parametrize("extra", [{}, {"configuration": [], "rate": 1.0}, {"configuration": {}, "rate": float("nan")}])
def test_checkpoints_of_something_else_are_refused(tmp_path, extra):
    checkpoint.save(tmp_path, 3, START, extra)
    with pytest.raises(InputError, match=r"^[^\n]*checkpoint-00000003[^\n]*no checkpoint of a training[^\n]*$"):
        resumable.fit(counting, START, counted, {}, steps=6, folder=tmp_path)


def test_a_loss_that_is_not_finite_goes_back_with_half_the_rate(tmp_path, capsys):
    """A step that fails whenever the rate is above a quarter."""

    def step(state, batch, data):
        rate = float(data["rate"])
        broken = rate > 0.3 and int(state.step) >= 5
        state = state._replace(step=state.step + 1, params=state.params + rate)
        return state, {"loss": np.nan if broken else 1.0 / (1 + int(state.step))}

    start = train.State(np.int32(0), np.float32(0), {}, (), jax.random.key(0))

    def stream(position):
        number = position or 0
        while True:
            number += 1
            yield np.zeros(1), number

    end = resumable.fit(step, start, stream, {}, steps=12, folder=tmp_path, every=2)
    assert int(end.step) == 12
    # Four steps at the full rate were saved; the others were made at a quarter.
    assert float(end.params) == 4 + 8 * 0.25
    assert "0.25 of the learning rate" in capsys.readouterr().out

    def hopeless(state, batch, data):
        return state, {"loss": np.inf}

    with pytest.raises(InputError, match="--learning-rate"):
        resumable.fit(hopeless, start, stream, {}, steps=12, folder=tmp_path / "other")
