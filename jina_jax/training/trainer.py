"""The training loop: batches in, checkpoints, metrics and evaluations out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from tqdm import tqdm

from jina_jax.cache import compilation_cache
from jina_jax.config import Config
from jina_jax.convert import Checkpoint
from jina_jax.embedder import JinaEmbeddings
from jina_jax.runtime.pipeline import ahead
from jina_jax.runtime.sharding import usual_mesh
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.training import mlm, run
from jina_jax.training.checkpoints import RunCheckpoints
from jina_jax.training.collate import Collator, StepInputs
from jina_jax.training.evaluations import Evaluations, TrainedModel
from jina_jax.training.metrics import Interval, Metrics
from jina_jax.training.micro_batches import Packing
from jina_jax.training.optimizer import optimizer, schedule
from jina_jax.training.parameters import Arrays, Network, load_network
from jina_jax.training.programs import Programs, replicate
from jina_jax.training.settings import Settings
from jina_jax.training.sources import Sources
from jina_jax.training.state import TrainState
from jina_jax.training.step import StepResult


class _Batch(NamedTuple):
    """Inputs of a step, and the sampler's state after it."""

    step: int
    source: int
    inputs: StepInputs
    sampler: dict[str, Any]


class Trainer:
    """A training run.

    Args:
      settings: of the run (``Settings.from_toml``).
      resume: continue the run in ``settings.output`` from its last checkpoint.
      mesh: devices that share the rows of each batch (``jina_jax.make_mesh``); None for all.
      show_progress_bar: None shows it on a terminal.

    Attributes:
      settings: of the run.
      base: the checkpoint that training started from, new tasks included.
      state: ``TrainState`` after the last step.

    Raises:
      SettingsError, DataError, CheckpointError, ValueError: before anything is trained, if
        settings, data or model cannot be used.
      FileExistsError: if the directory has a run and ``resume`` is False, or other files.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        resume: bool = False,
        mesh: Mesh | None = None,
        show_progress_bar: bool | None = None,
    ):
        if jax.process_count() > 1:
            raise ValueError(f"training: expected one process, got {jax.process_count()}")
        self.settings = settings
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._shown = is_terminal if show_progress_bar is None else show_progress_bar
        mesh = usual_mesh() if mesh is None else mesh
        self.base = run.open_base(settings.model, settings.seed)
        if not self.base.config.include_prompt:
            raise ValueError("model: expected include_prompt=true; training pools every token")
        tokenizer = Tokenizer.from_file(self.base.tokenizer)
        self._evaluations = Evaluations(settings)
        self._sources = Sources(settings)
        network, trained, frozen = _load(settings, self.base, tokenizer, mesh)
        self._sources.check(network.config.output_size)
        self._collator = _collator(settings, network.config, tokenizer, mesh)
        self._programs = Programs(
            network,
            frozen,
            optimizer(settings.optimizer),
            dropout=settings.model.dropout,
            seed=settings.seed,
            mesh=mesh,
        )
        tasks = settings.model.tasks
        self._model = TrainedModel(self.base, tasks, network, frozen, tokenizer, mesh)
        opt_state = self._programs.init(trained)
        self.state = TrainState(0, trained, opt_state, self._sources.sampler.state())
        # The run's directory is made only now, so that a refusal leaves no trace. Everything below
        # reads or writes in it; metrics need the restored step.
        run.start(settings, self.base, resume=resume)
        self._sources.warn_bad_rows(settings.output / run.BAD_ROWS)
        self._checkpoints = RunCheckpoints(settings.output / run.CHECKPOINTS, settings.log.keep)
        self._restore()
        self._metrics = Metrics(settings.output / run.METRICS, self.step)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    def fit(self) -> dict[str, float]:
        """Train to the last step, evaluating and saving at the steps of the settings.

        Returns:
          The metrics of the last evaluation, also of a run that was finished before; {} without
          evaluations.

        Raises:
          TrainingError: if the loss or its gradient is not finite.
          CheckpointError: if a checkpoint cannot be written; earlier ones stay.
        """
        with compilation_cache(True):
            if self.step == self.settings.optimizer.steps:
                return self._metrics.evaluation(self.step) or self.evaluate()
            return self._fit()

    def _fit(self) -> dict[str, float]:
        log, steps = self.settings.log, self.settings.optimizer.steps
        results = self._evaluate_and_report() if self.step == 0 else {}
        interval = Interval()
        with tqdm(total=steps, initial=self.step, unit="step", disable=not self._shown) as progress:
            for batch in ahead(self._batches()):
                result = self._run(batch)
                progress.update()
                interval.add(self._sources.names[batch.source], batch.inputs, result)
                due = self.step == steps or _is_multiple(self.step, log.evaluate_every)
                saving = due or _is_multiple(self.step, log.save_every)
                if not saving and not _is_multiple(self.step, log.every):
                    continue
                # Always before a checkpoint: its numbers are then finite, and a resumed run has
                # the same intervals as one that was never stopped.
                progress.set_postfix(self._report(interval), refresh=False)
                if saving:
                    results = self._evaluate_and_report() if due else results
                    self._checkpoints.save(
                        self.state, self._evaluations.score(results) if due else None
                    )
                interval = Interval()
        return results

    def summary(self) -> str:
        """Return a few lines on the parameters, tasks, data and steps of the run."""
        settings, network, frozen = self.settings, self._programs.network, self._programs.frozen
        counts = [sum(a.size for a in part.values()) for part in (self.state.trained, frozen)]
        rotary = ""
        if network.config.rotary_emb_base is not None:
            after = self.base.config.rotary_emb_base
            rotary = f"; rotary base {network.config.rotary_emb_base:g} in training, "
            rotary += f"{after:g} afterwards"
        return "\n".join(
            [
                f"model    {settings.model.name}: {counts[0]:,} parameters trained, "
                f"{counts[1]:,} frozen ({network.dtype})",
                f"tasks    {', '.join(network.config.lora_adaptations) or 'none'}{rotary}",
                *self._sources.summary(),
                f"steps    {self.step:,} of {settings.optimizer.steps:,} done",
            ]
        )

    def checkpoint(self) -> Checkpoint:
        """Return the model as trained so far, to write (``write_checkpoint``) or to load."""
        return run.with_trained(self.base, self.settings.model.tasks, self.state.trained)

    def embedder(self) -> JinaEmbeddings:
        """Return the model as trained so far, to encode with, at the checkpoint's rotary base.

        Later steps do not change it.
        """
        return self._model(jax.tree.map(jnp.copy, self.state.trained))

    def evaluate(self) -> dict[str, float]:
        """Run the evaluations of the settings on the model as trained so far."""
        if not self._evaluations:
            return {}
        with compilation_cache(True):
            return self._evaluations.run(self._model(self.state.trained))

    def _evaluate_and_report(self) -> dict[str, float]:
        results = self.evaluate()
        if results:
            self._metrics.write(
                step=self.step,
                evaluation=results,
                primary=self._evaluations.primary,
                score=self._evaluations.score(results),
            )
        return results

    def _batches(self) -> Iterator[_Batch]:
        """Yield the batches of the remaining steps."""
        sampler = self._sources.sampler
        for step in range(self.step + 1, self.settings.optimizer.steps + 1):
            batch = next(sampler)
            inputs = self._collator(batch, self.settings.data[batch.source], step)
            yield _Batch(step, batch.source, inputs, sampler.state())

    def _run(self, batch: _Batch) -> StepResult:
        """Take a step; the arrays of the state before it are donated."""
        loss = self.settings.data[batch.source].loss
        trained, opt_state, result = self._programs.run(
            loss, self.state.trained, self.state.opt_state, batch.inputs, batch.step
        )
        self.state = TrainState(batch.step, trained, opt_state, batch.sampler)
        return result

    def _restore(self) -> None:
        latest = self._checkpoints.latest
        if latest is not None:
            self.state = self._checkpoints.restore(latest, self.state)
            self._sources.sampler.restore(self.state.sampler)

    def _report(self, interval: Interval) -> dict[str, str]:
        """Write a line of metrics, and return what the progress bar shows."""
        values = interval.summary(self.step)
        rate = float(schedule(self.settings.optimizer)(self.step - 1))
        self._metrics.write(step=self.step, **values, learning_rate=rate)
        return {
            "loss": f"{values['loss']:.4f}",
            "lr": f"{rate:.2e}",
            "tokens/s": f"{values['tokens_per_second']:.0f}",
        }


def _load(
    settings: Settings, base: Checkpoint, tokenizer: Tokenizer, mesh: Mesh | None
) -> tuple[Network, Arrays, Arrays]:
    """Read the network as ``load_network`` does, with the head of masked language modelling."""
    model = settings.model
    on_tpu = jax.default_backend() == "tpu"
    network, trained, frozen = load_network(
        base,
        model.tasks,
        model.train,
        dtype=model.dtype,
        rotary_emb_base=model.rotary_emb_base,
        mesh=mesh,
        scan_layers=on_tpu if model.scan_layers is None else model.scan_layers,
    )
    if any(data.loss.name == "mlm" for data in settings.data):
        mlm.mask_id_of(tokenizer)  # refuses now rather than in a step
        trained |= replicate(mlm.init_head(network.config, settings.seed), mesh)
    return network, trained, frozen


def _collator(
    settings: Settings, config: Config, tokenizer: Tokenizer, mesh: Mesh | None
) -> Collator:
    multiple = 1 if mesh is None else mesh.shape["data"]
    packing = Packing(settings.batches.micro_batch_tokens, row_multiple=multiple)
    return Collator(config, tokenizer, packing, settings.model.max_length, settings.seed)


def _is_multiple(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
