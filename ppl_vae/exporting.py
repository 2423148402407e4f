"""Evaluations in the form of ArviZ."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ppl_vae.archive import write_atomically

if TYPE_CHECKING:
    from ppl_vae.evaluation import Evaluation

__all__ = ["from_arrays", "inference_data", "with_history", "write_netcdf"]

COLUMNS = ("log_px", "elbo", "debiased", "distortion", "ess", "khat", "log_px_error", "rise")
# Groups whose variables have a chain and draws.
SAMPLED = {"posterior", "posterior_predictive", "sample_stats", "prior", "prior_predictive", "log_likelihood"}


def inference_data(evaluation: "Evaluation", rows: int = 100) -> Any:
    """Return an evaluation as ArviZ's ``InferenceData`` (0.x) or ``DataTree`` (1.x); see `Evaluation.to_arviz`.

    Example:
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.randn(10, 6)
        >>> inference = inference_data(pv.evaluate(model, Exact(model), x, particles=50), rows=3)
        >>> inference["posterior_predictive"]["x"].shape
        (1, 50, 3, 6)
    """
    columns = {name: getattr(evaluation, name) for name in COLUMNS}
    groups: dict[str, Mapping[str, Tensor]] = {
        "log_likelihood": {"log_px": evaluation.replicates.mT},
        "constant_data": {name: column for name, column in columns.items() if len(column) == len(evaluation)},
    }
    axes = {"log_likelihood": "datum", "constant_data": "datum"}
    if evaluation.redraw is not None:
        groups |= _redrawn(evaluation, min(rows, len(evaluation)))
        axes |= dict.fromkeys(groups.keys() - axes.keys(), "row")
    return _from_dict({name: values for name, values in groups.items() if values}, axes, evaluation)


def with_history(inference: Any, history: Mapping[str, Sequence[float]]) -> Any:
    """Return the same with the columns of a training history in ``constant_data``, along ``epoch``.

    Example:
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.randn(10, 6)
        >>> inference = pv.evaluate(model, Exact(model), x, particles=50).to_arviz()
        >>> inference = with_history(inference, {"epoch": [1, 2], "train_bound": [-5.0, -4.0]})
        >>> inference["constant_data"]["train_bound"].values
        array([-5., -4.])
    """
    columns = {name: ("epoch", list(column)) for name, column in history.items() if name != "epoch"}
    constant = inference["constant_data"]
    in_tree = hasattr(constant, "to_dataset")  # ArviZ 1.x
    dataset = constant.to_dataset() if in_tree else constant
    dataset = dataset.assign_coords(epoch=list(history["epoch"])).assign(columns)
    if in_tree:
        constant.dataset = dataset
    else:
        inference["constant_data"] = dataset
    return inference


def _redrawn(evaluation: "Evaluation", rows: int) -> dict[str, Mapping[str, Tensor]]:
    redraw, numbers = evaluation.redraw, evaluation.resampled[:rows]
    drawn, observed = redraw.posterior(numbers), redraw.observed(rows)
    prior = redraw.prior(numbers.shape[1], rows)
    return {
        "posterior": drawn.latents,
        "posterior_predictive": drawn.data,
        "sample_stats": drawn.statistics,
        "observed_data": observed,
        "prior": {name: value for name, value in prior.items() if name not in observed},
        "prior_predictive": {name: value for name, value in prior.items() if name in observed},
    }


def _from_dict(groups: Mapping[str, Mapping[str, Tensor]], axes: Mapping[str, str], evaluation: "Evaluation") -> Any:
    arrays = {
        group: {name: _array(value, group in SAMPLED) for name, value in values.items()}
        for group, values in groups.items()
    }
    dims = {
        (group, name): [axes[group], *(f"{name}_dim_{i}" for i in range(array.ndim - 1 - 2 * (group in SAMPLED)))]
        for group, values in arrays.items()
        for name, array in values.items()
    }
    attrs = {"subject": evaluation.subject, "particles": evaluation.particles, "seed": evaluation.seed}
    return from_arrays(arrays, dims, attrs)


def from_arrays(
    arrays: Mapping[str, Mapping[str, Any]], dims: Mapping[tuple[str, str], list[str]], attrs: Mapping[str, Any]
) -> Any:
    """Return groups of arrays as ArviZ's ``InferenceData`` (0.x) or ``DataTree`` (1.x).

    Args:
        arrays: group to name to array; those of groups that are sampled begin with axes of chains and draws.
        dims: group and name to the names of the further axes.
        attrs: what each group says of itself.

    Example:
        >>> import numpy as np
        >>> made = from_arrays({"posterior": {"z": np.zeros((1, 5, 3))}}, {("posterior", "z"): ["datum"]}, {})
        >>> made["posterior"]["z"].dims
        ('chain', 'draw', 'datum')
    """
    import arviz

    attrs = {"inference_library": "ppl_vae", "inference_library_version": version("ppl-vae"), **attrs}
    return (_inference_data if int(arviz.__version__.split(".")[0]) < 1 else _data_tree)(arrays, dims, attrs)


def _array(value: Tensor, sampled: bool) -> Any:
    array = value.detach().cpu().numpy()
    return array[None] if sampled else array


def _inference_data(arrays: Mapping[str, Mapping[str, Any]], dims: Mapping[Any, list[str]], attrs: Any) -> Any:
    """Return what ArviZ 0.x works on. Groups have axes of their own, and so are made one by one."""
    import arviz

    datasets = {
        group: arviz.dict_to_dataset(
            dict(values),
            dims={name: dims[group, name] for name in values},
            default_dims=None if group in SAMPLED else [],
            attrs=attrs,
        )
        for group, values in arrays.items()
    }
    return arviz.InferenceData(**datasets)


def _data_tree(arrays: Mapping[str, Mapping[str, Any]], dims: Mapping[Any, list[str]], attrs: Any) -> Any:
    """Return what ArviZ 1.x works on."""
    import arviz_base
    import xarray

    datasets = {
        group: arviz_base.dict_to_dataset(
            dict(values),
            dims={name: dims[group, name] for name in values},
            sample_dims=["chain", "draw"] if group in SAMPLED else [],
            attrs=attrs,
        )
        for group, values in arrays.items()
    }
    return xarray.DataTree.from_dict({f"/{group}": dataset for group, dataset in datasets.items()})


def write_netcdf(evaluation: "Evaluation", path: Path, rows: int = 100) -> None:
    """Write an evaluation as a NetCDF file, whole or not at all, for ``arviz.from_netcdf``.

    Example:
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.randn(10, 6)
        >>> write_netcdf(pv.evaluate(model, Exact(model), x, particles=50), tmp_path / "evaluation.nc")
    """
    found = inference_data(evaluation, rows)
    write_atomically(path, lambda file: found.to_netcdf(file.name))
