"""Log densities of parameters, with which training finds a maximum a posteriori estimate."""

from collections.abc import Callable, Sequence
from inspect import signature
from math import inf, log, pi
from numbers import Integral, Real
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from ppl_vae.programs import Program, modules_of, program_name, reached

__all__ = ["LogPrior", "check_log_prior", "check_prior_options", "laplace_prior", "normal_prior", "prior_options"]

# log p(theta) in nats, of the parameters that it closes over.
LogPrior = Callable[[], Tensor]


def normal_prior(program: Program, scale: float = 1.0) -> LogPrior:
    """Return the log density of a program's parameters under independent normal priors.

    Of D numbers theta_i in the parameters, as they are (a ``log_scale``, not the scale), frozen ones included::

        log p(theta) = sum_i log N(theta_i; 0, scale^2) = - sum_i theta_i^2 / (2 scale^2) - D/2 log(2 pi scale^2)

    In training on N data its gradient is that of weight decay by ``1 / (N scale^2)``.

    Args:
        program: a model or one of its parts (``vae.decoder``), but no method, whose owner may hold an encoder as well.
            Shared parameters count once.
        scale: standard deviation, in the units of the parameters.

    Returns:
        A function without arguments, for the ``log_prior`` of `fit`, `svi_step`, `em` and `variational_em`: a tensor
        of shape ``()``, in nats. It reads the parameters anew in every call.

    Raises:
        TypeError: the program is a method.
        ValueError: the program holds no parameters in modules, or the scale is not positive.

    Reference: D. J. C. MacKay, "A Practical Bayesian Framework for Backpropagation Networks", Neural
    Computation 1992, https://doi.org/10.1162/neco.1992.4.3.448.

    Example:
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(net.weight)
        >>> pv.normal_prior(net)()  # two numbers at zero, each of log density -log(2 pi) / 2
        tensor(-1.8379, ...)
    """
    scale = _positive(scale)
    constant = 0.5 * log(2 * pi * scale**2)
    # A product, since the gradient of a square takes a power.
    return _over_parameters(program, lambda p: -0.5 / scale**2 * (p * p).sum() - p.numel() * constant)


def laplace_prior(program: Program, scale: float = 1.0) -> LogPrior:
    """Return the log density of a program's parameters under independent Laplace priors, as for the lasso.

    Of D numbers theta_i in the parameters, as they are::

        log p(theta) = - sum_i |theta_i| / scale - D log(2 scale)

    Args:
        program: as for `normal_prior`.
        scale: mean absolute deviation, in the units of the parameters.

    Returns:
        As `normal_prior`.

    Raises:
        TypeError, ValueError: as for `normal_prior`.

    Reference: R. Tibshirani, "Regression Shrinkage and Selection via the Lasso", JRSS B 1996,
    https://doi.org/10.1111/j.2517-6161.1996.tb02080.x.

    Example:
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(net.weight)
        >>> laplace_prior(net)()  # two numbers at one: -2 - 2 log 2
        tensor(-3.3863, ...)
    """
    scale = _positive(scale)
    constant = log(2 * scale)
    return _over_parameters(program, lambda p: -p.abs().sum() / scale - p.numel() * constant)


def _positive(scale: Any) -> float:
    if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 < scale < inf:
        raise ValueError(f"scale: expected a positive number, found {scale!r}")
    return float(scale)  # a number of NumPy's would take a tensor apart


def _over_parameters(program: Program, log_density: Callable[[Tensor], Tensor]) -> LogPrior:
    if any(isinstance(thing, MethodType) for thing in reached(program)):
        raise TypeError(
            f"program: {program_name(program)} is a method or calls one, and of the parameters that its owner holds it "
            "need not use all (a VAE has an encoder too); pass the part that the prior is of, such as vae.decoder, or "
            "the owner itself for all"
        )
    modules = modules_of(program)
    if not any(True for module in modules for _ in module.parameters()):
        raise ValueError(
            f"program: {program!r} holds no parameters in modules; write a function that returns log p(theta) of those "
            "that it declares by pyro.param"
        )

    def log_prior() -> Tensor:
        once = {id(p): p for module in modules for p in module.parameters()}
        return sum(log_density(p) for p in once.values())

    return log_prior


def prior_options(log_prior: LogPrior | None, rows: int | None) -> dict[str, Any]:
    """Return the options of a step that are about a prior.

    Args:
        log_prior: gives log p(theta), or None.
        rows: number of training data, or None where it is not known.

    Raises:
        TypeError: the prior is no function without arguments.
        ValueError: there is a prior, and the number of data is not known.

    Example:
        >>> prior_options(None, None)
        {}
    """
    if log_prior is not None and rows is None:
        raise ValueError(
            "log_prior: it needs the number of training data, which this DataLoader does not tell; pass a Dataset or "
            "tensors, or a step that was given data_size"
        )
    if log_prior is None:
        return {}
    _check_function(log_prior)
    return {"log_prior": log_prior, "data_size": rows}


def check_prior_options(log_prior: Any, data_size: Any) -> None:
    """Raise if a log density of parameters cannot be trained with.

    Example:
        >>> check_prior_options(pv.normal_prior(torch.nn.Linear(2, 1)), None)
        Traceback (most recent call last):
        ...
        ValueError: data_size: expected the number N of training data, over which log p(theta) is shared out, found None
    """
    if log_prior is None:
        if data_size is not None:
            raise ValueError(f"data_size: it goes with log_prior, found {data_size!r} without; leave it out")
        return
    _check_function(log_prior)
    if isinstance(data_size, bool) or not isinstance(data_size, Integral) or data_size < 1:
        raise ValueError(
            "data_size: expected the number N of training data, over which log p(theta) is shared out, found "
            f"{data_size!r}"
        )


def _check_function(log_prior: Any) -> None:
    expected = (
        "log_prior: expected a function without arguments that returns log p(theta), such as pv.normal_prior(model)"
    )
    if not callable(log_prior) or isinstance(log_prior, torch.nn.Module):
        raise TypeError(f"{expected}, found {log_prior!r}")
    try:
        taken = signature(log_prior)
    except ValueError:  # of a function that is not Python's
        return
    try:
        taken.bind()
    except TypeError as error:
        raise TypeError(f"{expected}, found one of {taken}; let it read the parameters off their modules") from error


def check_log_prior(log_prior: LogPrior, moved: Sequence[Tensor]) -> None:
    """Raise unless a function gives one finite number, of parameters that move.

    Args:
        log_prior: gives log p(theta).
        moved: parameters that an optimizer holds.

    Raises:
        ValueError: the message says what was found, and the repair.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> check_log_prior(lambda: -weight.square(), [weight])
        Traceback (most recent call last):
        ...
        ValueError: log_prior: expected a tensor of shape (), found shape (2,); sum over the parameters
    """
    with torch.enable_grad():
        value = log_prior()
    shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    if not isinstance(value, Tensor) or value.dim():
        raise ValueError(f"log_prior: expected a tensor of shape (), found {shape}; sum over the parameters")
    if not value.isfinite():
        raise ValueError(
            f"log_prior: log p(theta) is {value.item()} at the parameters as they are; start where the prior has a "
            "density"
        )
    slopes = torch.autograd.grad(value, moved, allow_unused=True) if value.requires_grad and moved else [None]
    if all(slope is None for slope in slopes):
        raise ValueError(
            "log_prior: it depends on none of the parameters that the optimizer moves, and would change nothing; make "
            "it a function of those, read when it is called"
        )
