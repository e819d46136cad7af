"""The providers' bill: every generation that one of them accepted."""

import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

JOBS_MAX = 100_000  # the oldest are forgotten

PROMPT_CHARACTERS = 60


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class Job:
    """One accepted generation. Times are Unix seconds; `model` is the public id.

    `images_delivered` counts the good pictures that the provider made, even if the client had left. It does not count
    pictures that moderation withheld or blackened. `images_billed` counts those on the bill. `prompt` is how its prompt
    begins, which tells whose order it is.
    """

    provider: str
    model: str
    upstream_path: str
    request_id: str
    n: int
    state: State = State.RUNNING
    images_delivered: int = 0
    images_billed: int = 0
    billed: bool = False
    client_gone: bool = False
    prompt: str = ""
    accepted_at: float = field(default_factory=time.time)
    finished_at: float | None = None

    def __post_init__(self) -> None:
        self.prompt = self.prompt[:PROMPT_CHARACTERS]

    def start(self) -> None:
        self.state = State.RUNNING

    def finish(self, delivered: int, billed: int | None = None) -> None:
        """End the job. `billed` is the number of images on the bill, if it differs from the delivered ones."""
        self._end(State.DONE)
        self.images_delivered = delivered
        self.images_billed = delivered if billed is None else billed
        self.billed = self.images_billed > 0

    def fail(self) -> None:
        self._end(State.FAILED)

    def cancel(self) -> None:
        self._end(State.CANCELLED)

    def lose_client(self) -> None:
        self.client_gone = True

    def _end(self, state: State) -> None:
        assert self.finished_at is None, f"job {self.request_id} is already {self.state}"
        self.state = state
        self.finished_at = time.time()


class Jobs:
    def __init__(self) -> None:
        self._jobs: deque[Job] = deque(maxlen=JOBS_MAX)

    def accept(self, job: Job) -> Job:
        self._jobs.append(job)
        return job

    def listing(self, model: str | None) -> list[Job]:
        """List jobs in the order of acceptance; for all models if `model` is None."""
        return [job for job in self._jobs if model in (None, job.model)]

    def forget(self) -> None:
        """Forget all jobs. Running ones go on, unlisted."""
        self._jobs.clear()
