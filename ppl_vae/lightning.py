"""Train with Lightning: a model, a guide and an objective as one of its modules.

Needs the extra: ``pip install 'ppl-vae[lightning]'``. Importing `ppl_vae` does not import this.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_vae.batches import Batch, as_batch
from ppl_vae.checking import check
from ppl_vae.checking_objectives import check_objective
from ppl_vae.diagnosing import explain
from ppl_vae.estimation import estimate
from ppl_vae.guarding import all_finite
from ppl_vae.indexing import alike
from ppl_vae.objectives import Objective, elbo
from ppl_vae.objectives.vocabulary import advance
from ppl_vae.optimizers import adam, made, to_train
from ppl_vae.programs import Program, Programs, forked_random_state, undisturbed
from ppl_vae.streams import current, put_back
from ppl_vae.svi import check_options

try:
    import lightning
except ImportError as error:
    raise ImportError("ppl_vae.lightning needs Lightning: pip install 'ppl-vae[lightning]'") from error

__all__ = ["LightningSVI"]


class LightningSVI(lightning.LightningModule):
    """Stochastic variational inference for Lightning's ``Trainer``, with its loggers and strategies.

    It logs ``train_bound``, ``valid_bound`` and ``test_bound``, nats per datum (larger is better, so that a
    ``ModelCheckpoint`` takes ``mode="max"``), ``annealed_bound`` where options follow the step, and penalties by
    name. Batches are tensors, or tuples of tensors that the programs take in this order. Steps run eagerly; Lightning
    clips, accumulates, chooses precision and averages gradients over devices as the Trainer is told.

    Args:
        model: Pyro program, an ``nn.Module``.
        guide: Pyro program with the same arguments, an ``nn.Module``.
        objective: a bound or an estimator of this library.
        particles: K.
        optimizer: a function from parameters to a torch optimizer; Adam with 1e-3 when left out.

    Raises:
        TypeError: neither program holds a module, so that Lightning would find no parameters.
        ValueError: on the first batch, a program declares parameters that no module holds (``pyro.param``).
        ContractError: on the first batch, model and guide do not fit.
        FloatingPointError: before an update, a gradient is NaN or infinite; parameters stay as they were. The message
            says where it came from. (A loss scaler leaves such updates out itself.)

    Reference: W. Falcon and the PyTorch Lightning team, "PyTorch Lightning", 2019,
    https://lightning.ai/docs/pytorch/stable/.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> sizes = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
        >>> svi = LightningSVI(VAE(**sizes), Normal(**sizes), pv.objectives.iwae, particles=5)
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, **quiet)
        >>> trainer.fit(svi, DataLoader(TensorDataset(torch.ones(40, 6)), batch_size=10))
        >>> trainer.callback_metrics["train_bound"]
        tensor(-...)
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        objective: Objective = elbo,
        particles: int = 1,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] = adam,
    ):
        super().__init__()
        check_options(objective, particles, compile=False)
        model, guide = alike(model, guide)
        programs = Programs(model, guide, objective)
        if not programs.modules:
            raise TypeError("model, guide: neither holds an nn.Module, so Lightning would find no parameters to train")
        # In a tuple, so that Lightning does not register modules a second time.
        self.parts = (model, guide, objective, programs)
        self.particles, self.optimizer = particles, optimizer
        self.owned = nn.ModuleDict({name.replace(".", "_"): module for name, module in programs.modules.items()})
        self._checked, self._latest = False, None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer, over what the objective may train."""
        _, _, objective, programs = self.parts
        return made(self.optimizer, to_train(programs, objective))

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Return what Lightning makes small."""
        model, guide, objective, _ = self.parts
        batch = as_batch(batch)
        self._check_once(batch)
        self._latest = batch, current()
        with pyro.validation_enabled(False):
            found = estimate(objective, model, guide, batch, self.particles)
        annealed = {} if found.annealed is None else {"annealed_bound": found.annealed}
        means = {"train_bound": found.value, **annealed, **found.penalties}
        self.log_dict({name: value.mean() for name, value in means.items()}, batch_size=len(batch[0]))
        return -found.surrogate.mean()

    def validation_step(self, batch: Any, index: int) -> None:
        """Log the bound on held-out data."""
        self._log_bound("valid_bound", as_batch(batch))

    def test_step(self, batch: Any, index: int) -> None:
        """Log the bound on test data."""
        self._log_bound("test_bound", as_batch(batch))

    def _log_bound(self, name: str, batch: Batch) -> None:
        model, guide, objective, _ = self.parts
        # The check takes gradients, which Lightning does not allow outside training.
        with torch.inference_mode(False), torch.enable_grad():
            self._check_once(batch)
        with pyro.validation_enabled(False):
            bound, _ = estimate(getattr(objective, "bound", None) or objective, model, guide, batch, self.particles)
        self.log(name, bound.mean(), batch_size=len(batch[0]), prog_bar=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse gradients that are no finite numbers, before anything moves."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled or all_finite(gradients):
            return
        batch, random = self._latest
        with forked_random_state(), self.trainer.precision_plugin.forward_context():
            put_back(random)
            found = explain(*self.parts[:3], batch, self.particles)
        raise FloatingPointError(f"{found}. The update was left out, and training has stopped")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update, and tell the objective, whose schedules follow updates."""
        super().optimizer_step(*args, **kwargs)
        advance(self.parts[2])

    def _check_once(self, batch: Batch) -> None:
        if self._checked:
            return
        model, guide, objective, programs = self.parts
        check(model, guide, batch)
        if alone := programs.run_once(model, guide, batch).at_sites:
            raise ValueError(
                f"pyro.param {', '.join(alone)}: no module holds it, so Lightning cannot train it; make it an "
                "nn.Parameter of model or guide"
            )
        with undisturbed(programs):
            check_objective(objective, model, guide, batch, self.particles)
        self._checked = True
