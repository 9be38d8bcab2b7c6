# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Also send the rows of log.csv to TensorBoard and to Weights & Biases, if the user asks for it.

    loggers = Loggers("runs/a", config, rows_so_far, tensorboard=True, wandb="my-project")
    loggers.row({"epoch": 3, "val_f1": 0.81})      # every key except epoch is a scalar at step `epoch`
    loggers.close()

The two packages are imported only here, and only if they are used. A logger never stops a run. If its package, login
or network is missing, or if it fails later, one line is printed on standard error.
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
    """Event files in FOLDER/tensorboard. In a resumed run they are written again from the first row."""

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
    """A run in a W&B project. A resumed run keeps its id, and steps that W&B already has are not sent again."""

    def __init__(self, folder: Path, config: dict[str, Any], project: str):
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online" and not self._logged_in(wandb):
            raise ValueError("not logged in to W&B: run `wandb login`, or set WANDB_MODE=offline")
        run_id = hashlib.sha256(f"{folder.resolve()} {config['started']}".encode("utf-8", "replace")).hexdigest()[:16]
        name = f"{folder.parent.name}-{folder.name}" if folder.name.startswith("fold") else folder.name
        settings = wandb.Settings(init_timeout=30, silent=True, console="off")
        self.run = wandb.init(
            project=project, name=name, id=run_id, resume="allow", dir=str(folder), config=config, settings=settings
        )

    @staticmethod
    def _logged_in(wandb: Any) -> bool:
        """Never asks for a login at the terminal: a run in the background would wait forever."""
        try:
            return wandb.login(prompt=False)
        except TypeError:  # an older wandb
            return bool(wandb.api.api_key)

    def row(self, row: Row) -> None:
        if row["epoch"] >= self.run.step:
            self.run.log({key: value for key, value in row.items() if key != "epoch"}, step=int(row["epoch"]))

    def close(self) -> None:
        self.run.finish()


def printable(text: object) -> str:
    """The text with escapes for control characters, direction marks and bytes that are not text. Keeps line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


class Loggers:
    """The loggers that the user asked for. If one fails, it is closed, with one line on standard error.

    Args:
        folder, config: the run's folder and configuration.
        rows: the rows of finished epochs, if the run is resumed.
        tensorboard: whether to use TensorBoard.
        wandb: the W&B project, or None.
    """

    def __init__(
        self, folder: str | Path, config: dict[str, Any], rows: Iterable[Row], tensorboard: bool, wandb: str | None
    ):
        self.open: dict[str, Any] = {}
        starts: dict[str, Callable[[], Any]] = {}
        if tensorboard:
            starts["--tensorboard"] = lambda: TensorBoard(Path(folder), config)
        if wandb:
            starts["--wandb"] = lambda: WandB(Path(folder), config, wandb)
        for flag, start in starts.items():
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
        except Exception as error:  # an error in a logging package must not end the run
            self.open.pop(flag, None)
            reason = str(error).partition("\n")[0] or type(error).__name__
            if isinstance(error, ModuleNotFoundError):
                reason += f": pip install {flag.removeprefix('--')}"
            note = printable(f"note: {flag}: {reason[:300]}; the run continues without it")
            print(note, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(__doc__)
    for package in ("tensorboard", "wandb"):
        try:
            print(f"{package} {__import__(package).__version__} is installed")
        except ModuleNotFoundError:
            print(f"{package} is not installed: pip install {package}")
