"""The loop: batches in, checkpoints, metrics and evaluations out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from jina_jax.cache import set_compilation_cache
from jina_jax.checkpoints.native import to_state
from jina_jax.convert import Checkpoint
from jina_jax.embedder import JinaEmbeddings
from jina_jax.nn.attention import choose
from jina_jax.runtime.compiling import platform_of
from jina_jax.runtime.pipeline import ahead
from jina_jax.runtime.sharding import make_mesh, placer
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.training import mlm, run
from jina_jax.training.checkpoints import RunCheckpoints
from jina_jax.training.collate import Collator, StepInputs
from jina_jax.training.metrics import Interval, Metrics
from jina_jax.training.micro_batches import Packing
from jina_jax.training.optimizer import optimizer, schedule
from jina_jax.training.parameters import load_network
from jina_jax.training.prepare import (
    check_sources,
    loss_function,
    make_evaluations,
    make_sampler,
    name_sources,
    read_data,
    warn_bad_rows,
)
from jina_jax.training.settings import Loss, Settings
from jina_jax.training.step import MICRO_BATCH_ROWS, Encoding, StepResult, make_step, text_objective


class _Batch(NamedTuple):
    """StepInputs of a step, and where the data stand after it."""

    step: int
    source: int
    inputs: StepInputs
    state: dict[str, Any]


class Trainer:
    """A training run.

    Args:
      settings: all of it (``Settings.from_toml``).
      resume: go on with the run in ``settings.output`` from its last checkpoint.
      mesh: devices that share the rows of each batch (``jina_jax.make_mesh``); None for all.
      show_progress_bar: None shows it on a terminal.

    Attributes:
      settings: as given.
      step: steps done.
      base: the checkpoint that training started from, new tasks included.
      trained: float32 parameters by path.

    Raises:
      SettingsError, DataError, CheckpointError, ValueError: before anything is trained, if
        settings, data or model cannot be used.
      FileExistsError: if there is a run in the directory and it is not to be resumed.
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
        set_compilation_cache(True)
        self.settings = settings
        self.step = 0
        self._shown = sys.stderr.isatty() if show_progress_bar is None else show_progress_bar
        self.base = run.open_base(settings.model, settings.seed)
        self._tokenizer = Tokenizer.from_file(self.base.directory / "tokenizer.json")
        self._evaluations = make_evaluations(settings)
        sources = [read_data(data) for data in settings.data]
        self._names = name_sources(settings)
        self._rows = [len(source) for source in sources]
        self._sampler = make_sampler(settings, sources)
        self._mesh = make_mesh() if mesh is None and len(jax.devices()) > 1 else mesh
        self._load(settings)
        check_sources(settings, sources, self._network.config.hidden_size)
        run.start(settings, self.base, resume=resume)
        warn_bad_rows(settings, sources)
        self._store = RunCheckpoints(settings.output / run.CHECKPOINTS, settings.log.keep)
        self._restore()
        self._metrics = Metrics(settings.output / run.METRICS, self.step)
        self._embedder: JinaEmbeddings | None = None

    def _load(self, settings: Settings) -> None:
        """Read the model, and make what its steps are made of."""
        model = settings.model
        self._network = load_network(
            self.base,
            model.tasks,
            model.train,
            dtype=model.dtype,
            rotary_emb_base=model.rotary_emb_base,
            mesh=self._mesh,
        )
        config = self._network.config
        if model.max_length > config.max_length:
            raise ValueError(
                f"model.max_length={model.max_length}: expected at most {config.max_length}"
            )
        self.trained = dict(self._network.trained)
        self._frozen = self._network.frozen
        if any(data.loss.name == "mlm" for data in settings.data):
            if self._tokenizer.mask_id is None:
                raise ValueError("loss 'mlm': expected a tokenizer with the token <mask>")
            head = mlm.init_head(config, settings.seed)
            self.trained |= {path: self._everywhere(array) for path, array in head.items()}
        self._optimizer = optimizer(settings.optimizer)
        # Where the steps leave it: each value with its parameter, counts everywhere.
        self._opt_state = jax.tree.map(
            lambda array: array if array.ndim else self._everywhere(array),
            self._optimizer.init(self.trained),
        )
        packing = Packing(
            settings.batches.micro_batch_tokens,
            row_multiple=1 if self._mesh is None else self._mesh.shape["data"],
        )
        self._reader = Collator(config, self._tokenizer, packing, model.max_length, settings.seed)
        self._steps: dict[tuple, Callable] = {}

    def fit(self) -> dict[str, float]:
        """Train to the last step, evaluating and saving on the way.

        Returns:
          The metrics of the last evaluation; {} without evaluations.

        Raises:
          TrainingError: if the loss or its gradient is not finite.
          CheckpointError: if a checkpoint cannot be written; those before stay.
        """
        log, steps = self.settings.log, self.settings.optimizer.steps
        results = self._evaluate_and_report() if self.step == 0 else {}
        interval = Interval()
        with tqdm(total=steps, initial=self.step, unit="step", disable=not self._shown) as progress:
            for batch in ahead(self._batches()):
                result = self._run(batch)
                self.step = batch.step
                progress.update()
                interval.add(self._names[batch.source], batch.inputs, result)
                due = self.step == steps or _is_multiple(self.step, log.evaluate_every)
                saving = due or _is_multiple(self.step, log.save_every)
                if not saving and not _is_multiple(self.step, log.every):
                    continue
                # Before a checkpoint always: it is of finite numbers, and a run that goes on from
                # it has the same windows as one that was never stopped.
                progress.set_postfix(self._report(interval), refresh=False)
                if saving:
                    results = self._evaluate_and_report() if due else results
                    score = self._score(results) if due else None
                    self._store.save(self.step, self.trained, self._opt_state, batch.state, score)
                interval = Interval()
        return results

    def summary(self) -> str:
        """Say in a few lines what is trained, on what and how much of it."""
        settings, config = self.settings, self._network.config
        count, total = (sum(a.size for a in part.values()) for part in (self.trained, self._frozen))
        rotary = ""
        if config.rotary_emb_base is not None:
            after = self.base.config.rotary_emb_base
            rotary = f"; rotary base {config.rotary_emb_base:g} in training, {after:g} afterwards"
        return "\n".join(
            [
                f"model    {settings.model.name}: {count:,} parameters trained, {total:,} frozen "
                f"({self._network.dtype})",
                f"tasks    {', '.join(config.lora_adaptations) or 'none'}{rotary}",
                *(
                    f"data     {name}: {rows:,} rows"
                    for name, rows in zip(self._names, self._rows, strict=True)
                ),
                f"steps    {self.step:,} of {settings.optimizer.steps:,} done",
            ]
        )

    def checkpoint(self) -> Checkpoint:
        """Return the model as trained so far, to write (``write_checkpoint``) or to load."""
        return run.with_trained(self.base, self.settings.model.tasks, self.trained)

    def embedder(self) -> JinaEmbeddings:
        """Return the model as trained so far, to encode with: at the checkpoint's rotary base."""
        checkpoint = self.checkpoint()
        config, place = checkpoint.config, None
        if self._mesh is not None:
            place = placer(self._mesh, config)
        state = to_state(config, checkpoint.tensors, self._network.dtype, place=place)
        if self._embedder is None:
            self._embedder = JinaEmbeddings(config, state, self._tokenizer, mesh=self._mesh)
        else:
            self._embedder = self._embedder.with_state(state)
        return self._embedder

    def evaluate(self) -> dict[str, float]:
        """Run the evaluations of the settings on the model as trained so far."""
        if not self._evaluations:
            return {}
        embedder = self.embedder()
        return {k: v for each in self._evaluations for k, v in each.run(embedder).items()}

    def _evaluate_and_report(self) -> dict[str, float]:
        results = self.evaluate()
        if results:
            self._metrics.write(
                step=self.step,
                evaluation=results,
                primary=[each.primary for each in self._evaluations],
                score=self._score(results),
            )
        return results

    def _score(self, results: dict[str, float]) -> float | None:
        """Return the mean of the primary metrics."""
        if not results:
            return None
        return float(np.mean([results[each.primary] for each in self._evaluations]))

    def _batches(self) -> Iterator[_Batch]:
        """Yield the batches of the steps to come."""
        for step in range(self.step + 1, self.settings.optimizer.steps + 1):
            batch = next(self._sampler)
            inputs = self._reader(batch, self.settings.data[batch.source], step)
            yield _Batch(step, batch.source, inputs, self._sampler.state())

    def _run(self, batch: _Batch) -> StepResult:
        micro_batches = batch.inputs.micro_batches
        shape = (*micro_batches.input_ids.shape[1:], micro_batches.segments.shape[2])
        # Sources of one loss share programs.
        key = (self.settings.data[batch.source].loss, batch.inputs.columns, *shape[1:])
        if key not in self._steps:
            self._steps[key] = self._make_step(*key)
        placed = type(micro_batches)(*(self._place(array) for array in micro_batches))
        self.trained, self._opt_state, result = self._steps[key](
            self.trained,
            self._opt_state,
            self._frozen,
            placed,
            {name: self._everywhere(array) for name, array in batch.inputs.targets.items()},
            jax.random.fold_in(jax.random.key(self.settings.seed), batch.step),
        )
        return result

    def _make_step(self, loss: Loss, columns: int, tokens: int, slots: int) -> Callable:
        network = self._network
        platform = platform_of(next(iter(self.trained.values())))
        kernel = choose(
            platform,
            network.dtype,
            tokens,
            slots,
            network.config.head_dim,
            self._mesh,
        ).kernel
        encoding = Encoding(network, kernel, self.settings.model.dropout, self._mesh)
        if loss.name == "mlm":
            return make_step(mlm.mlm_objective(encoding), self._optimizer, platform)
        objective = text_objective(encoding, loss_function(loss), columns)
        return make_step(objective, self._optimizer, platform)

    def _place(self, array: np.ndarray) -> Any:
        """Put an array of micro-batches on the devices: rows on the data axis."""
        if self._mesh is None or array.ndim < 3:
            return self._everywhere(array)
        return jax.device_put(array, NamedSharding(self._mesh, MICRO_BATCH_ROWS))

    def _everywhere(self, array: np.ndarray) -> Any:
        sharding = None if self._mesh is None else NamedSharding(self._mesh, P())
        return jax.device_put(array, sharding)

    def _restore(self) -> None:
        latest = self._store.latest
        if latest is None:
            return
        self.trained, self._opt_state, state = self._store.restore(
            latest, self.trained, self._opt_state
        )
        self._sampler.restore(state)
        self.step = latest

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


def _is_multiple(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
