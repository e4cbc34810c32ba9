"""Hydra's sweeper of `hparams_search=optuna`: each job is a trial of an Optuna study in the sweep's folder.

Hydra accepts a sweeper only from a module of the namespace package `hydra_plugins`, hence this place outside of
`filterscope`. Hydra imports the module at every start, so nothing heavy is imported at its top. hydra-optuna-sweeper
needs Optuna 2, which newer Pythons cannot install.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

log = logging.getLogger("filterscope")


class OptunaSearch(Sweeper):
    """Searches options with Optuna's TPE sampler; a trial that falls behind the median of the others ends early.

    The objective is the metric that decides the best epoch (`callbacks.checkpoint.monitor`, `mode`). The same command
    continues the study in `hydra.sweep.dir`; a trial that was killed is repeated.

    Args:
        params: the search space in Hydra's syntax: `interval(a, b)`, `tag(log, interval(a, b))`, `choice(a, b)`,
            `range(a, b)`.
        trials: the number of finished trials, complete or pruned, after which the search ends.
        startup_trials: random trials before the sampler learns, and before trials are pruned.
        warmup_epochs: epochs of each trial before it may be pruned.
        seed: of the sampler.
    """

    def __init__(
        self, *, params: Mapping[str, str], trials: int, startup_trials: int, warmup_epochs: int, seed: int
    ) -> None:
        self.params, self.trials, self.seed = params, trials, seed
        self.startup_trials, self.warmup_epochs = startup_trials, warmup_epochs
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Prepare the launcher."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the study lacks, and write its table and picture.

        Raises:
            UserError: an option is out of its range or has no search space, Optuna is not installed, or the folder
                holds another search.
        """
        from pydantic import Field, NonNegativeInt, PositiveInt

        from filterscope.errors import UserError
        from filterscope.registry import check_value

        hints = {"params": Mapping[str, Any], "trials": PositiveInt, "startup_trials": NonNegativeInt,
                 "warmup_epochs": NonNegativeInt, "seed": Annotated[int, Field(ge=0, le=2**32 - 1)]}  # fmt: skip
        for name, hint in hints.items():
            check_value(getattr(self, name), hint, where=f"hydra.sweeper.{name}")

        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise UserError(
                'hparams_search=optuna needs the extra "search": pip install "filterscope[search]"'
            ) from error
        from filterscope.cli.sweeps import STUDY
        from filterscope.training import trial as trials

        assert self.config is not None
        assert self.launcher is not None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        checkpoint = self.config.callbacks.checkpoint
        fixed, space = self._split(arguments)
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            study_name="search",
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / STUDY))),
            sampler=optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=self.startup_trials),
            pruner=optuna.pruners.MedianPruner(self.startup_trials, self.warmup_epochs),
            direction="maximize" if checkpoint.mode == "max" else "minimize",
            load_if_exists=True,
        )
        about = {"fixed": fixed, "space": [each.input_line or "" for each in space], "monitor": str(checkpoint.monitor)}
        stored = study.user_attrs.get("about", about)
        if stored != about:
            differing = ", ".join(key for key in about if stored.get(key) != about[key])
            raise UserError(f"{folder} holds another search ({differing} differ); choose another hydra.sweep.dir")
        study.set_user_attr("about", about)
        for left in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(left.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(left.params)
            log.info("trial %d was interrupted and is repeated", left.number)
        finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        failures = 0
        while len(study.get_trials(states=finished)) < self.trials:
            trial = study.ask()
            chosen = [f"{each.key_or_group}={_written(_suggest(trial, each))}" for each in space]
            log.info("trial %d: %s", trial.number, " ".join(chosen))
            trials.current[:] = [trial]
            (done,) = self.launcher.launch([[*fixed, *chosen]], initial_job_idx=trial.number)
            trials.current.clear()
            score = done.return_value
            if score is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                failures += 1
                # Two failures and no success: the cause is not one of the values that are searched.
                if failures >= (max(3, self.trials // 4) if study.get_trials(states=finished) else 2):
                    raise UserError(f"{failures} trials failed; the last: {' '.join(chosen)}")
                continue
            pruned = bool(trial.user_attrs.get("pruned"))
            study.tell(trial, None if pruned else score, state=finished[1] if pruned else finished[0])
        self._write(study, folder, [each.key_or_group for each in space])

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], list[Override]]:
        """Return the fixed arguments and the search space; the command line's takes precedence over `params`."""
        from filterscope.errors import UserError

        parsed = OverridesParser.create(config_loader=None).parse_overrides(list(arguments))
        given = {each.key_or_group for each in parsed}
        more = [f"{key}={value}" for key, value in self.params.items() if key not in given]
        space = [each for each in parsed if each.is_sweep_override()]
        space += OverridesParser.create(config_loader=None).parse_overrides(more)
        for each in space:
            if not isinstance(each.value(), IntervalSweep | ChoiceSweep | RangeSweep):
                raise UserError(f"hydra.sweeper.params.{each.key_or_group}: must be interval(…), choice(…) or range(…)")
        return [each.input_line or "" for each in parsed if not each.is_sweep_override()], space

    def _write(self, study: Any, folder: Path, names: Sequence[str]) -> None:
        """Write `trials.csv` and `search.png`, and log the best trials."""
        from filterscope.storage.atomic import write_file
        from filterscope.visuals.charts import search_picture
        from filterscope.visuals.output.outputs import Table
        from filterscope.visuals.output.tables import table_csv, table_text
        from filterscope.visuals.output.writer import encode_png

        monitor = study.user_attrs["about"]["monitor"]
        rows = [
            (trial.number, trial.state.name.lower(), "" if trial.value is None else trial.value,
             *(_written(trial.params.get(name, "")) for name in names))
            for trial in study.trials if trial.state.is_finished()
        ]  # fmt: skip
        table = Table(columns=("trial", "state", monitor, *names), rows=tuple(rows))
        write_file(folder / "trials.csv", table_csv(table).encode())
        maximize = study.direction.name == "MAXIMIZE"
        complete = [row for row in rows if row[1] == "complete"]
        best = sorted(complete, key=lambda row: float(row[2]), reverse=maximize)[:5]
        picture = search_picture(
            [(row[0], row[1], None if row[2] == "" else float(row[2])) for row in rows],
            monitor=monitor,
            maximize=maximize,
        )
        write_file(folder / "search.png", encode_png(picture))
        log.info("%s", table_text(replace(table, rows=tuple(best)), f"the best of {len(rows)} trials in {folder}"))


def _written(value: Any) -> Any:
    """Return a value as it is used and shown: numbers with four digits, which no result depends on."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _suggest(trial: Any, override: Override) -> Any:
    """Return a value for an option from its search space."""
    name = override.key_or_group
    space: Any = override.value()
    if isinstance(space, ChoiceSweep):
        return trial.suggest_categorical(name, [str(each) for each in space.list])
    if isinstance(space, RangeSweep):
        values = list(space.range())
        suggest = trial.suggest_int if isinstance(values[0], int) else trial.suggest_float
        return suggest(name, min(values), max(values), step=abs(space.step))
    assert isinstance(space, IntervalSweep)
    start: Any = space.start
    end: Any = space.end
    log_scale = "log" in space.tags
    if isinstance(start, int) and isinstance(end, int):
        return trial.suggest_int(name, start, end, log=log_scale)
    return trial.suggest_float(name, float(start or 0), float(end or 0), log=log_scale)
