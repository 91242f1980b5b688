"""Diffusion against closed forms: for Gaussian data every prediction, flow and posterior is known exactly."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mot.objectives import diffusion

MU, SD = 0.7, 0.4
each = pytest.mark.parametrize("predicts", diffusion.PREDICTS)
rng = np.random.default_rng(0)
x_BCP, e_BCP = np.float32(rng.standard_normal((2, 2, 5, 3)))
t_BC1 = np.float32(rng.uniform(0.05, 0.95, (2, 5, 1)))


def schedule(t, predicts):
    """alpha, sigma in float64 from the papers' words: straight, or the cosine with beta clipped."""
    t = np.asarray(t, np.float64)
    if predicts != "ddpm":
        return 1 - t, t

    def f(t):
        return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2

    alphabar = np.maximum(f(t) / f(0.0), 1 - 0.999)
    return np.sqrt(alphabar), np.sqrt(1 - alphabar)


def answer(x, e, predicts):
    return {"flow": e - x, "x": x, "ddpm": e}[predicts]


def posterior(x_t, t, predicts):
    """Mean and standard deviation of x given x_t, for x ~ N(MU, SD^2)."""
    alpha, sigma = diffusion.mix(t, predicts)
    variance = alpha**2 * SD**2 + sigma**2
    return MU + alpha * SD**2 / variance * (x_t - alpha * MU), SD * sigma / jnp.sqrt(variance)


def ideal(x_t, t, predicts, z=0.0):
    """The network whose squared error is least: from E[x | x_t], or from the draw z deviations off it."""
    alpha, sigma = diffusion.mix(t, predicts)
    mean, sd = posterior(x_t, t, predicts)
    x = mean + z * sd
    return answer(x, (x_t - alpha * x) / sigma, predicts)


def solve(x, steps, predicts, solver, predict=None, noise=0.0, shift=1.0):
    """From t = 1 to 0."""
    predict = predict or partial(ideal, predicts=predicts)
    levels = jnp.asarray(diffusion.grid(steps, shift))

    def go(x, ts):
        return (diffusion.step(predict, x, ts[0], ts[1], predicts, solver, noise), None)

    return jax.jit(lambda x: jax.lax.scan(go, x, (levels[:-1], levels[1:]))[0])(jnp.asarray(x, jnp.float32))


@each
def test_the_schedule_is_the_papers(predicts):
    t = np.linspace(0, 1, 2001)
    alpha, sigma = diffusion.mix(np.float32(t), predicts)
    want_alpha, want_sigma = schedule(t, predicts)
    np.testing.assert_allclose(alpha, want_alpha, atol=2e-6)
    np.testing.assert_allclose(sigma, want_sigma, atol=2e-6)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (np.diff(sigma) >= 0).all()
    least = 0.001**0.5 if predicts == "ddpm" else 0
    np.testing.assert_allclose([alpha[-1], sigma[-1]], [least, (1 - least**2) ** 0.5], rtol=1e-5)
    assert alpha.dtype == sigma.dtype == jnp.float32
    small = np.float32([1e-7, 1e-5])  # where 1 - alphabar would have lost its digits
    slope = np.sin(2 * np.pi / 2 * 0.008 / 1.008) / np.cos(np.pi / 2 * 0.008 / 1.008) ** 2 * np.pi / 2 / 1.008
    want = np.sqrt(slope * small) if predicts == "ddpm" else small
    np.testing.assert_allclose(diffusion.mix(small, predicts)[1], want, rtol=1e-3)


@each
def test_targets_invert_what_was_noised(predicts):
    x_t = diffusion.noised(x_BCP, e_BCP, t_BC1, predicts)
    alpha, sigma = schedule(t_BC1, predicts)
    np.testing.assert_allclose(x_t, alpha * x_BCP + sigma * e_BCP, atol=1e-5)
    target = diffusion.target(x_BCP, e_BCP, t_BC1, predicts)
    np.testing.assert_array_equal(target, answer(x_BCP, e_BCP, predicts))
    x_hat, e_hat = diffusion.clean_and_noise(target, x_t, t_BC1, predicts)
    np.testing.assert_allclose(x_hat, x_BCP, atol=2e-5)
    np.testing.assert_allclose(e_hat, e_BCP, atol=2e-5)
    wrong = target + 1  # whatever is answered, the two stay consistent with x_t
    x_hat, e_hat = diffusion.clean_and_noise(wrong, x_t, t_BC1, predicts)
    np.testing.assert_allclose(alpha * x_hat + sigma * e_hat, x_t, atol=5e-5)


def test_flows_best_answer_for_gaussian_data_is_the_conditional_mean():
    """E[e - x | x_t] = -mu + cov(e - x, x_t) / var(x_t) (x_t - (1 - t) mu), against least squares on samples."""
    x, e = MU + SD * rng.standard_normal(400_000), rng.standard_normal(400_000)
    for t in (0.2, 0.6, 0.9):
        x_t = np.asarray(diffusion.noised(np.float32(x), np.float32(e), t, "flow"), np.float64)
        slope, intercept = np.polyfit(x_t, diffusion.target(x, e, t, "flow"), 1)
        want = (t - (1 - t) * SD**2) / ((1 - t) ** 2 * SD**2 + t**2)
        np.testing.assert_allclose([slope, intercept], [want, -MU - want * (1 - t) * MU], atol=0.02)

        def at(y, t=t):
            return ideal(jnp.float32(y), t, "flow")

        np.testing.assert_allclose([at(1) - at(0), at(0)], [want, -MU - want * (1 - t) * MU], atol=1e-5)


def test_the_weight_makes_the_x_loss_the_v_loss():
    x_t = diffusion.noised(x_BCP, e_BCP, t_BC1, "x")
    guess = x_BCP + 0.3 * e_BCP**2
    v, v_hat = e_BCP - x_BCP, (x_t - guess) / t_BC1
    loss = diffusion.weight(t_BC1, "x") * (guess - diffusion.target(x_BCP, e_BCP, t_BC1, "x")) ** 2
    np.testing.assert_allclose(loss, (v_hat - v) ** 2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(diffusion.weight(np.float32([0, 0.01, 0.05, 0.5, 1]), "x"), [400, 400, 400, 4, 1], 1e-6)
    for predicts in ("flow", "ddpm"):
        np.testing.assert_array_equal(diffusion.weight(t_BC1, predicts), np.ones_like(t_BC1))


@each
@pytest.mark.parametrize("solver", ["euler", "heun", "ddim"])
def test_the_flow_carries_noise_to_the_data(predicts, solver):
    """The exact flow is affine in x for Gaussian data: its value at 0 is the mean, its slope the deviation."""
    at_0, at_1 = solve([0.0, 1.0], 64 if solver == "heun" else 800, predicts, solver)
    # ddpm keeps 0.0316 of the data in x_1, which a start from pure noise lacks: the flow maps that z to z
    alpha, sigma = schedule(1.0, predicts)
    scale = np.sqrt(alpha**2 * SD**2 + sigma**2)
    np.testing.assert_allclose(at_0, MU + SD * (0 - alpha * MU) / scale, atol=4e-3)
    np.testing.assert_allclose(at_1 - at_0, SD / scale, atol=4e-3)
    assert abs(at_0 - MU) < 0.015
    assert abs(at_1 - at_0 - SD) < 0.005


def test_heun_is_of_second_order_and_euler_of_first():
    alike = partial(ideal, predicts="flow")

    def error(steps, solver):
        return abs(float(solve(1.3, steps, "flow", solver, alike)) - (MU + SD * 1.3))

    def order(solver):
        return np.log2(error(8, solver) / error(32, solver)) / 2

    assert 0.85 < order("euler") < 1.2
    assert 1.75 < order("heun") < 2.6
    assert error(32, "heun") < error(32, "euler") / 10


def test_heun_and_euler_equal_the_textbook_steps_in_t():
    x, t, s = jnp.float32([-1.0, 0.3, 2.0]), 0.7, 0.45

    def v(x, t):
        return jnp.sin(3 * x) + t  # any velocity

    euler = x + (s - t) * v(x, t)
    heun = x + (s - t) * (v(x, t) + v(euler, s)) / 2
    for predicts, predict in {"flow": v, "x": lambda x, t: x - t * v(x, t)}.items():
        for solver, want in {"euler": euler, "ddim": euler, "heun": heun}.items():
            np.testing.assert_allclose(diffusion.step(predict, x, t, s, predicts, solver, None), want, atol=1e-6)


def test_heun_beats_euler_for_ddpm_too():
    alpha, sigma = schedule(1.0, "ddpm")
    want = MU + SD * (1.3 - alpha * MU) / np.sqrt(alpha**2 * SD**2 + sigma**2)

    def error(steps, solver):
        return abs(float(solve(1.3, steps, "ddpm", solver)) - want)

    assert error(32, "heun") < error(32, "euler") / 3
    assert error(64, "heun") < error(16, "heun") / 3


@each
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.8, 0.3), (0.31, 0.3), (0.05, 0.0)])
def test_the_ddpm_step_is_bayes_rule(predicts, t, s):
    """q(x_s | x_t, x) is proportional to q(x_t | x_s) q(x_s | x): complete the square in x_s, in float64."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, predicts), schedule(s, predicts)
    x_t, x = 0.9, -0.4
    ratio = alpha_t / alpha_s
    beta = sigma_t**2 - ratio**2 * sigma_s**2
    if s > 0:  # exp(-(x_t - ratio x_s)^2 / 2 beta - (x_s - alpha_s x)^2 / 2 sigma_s^2) = exp(-a x_s^2 / 2 + b x_s + c)
        a, b = ratio**2 / beta + 1 / sigma_s**2, ratio * x_t / beta + alpha_s * x / sigma_s**2
        want_mean, want_sd = b / a, a**-0.5
    else:
        want_mean, want_sd = x, 0

    def prediction(*_):
        return jnp.float32(answer(x, (x_t - alpha_t * x) / sigma_t, predicts))

    def draw(noise):
        return diffusion.step(prediction, jnp.float32(x_t), t, s, predicts, "ddpm", jnp.float32(noise))

    np.testing.assert_allclose(draw(0.0), want_mean, atol=2e-5)
    np.testing.assert_allclose(draw(1.0) - draw(0.0), want_sd, atol=2e-5)
    np.testing.assert_allclose(draw(-2.0) - draw(0.0), -2 * want_sd, atol=4e-5)


def moments(predicts, steps, drawn):
    """Mean and variance of x_0 down the whole ddpm chain, exactly: each step is affine in x_t, z and the noise."""
    mean, variance = 0.0, 1.0
    if predicts == "ddpm":
        alpha, sigma = schedule(1.0, predicts)
        mean, variance = alpha * MU, alpha**2 * SD**2 + sigma**2
    levels = jnp.asarray(diffusion.grid(steps))

    @jax.vmap
    def parts(t, s):
        def at(x, z, noise):
            return diffusion.step(partial(ideal, predicts=predicts, z=z), x, t, s, predicts, "ddpm", noise)

        d = at(0.0, 0.0, 0.0)
        return d, at(1.0, 0.0, 0.0) - d, at(0.0, 1.0, 0.0) - d, at(0.0, 0.0, 1.0) - d

    for d, by_x, by_z, by_noise in np.float64(jax.jit(parts)(levels[:-1], levels[1:])).T:
        mean, variance = d + by_x * mean, by_x**2 * variance + (by_z * drawn) ** 2 + by_noise**2
    return mean, variance


@each
def test_the_ddpm_chain_returns_the_datas_mean_and_variance(predicts):
    """With x drawn from p(x | x_t) after any number of steps; with its mean E[x | x_t] in the limit of many."""
    for steps in (1, 7):
        np.testing.assert_allclose(moments(predicts, steps, drawn=1), [MU, SD**2], atol=2e-4)
    lost = [abs(moments(predicts, steps, drawn=0)[1] / SD**2 - 1) for steps in (125, 250, 500)]
    assert lost[2] < 0.05
    assert 1.7 < lost[0] / lost[1] < 2.3
    assert 1.7 < lost[1] / lost[2] < 2.3
    np.testing.assert_allclose(moments(predicts, 500, drawn=0)[0], MU, atol=1e-3)


@each
@pytest.mark.parametrize("solver", diffusion.SOLVERS)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_perfect_predictor_gets_its_data_back(predicts, solver, steps):
    x_t = diffusion.noised(x_BCP, e_BCP, 1.0, predicts)

    def knows(x_t, t):
        alpha, sigma = diffusion.mix(t, predicts)
        return answer(x_BCP, (x_t - alpha * x_BCP) / sigma, predicts)

    x = solve(x_t, steps, predicts, solver, knows, noise=e_BCP[::-1])
    np.testing.assert_allclose(x, x_BCP, atol=2e-5)


@each
@pytest.mark.parametrize("solver", diffusion.SOLVERS)
def test_no_solver_asks_at_no_noise(predicts, solver):
    """A network undefined at t = 0 spoils nothing."""

    def undefined(x, t):
        return jnp.where(t > 0, ideal(x, jnp.maximum(t, 1e-6), predicts), jnp.nan)

    assert np.isfinite(solve([0.0, 1.0], 6, predicts, solver, undefined)).all()


@each
def test_both_ends_of_time_are_finite_forward_and_gradient(predicts):
    t_BC1 = jnp.float32([0, 1]).reshape(2, 1, 1) * jnp.ones((2, 5, 1))

    def loss(prediction, x, e, t):
        x_t = diffusion.noised(x, e, t, predicts)
        error = (prediction - diffusion.target(x, e, t, predicts)) ** 2
        x_hat, e_hat = diffusion.clean_and_noise(prediction, x_t, t, predicts)
        return (diffusion.weight(t, predicts) * error).sum() + (x_hat**2).sum() + (e_hat**2).sum()

    found = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(x_BCP[::-1], x_BCP, e_BCP, t_BC1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    ends = diffusion.noised(x_BCP, e_BCP, t_BC1, predicts)
    np.testing.assert_array_equal(ends[0], x_BCP[0])
    np.testing.assert_allclose(ends[1], e_BCP[1], atol=0.1 if predicts == "ddpm" else 0)

    def anything(x, t):
        return jnp.sin(x) + t

    for solver in diffusion.SOLVERS:
        for t, s in ((1.0, 0.5), (0.5, 0.0), (1.0, 0.0)):

            def go(x, *how):
                return diffusion.step(anything, x, *how, e_BCP).sum()

            found = jax.value_and_grad(go)(x_BCP, t, s, predicts, solver)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)), (solver, t, s)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("max_noise", [1.0, 0.5])
@pytest.mark.parametrize("how", diffusion.TIME_DISTRIBUTIONS)
def test_times_follow_their_distribution(how, max_noise, shift):
    u = (np.arange(4000) + 0.5) / 4000
    t = np.asarray(diffusion.noise_levels(u.reshape(40, 100), how, shift, max_noise))
    assert t.shape == (40, 100)
    assert t.dtype == np.float32
    t = t.reshape(-1).astype(np.float64)
    assert (np.diff(t) >= 0).all()
    assert 0 <= t.min() < t.max() <= max_noise
    cdf = {
        "uniform": stats.uniform.cdf,
        "logit_normal": lambda t: stats.norm.cdf(np.log(t / (1 - t))),
        # pi0: tau = 1 - t is data at 1; (0.999 - tau) / 0.999 ~ Beta(1.5, 1)
        "beta": lambda t: stats.beta(1.5, 1).cdf((0.999 - (1 - t)) / 0.999),
    }[how]

    def unshifted(t):
        return t / max_noise / (shift - (shift - 1) * t / max_noise)

    assert stats.kstest(t, lambda t: cdf(unshifted(t))).statistic < 0.002


def test_shift_keeps_the_ends_and_moves_the_middle_towards_noise():
    ends = diffusion.noise_levels(np.float32([0, 1]), "uniform", 3.0, 1.0)
    np.testing.assert_array_equal(ends, [0, 1])
    np.testing.assert_allclose(diffusion.noise_levels(0.5, "uniform", 3.0), 0.75)
    np.testing.assert_allclose(diffusion.noise_levels(0.5, "uniform", 3.0, 0.5), 0.375)  # the max_noise comes last
    # twice the shift is the shift of the product
    twice = diffusion.noise_levels(diffusion.noise_levels(np.float32(0.3), "uniform", 3.0), "uniform", 2.0)
    np.testing.assert_allclose(twice, diffusion.noise_levels(np.float32(0.3), "uniform", 6.0), rtol=1e-6)
    assert np.isfinite([diffusion.noise_levels(np.float32([0, 1]), how) for how in diffusion.TIME_DISTRIBUTIONS]).all()
    by_unit = diffusion.noise_levels(np.full((2, 3), 0.5), "uniform", 1.0, np.float32([[1], [0.5]]) * np.ones((2, 3)))
    np.testing.assert_allclose(by_unit, [[0.5] * 3, [0.25] * 3])


def test_the_grid_goes_from_noise_to_data():
    np.testing.assert_allclose(diffusion.grid(4), [1, 0.75, 0.5, 0.25, 0])
    for steps, shift in ((1, 1.0), (1, 3.0), (50, 3.0), (50, 0.3), (1000, 1.0)):
        t = diffusion.grid(steps, shift)
        assert t.shape == (steps + 1,)
        assert t.dtype == np.float32
        assert (t[0], t[-1]) == (1, 0)
        assert (np.diff(t) < 0).all()
        np.testing.assert_allclose(t, diffusion.noise_levels(np.linspace(1, 0, steps + 1), "uniform", shift), atol=1e-6)


def test_guidance():
    a, b = x_BCP, e_BCP
    np.testing.assert_array_equal(diffusion.guided(a, b, 0.0), b)
    np.testing.assert_allclose(diffusion.guided(a, b, 1.0), a, atol=1e-6)
    np.testing.assert_allclose(diffusion.guided(a, b, 2.0), 2 * a - b, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: diffusion.mix(0.5, "nothing"), "predicts: 'nothing' is unknown; allowed: flow, x, ddpm"),
        (lambda: diffusion.noised(1.0, 1.0, 0.5, "nothing"), "predicts: 'nothing' is unknown; allowed: flow, x, ddpm"),
        (lambda: diffusion.target(1.0, 1.0, 0.5, "nothing"), "predicts: 'nothing' is unknown; allowed: flow, x, ddpm"),
        (lambda: diffusion.weight(0.5, "nothing"), "predicts: 'nothing' is unknown; allowed: flow, x, ddpm"),
        (
            lambda: diffusion.clean_and_noise(1.0, 1.0, 0.5, "nothing"),
            "predicts: 'nothing' is unknown; allowed: flow, x, ddpm",
        ),
        (
            lambda: diffusion.noise_levels(0.5, "cosine"),
            "time_distribution: 'cosine' is unknown; allowed: uniform, logit_normal, beta",
        ),
        (
            lambda: diffusion.step(None, 1.0, 0.5, 0.2, "flow", "rk4", 0.0),
            "solver: 'rk4' is unknown; allowed: euler, heun, ddim, ddpm",
        ),
    ],
)
def test_unknown_names_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
