"""What stands for x_T: densities against other implementations, fits against known laws, and refusals."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.mixture import BayesianGaussianMixture
from sklearn.mixture import GaussianMixture as SklearnMixture

from psmlib.bank import checkpoint
from psmlib.data.toys import Mixture
from psmlib.diffusion_time import auxiliary
from psmlib.diffusion_time.auxiliary import Auxiliary, exact, fit_mixture, gaussian
from psmlib.diffusion_time.elbo import elbo_curve
from psmlib.diffusion_time.fit_glow import fit_glow
from psmlib.diffusion_time.noised_data import diffused_batches
from psmlib.diffusion_time.prior_kl import prior_kl
from psmlib.likelihood import log_likelihood
from psmlib.machine.streams import stream
from psmlib.process import EDM, VE, VP, Shortened, SubVP

F64 = torch.float64
TOY = Mixture(gaussians=[(0.3, [1.0], 0.01), (0.7, [3.0], 0.25)], name="K.1")
PLANE = Mixture(gaussians=[(0.4, [-1.0, 0.5], 0.05), (0.6, [1.0, 0.0], [[0.3, 0.2], [0.2, 0.25]])], name="plane")
SMALL = {"levels": 1, "steps": 1, "hidden": 4, "batch_size": 16}


def x_T(toy=PLANE, process=None, T=0.3, n=1000, seed=0):
    return exact(toy, process or VP(), T).sample(n, stream(seed))


@pytest.fixture(scope="module")
def mixture():
    return fit_mixture(x_T(), VP(), 0.3, components=4)


@pytest.fixture(scope="module")
def glow():
    return list(fit_glow(diffused_batches(torch.zeros(5, 1, 4, 4), VP(), 0.3), VP(), 0.3, updates=60, **SMALL))[-1]


@pytest.mark.parametrize("T", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("process", [VP(), VE(0.01, 5.0)])
def test_the_exact_law_integrates_to_one_and_its_samples_follow_it(process, T):
    nu = exact(TOY, process, T)
    half = 4 + 8 * float(process.sigma(T))
    grid = torch.linspace(2 - half, 2 + half, 20001, dtype=F64)
    p = nu.log_prob(grid[:, None]).exp()
    assert float(p.sum() * (grid[1] - grid[0])) == pytest.approx(1, abs=1e-6)
    cdf = p.cumsum(0) * (grid[1] - grid[0])
    points = nu.sample(4000, stream(1))[:, 0].numpy()
    assert kstest(points, lambda x: np.interp(x, grid.numpy(), cdf.numpy())).pvalue > 1e-3


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM()])
def test_at_the_end_the_gaussian_is_the_prior_of_the_process(process):
    nu, x = gaussian(process, process.T, (1, 2, 3)), process.prior_std * torch.randn(5, 1, 2, 3, generator=stream(2))
    torch.testing.assert_close(nu.log_prob(x), process.prior_log_prob(x))
    assert nu.parameters == 0 and nu.active is None


def test_the_noise_of_an_exploding_path_is_that_of_its_time_and_of_a_preserving_one_is_not():
    for process, T, std in ((VE(0.01, 5.0), 0.5, float(VE(0.01, 5.0).sigma(0.5))), (VP(), 0.05, 1.0)):
        x = gaussian(process, T, (2,)).sample(20000, stream(3))
        assert float(x.std()) == pytest.approx(std, rel=0.02)


def test_a_mixture_recovers_the_entropy_of_a_known_one():
    # KL[p || nu] = E_p[log p - log nu], paired, so that its error is small
    truth, nu = exact(PLANE, VP(), 0.3), fit_mixture(x_T(n=8000), VP(), 0.3, components=3)
    x = truth.sample(20000, stream(4))
    gain = truth.log_prob(x) - nu.log_prob(x)
    error = float(gain.std()) / math.sqrt(len(x))
    assert -4 * error < float(gain.mean()) < 0.01
    entropy, own = -float(truth.log_prob(x).mean()), -float(nu.log_prob(nu.sample(20000, stream(5))).mean())
    assert own == pytest.approx(entropy, abs=0.05)
    plain = gaussian(VP(), 0.3, (2,))
    assert float((truth.log_prob(x) - plain.log_prob(x)).mean()) > 4 * float(gain.mean())


@pytest.mark.parametrize("covariance", ["full", "diag", "spherical"])
def test_the_density_of_a_mixture_is_that_of_scikit_learn(covariance):
    x = x_T()
    nu = fit_mixture(x, VP(), 0.3, components=5, covariance=covariance, seed=3, tolerance=0.02)
    bayes = BayesianGaussianMixture(
        n_components=5, covariance_type=covariance, weight_concentration_prior_type="dirichlet_process",
        random_state=3, max_iter=500, tol=0.02,
    )  # fmt: skip
    bayes.fit(x.numpy())
    plain = SklearnMixture(n_components=5, covariance_type=covariance)
    plain.weights_, plain.means_ = bayes.weights_, bayes.means_
    plain.covariances_, plain.precisions_cholesky_ = bayes.covariances_, bayes.precisions_cholesky_
    far = torch.cat([x[:300], 20 * x[:300]])
    wanted = torch.as_tensor(plain.score_samples(far.numpy()))
    torch.testing.assert_close(nu.log_prob(far), wanted, rtol=1e-10, atol=1e-8)
    assert nu.active == int((bayes.weights_ > 1e-3).sum()) and nu.about["converged"] == bayes.converged_
    assert nu.parameters == plain._n_parameters()


def test_scikit_learns_bayesian_score_is_no_density_but_ours_is():
    x = x_T(TOY, n=60)
    nu = fit_mixture(x, VP(), 0.3, components=10)
    bayes = BayesianGaussianMixture(
        n_components=10, weight_concentration_prior_type="dirichlet_process", random_state=0, max_iter=500
    ).fit(x.numpy())
    grid = torch.linspace(-15, 20, 20001, dtype=F64)[:, None]
    step = float(grid[1] - grid[0])
    assert float(nu.log_prob(grid).exp().sum()) * step == pytest.approx(1, abs=1e-6)
    assert float(np.exp(bayes.score_samples(grid.numpy())).sum()) * step < 0.99


@pytest.mark.parametrize("covariance", ["full", "diag", "spherical"])
def test_samples_of_a_mixture_follow_its_density(covariance):
    nu = fit_mixture(x_T(), VP(), 0.3, components=3, covariance=covariance)
    x, law = nu.sample(40000, stream(6)), nu.law
    torch.testing.assert_close(x.mean(0), law.weights @ law.means, rtol=0, atol=0.02)
    q = torch.distributions.MultivariateNormal(torch.tensor([0.7, 0.1], dtype=F64), 0.2 * torch.eye(2, dtype=F64))
    ratio = (q.log_prob(x) - nu.log_prob(x)).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / 200) and float(ratio.std()) < 5


def test_a_fit_is_the_same_each_time_and_hangs_on_its_seed(mixture):
    again = fit_mixture(x_T(), VP(), 0.3, components=4)
    assert torch.equal(again.law.means, mixture.law.means)
    assert not torch.equal(fit_mixture(x_T(), VP(), 0.3, components=4, seed=1).law.means, mixture.law.means)


def test_points_keep_their_dtype(mixture, glow):
    for nu, shape in ((mixture, (2,)), (glow.auxiliary, (1, 4, 4)), (exact(PLANE, VP(), 0.3), (2,))):
        x = nu.sample(7, stream(0))
        assert x.dtype == F64 and x.shape == (7, *shape) and nu.shape == shape
        wide, narrow = nu.log_prob(x), nu.log_prob(x.float())
        assert wide.dtype == F64 and narrow.dtype == torch.float32 and wide.shape == (7,)
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)
        assert nu.sample(7, stream(0), dtype=torch.float32, device="cpu").dtype == torch.float32
        assert not wide.requires_grad


def test_a_glow_of_float32_answers_float64_points_in_float64(glow):
    net, x = glow.auxiliary.law, torch.randn(9, 1, 4, 4, generator=stream(1), dtype=F64)
    assert net.top.shift.dtype == torch.float32
    wanted = glow.auxiliary.log_prob(x)
    with torch.no_grad():
        net.double()
        torch.testing.assert_close(net.log_prob(x), wanted, rtol=0, atol=1e-12)
        net.float()
    auxiliary_rows = torch.cat([glow.auxiliary.log_prob(row[None]) for row in x])
    torch.testing.assert_close(auxiliary_rows, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["mixture", "glow"])
def test_what_was_saved_reads_back(kind, mixture, glow, tmp_path):
    nu = mixture if kind == "mixture" else glow.auxiliary
    nu.save(tmp_path / "nu.safetensors")
    back = auxiliary.load(tmp_path / "nu.safetensors", VP(), 0.3)
    x = nu.sample(6, stream(0))
    assert torch.equal(back.log_prob(x), nu.log_prob(x)) and torch.equal(back.sample(6, stream(0)), x)
    assert (back.name, back.about, back.parameters, back.shape) == (nu.name, nu.about, nu.parameters, nu.shape)
    for process, T in ((VP(), 0.4), (VP(0.0, 10.0), 0.3), (VE(), 0.3)):
        where = f"this {kind} in .*nu.safetensors models x_T at T = 0.3 of VP.beta_min=0.1, beta_max=20.0., "
        with pytest.raises(ValueError, match=where):
            auxiliary.load(tmp_path / "nu.safetensors", process, T)


@pytest.mark.parametrize("covariance", ["diag", "spherical"])
def test_other_covariances_read_back(covariance, tmp_path):
    nu = fit_mixture(x_T(n=200), VP(), 0.3, components=3, covariance=covariance)
    nu.save(tmp_path / "nu.safetensors")
    x = nu.sample(6, stream(0))
    assert torch.equal(auxiliary.load(tmp_path / "nu.safetensors", VP(), 0.3).log_prob(x), nu.log_prob(x))


def test_closed_forms_and_other_files_are_no_files_of_auxiliary_models(tmp_path):
    for nu in (exact(PLANE, VP(), 0.3), gaussian(VP(), 0.3, (2,))):
        with pytest.raises(ValueError, match="closed form, of which there is nothing to save"):
            nu.save(tmp_path / "nu.safetensors")
    checkpoint.save(tmp_path / "other.safetensors", {"params": torch.zeros(2)}, {"lr": 1.0})
    with pytest.raises(ValueError, match="does not hold an auxiliary model"):
        auxiliary.load(tmp_path / "other.safetensors", VP(), 0.3)


def test_another_time_or_process_is_refused(mixture):
    mixture.check(VP(), 0.1 + 0.2)  # .30000000000000004
    for process, T in ((VP(), 0.2), (VP(0.0, 20.0), 0.3), (SubVP(), 0.3)):
        with pytest.raises(ValueError, match=r"models x_T at T = 0.3 of VP.*, not at T = .*: fit one there"):
            mixture.check(process, T)


@pytest.mark.parametrize("T", [0.0, -0.1, 1.1, math.nan])
@pytest.mark.parametrize(
    "use",
    [
        lambda T: gaussian(VP(), T, (2,)),
        lambda T: exact(PLANE, VP(), T),
        lambda T: fit_mixture(torch.zeros(9, 2), VP(), T),
        lambda T: gaussian(VP(), 0.5, (2,)).check(VP(), T),
        lambda T: Auxiliary(None, VP(), T, (2,), "any"),
    ],
)
def test_times_outside_the_process_are_refused(use, T):
    with pytest.raises(ValueError, match=r"T must lie in \(0, 1\], where VP.* runs, got"):
        use(T)


def test_points_that_will_not_do_are_refused(mixture):
    with pytest.raises(ValueError, match=r"is of points of shape \(2,\), got a batch of shape \(5, 3\)"):
        mixture.log_prob(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="takes points of a floating-point dtype, got torch.int64"):
        mixture.log_prob(torch.zeros(5, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"has shape .n, .+shape., got .5,.: give numbers an axis of their own"):
        fit_mixture(torch.zeros(5), VP(), 0.3)


def test_with_the_exact_law_a_short_solve_gives_the_same_density_as_a_long_one():
    # Proposition 1 with no gap of the score: nothing is lost by stopping early
    process, score, x = VP(), PLANE.diffused(VP()), x_T(T=1e-3, n=200, seed=4)
    wanted = score.log_prob(x, 1e-3)
    for T in (0.1, 0.3):
        nu = exact(PLANE, process, T)
        got = log_likelihood(score, process, x, t0=1e-3, t1=T, steps=80, grid="warped", prior=nu.log_prob)
        torch.testing.assert_close(got.log_prob, wanted, rtol=0, atol=1e-3)
        noise = gaussian(process, T, (2,))
        short = log_likelihood(score, process, x, t0=1e-3, t1=T, steps=80, grid="warped", prior=noise.log_prob)
        assert float((wanted - short.log_prob).mean()) > {0.1: 0.2, 0.3: 0.02}[T]


def test_an_auxiliary_model_of_another_time_or_process_is_refused_where_it_is_used():
    score, x = PLANE.diffused(VP()), x_T(T=1e-3, n=5, seed=4)
    solve = dict(t0=1e-3, t1=0.2, steps=4)
    for nu, said in (
        (exact(PLANE, VP(), 0.3), r"at T = 0.3 of VP\(.*\), not at T = 0.2 of VP"),
        (gaussian(VP(0.0, 10.0), 0.2, (2,)), r"at T = 0.2 of VP\(beta_min=0.0.*not at T = 0.2 of VP\(beta_min=0.1"),
    ):
        for use in (
            lambda nu: log_likelihood(score, VP(), x, **solve, prior=nu),
            lambda nu: log_likelihood(score, VP(), x, **solve).under(nu),
            lambda nu: prior_kl(PLANE, VP(), 0.2, prior=nu),
            lambda nu: elbo_curve(PLANE, VP(), [0.2], priors=[nu]),
        ):
            with pytest.raises(ValueError, match=said):
                use(nu)


def test_one_solve_serves_every_law_at_its_end():
    score, x = PLANE.diffused(VP()), x_T(T=1e-3, n=20, seed=4)
    solve = dict(t0=1e-3, t1=0.3, steps=6)
    for process in (VP(), Shortened(VP(), 0.3)):
        found = log_likelihood(score, process, x.float(), **solve)
        for nu in (exact(PLANE, VP(), 0.3), gaussian(Shortened(VP(), 0.3), 0.3, (2,)), None):
            wanted = log_likelihood(score, process, x.float(), **solve, prior=nu).log_prob
            assert found.under(nu).dtype == torch.float64
            torch.testing.assert_close(found.under(nu).float(), wanted, rtol=1e-5, atol=1e-5)
