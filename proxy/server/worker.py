"""One process of those that serve one port together, and what it inherits from their supervisor."""

import socket
from dataclasses import dataclass

from config.settings import SettingsError


@dataclass(frozen=True, slots=True)
class Worker:
    """Process `number`, from 0, of `count` that share a port, the disk for spools and the folder of journals."""

    number: int = 0
    count: int = 1


ALONE = Worker()


@dataclass(frozen=True, slots=True)
class Inheritance:
    """Descriptors that a process has from its supervisor: the listening socket, and its end of their connection."""

    worker: Worker
    listener: int
    control: int

    def __str__(self) -> str:
        """Write it as an argument of the process."""
        return f"{self.worker.number}:{self.listener}:{self.control}"

    @staticmethod
    def parse(argument: str, count: int) -> "Inheritance":
        """Read it from the argument. Raises SettingsError if a person wrote it."""
        try:
            number, listener, control = map(int, argument.split(":"))
        except ValueError:
            raise SettingsError(f"--inherited: {argument!r} is nothing that a supervisor gives") from None
        return Inheritance(Worker(number, count), listener, control)

    def sockets(self) -> tuple[socket.socket, socket.socket]:
        """Open both. Raises SettingsError if there are none."""
        try:
            return socket.socket(fileno=self.listener), socket.socket(fileno=self.control)
        except OSError as error:
            raise SettingsError(f"--inherited: only a supervisor starts a process with it ({error.strerror})") from None
