"""The rows of a log to TensorBoard and to Weights & Biases too, if someone asked for it; neither can end a run.

    loggers = Loggers("runs/a", config, rows_so_far, tensorboard=True, wandb="my-project")
    loggers.row({"epoch": 3, "val_f1": 0.81})      # every key but epoch is a scalar at step `epoch`
    loggers.close()

The packages are imported only here and only then. One that is missing, has no login or no network, or fails later, is
one line on standard error, and the run goes on without it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class TensorBoard:
    """Event files in FOLDER/tensorboard, written anew from the first row when a run is resumed."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        folder = folder / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = SummaryWriter(str(folder))

    def row(self, row: Row) -> None:
        for key in row.keys() - {"epoch"}:
            self.writer.add_scalar(key, row[key], int(row["epoch"]))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of a W&B project, with a resumed run's own id: the steps that W&B has already are not sent again."""

    def __init__(self, folder: Path, config: dict[str, Any], project: str):
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online" and not self._logged_in(wandb):
            raise ValueError("there is no login: `wandb login`, or WANDB_MODE=offline")
        run_id = hashlib.sha256(f"{folder.resolve()} {config['started']}".encode("utf-8", "replace")).hexdigest()[:16]
        name = f"{folder.parent.name}-{folder.name}" if folder.name.startswith("fold") else folder.name
        settings = wandb.Settings(init_timeout=30, silent=True, console="off")
        self.run = wandb.init(project=project, name=name, id=run_id, resume="allow", dir=str(folder), config=config,
                              settings=settings)  # fmt: skip

    @staticmethod
    def _logged_in(wandb: Any) -> bool:
        """Without asking at the terminal, where a run that nobody watches would wait for ever."""
        try:
            return wandb.login(prompt=False)
        except TypeError:  # an older wandb
            return bool(wandb.api.api_key)

    def row(self, row: Row) -> None:
        if row["epoch"] >= self.run.step:
            self.run.log({key: value for key, value in row.items() if key != "epoch"}, step=int(row["epoch"]))

    def close(self) -> None:
        self.run.finish()


class Loggers:
    """Those that were asked for and work."""

    def __init__(
        self, folder: str | Path, config: dict[str, Any], rows: Iterable[Row], tensorboard: bool, wandb: str | None
    ):
        self.open: dict[str, Any] = {}
        asked: dict[str, Callable[[], Any]] = {}
        if tensorboard:
            asked["--tensorboard"] = lambda: TensorBoard(Path(folder), config)
        if wandb:
            asked["--wandb"] = lambda: WandB(Path(folder), config, wandb)
        for flag, start in asked.items():
            self._try(flag, lambda flag=flag, start=start: self.open.update({flag: start()}))
        for row in rows:
            self.row(row)

    def row(self, row: Row) -> None:
        for flag, logger in list(self.open.items()):
            self._try(flag, lambda logger=logger: logger.row(row))

    def close(self) -> None:
        for flag, logger in list(self.open.items()):
            self._try(flag, logger.close)

    def _try(self, flag: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever a foreign package says: the run is worth more
            self.open.pop(flag, None)
            said = str(error).partition("\n")[0] or type(error).__name__
            if isinstance(error, ModuleNotFoundError):
                said += f": pip install {flag.removeprefix('--')}"
            print(f"note: {flag}: {said}; the run goes on without it", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(__doc__)
    for package in ("tensorboard", "wandb"):
        try:
            print(f"{package} {__import__(package).__version__} is installed")
        except ModuleNotFoundError:
            print(f"{package} is not installed: pip install {package}")
