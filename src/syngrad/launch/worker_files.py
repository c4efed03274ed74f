"""The files of each worker of each attempt, and the environment that it is started with: torchrun asks for both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs

from syngrad.errors import ConfigError, first_line
from syngrad.pipeline.failures import ERROR_FILE, WORKER_FILE


class WorkerFiles(LogsSpecs):
    """See above.

    Args:
        folder: for all of them.
        redirect: whether the workers' output goes there too.
        environment: variables of every worker.
    """

    def __init__(self, folder: Path, redirect: bool, environment: Mapping[str, str]) -> None:
        super().__init__(str(folder))
        self.folder, self.redirect, self.environment = folder, redirect, environment
        self.error_files: dict[int, Path] = {}
        self.worker_files: dict[int, Path] = {}

    @property
    def root_log_dir(self) -> str:
        """For torchrun."""
        return str(self.folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Called for each attempt before it starts; may change the environment of its workers, by local rank."""
        output = {}
        for local, environment in envs.items():
            folder = (
                self.folder / f"attempt_{environment['TORCHELASTIC_RESTART_COUNT']}" / f"rank_{environment['RANK']}"
            )
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for name in ("error.json", "worker"):
                    (folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"the workers' folder {str(folder)!r} cannot be made ({first_line(error)})"
                ) from error
            self.error_files[local], self.worker_files[local] = folder / "error.json", folder / "worker"
            environment.update(self.environment)
            environment[ERROR_FILE], environment[WORKER_FILE] = (
                str(self.error_files[local]),
                str(self.worker_files[local]),
            )
            output[local] = str(folder) if self.redirect else ""
        return LogsDest(
            stdouts={local: path and f"{path}/stdout.log" for local, path in output.items()},
            stderrs={local: path and f"{path}/stderr.log" for local, path in output.items()},
            error_files={local: str(path) for local, path in self.error_files.items()},
        )
