"""What training did, and what came of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppl_vae.evaluating import evaluate
from ppl_vae.exporting import with_history
from ppl_vae.programs import Program, program_name

__all__ = ["Fit"]


@dataclass(repr=False)
class Fit:
    """What training did.

    Attributes:
        history: per epoch ``"epoch"`` (from 1), ``"train_bound"`` and, with validation data,
            ``"valid_bound"`` in nats per datum (sums over data / N), ``"annealed_bound"``, what was trained, where
            options of the bound follow the step (the others have them at their ends), each penalty by name,
            ``"log_prior"``, the mean of log p(theta) / N, where there is a prior (what was made large is
            ``"train_bound"`` plus it), ``"seconds"`` since the start.
        best: the epoch whose parameters the programs now have, and its bound. The best one on the
            validation data, the last one without them.
        out: the run folder, or None.
        graphs: how many graphs were compiled for training and validation; 0 where all ran eagerly.
        ended: why training ended before its last epoch, or nothing.
        trained: model, guide, which data `to_arviz` evaluates, and these; None where a step of somebody's
            own has none.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    out: Path | None = None
    graphs: int = 0
    ended: str = ""
    trained: tuple[Program, Program, str, Any] | None = None

    def __str__(self) -> str:
        epochs, seconds = len(self.history["epoch"]), self.history["seconds"][-1]
        held_out = "valid_bound" in self.history
        kept = "best on the validation data" if held_out else "the last"
        how = f" ({self.graphs} compiled graph{'s' * (self.graphs > 1)})" if self.graphs else ""
        return (
            f"Trained for {epochs} epoch{'s' * (epochs != 1)} in {seconds:.1f} s{how}; kept epoch "
            f"{self.best['epoch']:.0f} ({kept}): {self.best['bound']:.3f} nats per datum"
        )

    __repr__ = __str__

    def to_arviz(self, particles: int = 1000, seed: int = 0, rows: int = 100) -> Any:
        """Return the trained programs' posterior, predictions and log-likelihoods as ArviZ has them.

        The programs, as they are now, are evaluated on the validation data, or on the training data where there
        were none. What comes is described at `Evaluation.to_arviz`; ``constant_data`` has the history of training too,
        along ``epoch``.

        Args:
            particles: K, draws per datum.
            seed: seeds the draws.
            rows: for how many of the data to draw latents and new data.

        Raises:
            ValueError: training was by a step without model and guide; evaluate them with `ppl_vae.evaluate`.

        Reference: R. Kumar, C. Carroll, A. Hartikainen, O. Martin, "ArviZ", JOSS 2019,
        https://doi.org/10.21105/joss.01143.

        Example:
            >>> from ppl_vae.models.vae import VAE
            >>> from ppl_vae.guides.normal import Normal
            >>> sizes = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
            >>> fit = pv.fit(VAE(**sizes), Normal(**sizes), torch.ones(40, 6), epochs=2)
            >>> sorted(fit.to_arviz(particles=50)["constant_data"].data_vars)[-3:]
            ['rise', 'seconds', 'train_bound']
        """
        if self.trained is None:
            raise ValueError("fit: the step shows no model and guide; call pv.evaluate(...).to_arviz() on them")
        model, guide, which, data = self.trained
        subject = f"{program_name(model)} (guide {program_name(guide)}), {which} data"
        evaluation = evaluate(model, guide, data, particles=particles, seed=seed, subject=subject)
        return with_history(evaluation.to_arviz(rows), self.history)
