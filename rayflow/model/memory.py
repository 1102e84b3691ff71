"""The memory model: how the memory given to a subtask's process is split before anything runs (after Flink's).

Theory of operation
-------------------
From the process down, each part being a fraction of what the one before leaves::

    process ─┬─ cutoff    process × cutoff: held in reserve (interpreter, libraries, allocator, threads)
             └─ usable ─┬─ network   usable × network, but 64 MiB to 1 GiB: buffers of records between subtasks
                        └─ rest ─┬─ managed   rest × managed: state
                                 └─ user      what is left: the job's own functions and the rows they work on

From the user's share up, each step is undone. The network share's bounds make that three cases: where the
minimum holds, `usable = rest + 64 MiB`; where the maximum does, `usable = rest + 1 GiB`; between them
`usable = rest ÷ (1 − network)`. Which one it is follows from `rest` alone, since `rest` grows with `usable`.

Arithmetic is exact: sizes are whole bytes and fractions are what was written (0.1 is a tenth). A fraction of a byte
goes up the line: `usable`, `network` and `managed` are rounded down. So

  1. cutoff + network + managed + user = process, to the byte;
  2. each part grows with the process, by 0 or 1 byte for one byte; so for every user share there is a process, and
     `from_user` gives the smallest.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rayflow.model.durations import parse_size
from rayflow.model.errors import ConfigError

MIN_NETWORK_BYTES = 64 << 20
MAX_NETWORK_BYTES = 1 << 30

DEFAULT_CUTOFF = 0.25
DEFAULT_NETWORK = 0.1
DEFAULT_MANAGED = 0.8

ADVISED_NETWORK = 0.1
ADVISED_MANAGED = 0.3

NetworkCase = Literal["fraction", "minimum", "maximum"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryStep:
    """One step of the model: the part's name, its size, and how it comes about."""

    name: str
    nbytes: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryModel:
    """The split of a process's memory. Make one with `from_process` or `from_user`.

    Sizes are in bytes and add up: `cutoff_bytes + network_bytes + managed_bytes + user_bytes == process_bytes`.
    `known` says which size was given, `network_case` what decides the network share.
    """

    known: Literal["process", "user"]
    cutoff: Fraction
    network: Fraction
    managed: Fraction
    process_bytes: int
    cutoff_bytes: int
    network_bytes: int
    managed_bytes: int
    user_bytes: int
    network_case: NetworkCase

    @staticmethod
    def from_process(
        process: str | int,
        *,
        cutoff: float | str | Fraction = DEFAULT_CUTOFF,
        network: float | str | Fraction = DEFAULT_NETWORK,
        managed: float | str | Fraction = DEFAULT_MANAGED,
    ) -> MemoryModel:
        """Return how a process of this size (bytes, or a text such as "8g") is split.

        Fractions are from 0 to below 1. Raises ConfigError for other ones, for what is no size, and where the
        smallest network share leaves nothing.
        """
        fractions = _fractions(cutoff, network, managed)
        return _split(_size("process", process), "process", *fractions)

    @staticmethod
    def from_user(
        user: str | int,
        *,
        cutoff: float | str | Fraction = DEFAULT_CUTOFF,
        network: float | str | Fraction = DEFAULT_NETWORK,
        managed: float | str | Fraction = DEFAULT_MANAGED,
    ) -> MemoryModel:
        """Return the smallest process whose user share has this size (bytes ≥ 1, or a text such as "1g").

        Raises ConfigError as `from_process` does.
        """
        fractions = _fractions(cutoff, network, managed)
        user_bytes = _size("user", user)
        if user_bytes < 1:
            raise ConfigError(f"user: expected a size of at least 1 byte; got {user!r}")
        rest = _smallest_leaving(user_bytes, fractions[2])
        process_bytes = _ceil(_usable_with(rest, fractions[1]) / (1 - fractions[0]))
        return _split(process_bytes, "user", *fractions)

    @property
    def usable_bytes(self) -> int:
        """What the cutoff leaves."""
        return self.process_bytes - self.cutoff_bytes

    @property
    def rest_bytes(self) -> int:
        """What cutoff and network buffers leave."""
        return self.usable_bytes - self.network_bytes

    def steps(self) -> tuple[MemoryStep, ...]:
        """Return the steps in the order they were taken: from the process down, or from the user's share up."""
        return self._steps_down() if self.known == "process" else self._steps_up()

    def notes(self) -> tuple[str, ...]:
        """Return what tuning would look at, as sentences; none where the split is within what is advised."""
        notes = []
        if self.network > Fraction(str(ADVISED_NETWORK)):
            notes.append(
                f"network {_text(self.network)} is more than {ADVISED_NETWORK}: worth it only where buffers run out "
                "(back-pressure while the consumers are not busy)"
            )
        if self.network_case != "fraction":
            bound = MIN_NETWORK_BYTES if self.network_case == "minimum" else MAX_NETWORK_BYTES
            notes.append(
                f"the network share is held at its {self.network_case}, {mebibytes(bound)} MiB, instead of "
                f"{mebibytes(int(self.usable_bytes * self.network))} MiB"
            )
        if self.managed > Fraction(str(ADVISED_MANAGED)):
            notes.append(
                f"managed {_text(self.managed)} is for jobs with much state; for streaming jobs with little, less than "
                f"{ADVISED_MANAGED} is advised, which leaves more to the job's functions"
            )
        return tuple(notes)

    def explain(self) -> str:
        """Return the steps and notes as text, a line each."""
        width = max(len(step.name) for step in self.steps())
        lines = [
            f"{step.name:{width}}  {mebibytes(step.nbytes):>12} MiB  {step.how}" for step in self.steps()
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes())])

    def _steps_down(self) -> tuple[MemoryStep, ...]:
        return (
            MemoryStep("process", self.process_bytes, "given"),
            self._cutoff_step(),
            MemoryStep("usable", self.usable_bytes, "process − cutoff"),
            self._network_step(),
            MemoryStep("rest", self.rest_bytes, "usable − network"),
            self._managed_step(),
            MemoryStep("user", self.user_bytes, "rest − managed: the job's functions and the rows at work"),
        )

    def _steps_up(self) -> tuple[MemoryStep, ...]:
        usable = {
            "fraction": f"rest ÷ (1 − {_text(self.network)})",
            "minimum": f"rest + {mebibytes(MIN_NETWORK_BYTES)} MiB: the network share is at its minimum",
            "maximum": f"rest + {mebibytes(MAX_NETWORK_BYTES)} MiB: the network share is at its maximum",
        }[self.network_case]
        return (
            MemoryStep("user", self.user_bytes, "given: the job's functions and the rows at work"),
            self._managed_step(),
            MemoryStep("rest", self.rest_bytes, f"user ÷ (1 − {_text(self.managed)})"),
            self._network_step(),
            MemoryStep("usable", self.usable_bytes, usable),
            self._cutoff_step(),
            MemoryStep("process", self.process_bytes, f"usable ÷ (1 − {_text(self.cutoff)})"),
        )

    def _cutoff_step(self) -> MemoryStep:
        return MemoryStep(
            "cutoff",
            self.cutoff_bytes,
            f"process × {_text(self.cutoff)}: reserve for interpreter and libraries",
        )

    def _network_step(self) -> MemoryStep:
        how = f"usable × {_text(self.network)}"
        if self.network_case != "fraction":
            how += f", held at the {self.network_case}"
        return MemoryStep("network", self.network_bytes, f"{how}: buffers between subtasks")

    def _managed_step(self) -> MemoryStep:
        return MemoryStep("managed", self.managed_bytes, f"rest × {_text(self.managed)}: state")


def mebibytes(nbytes: int) -> str:
    """Return a size in MiB with at most two decimals (`614.4`, `6,144`)."""
    text = f"{nbytes / _MIB:,.2f}"
    return text.rstrip("0").rstrip(".")


def _split(
    process_bytes: int,
    known: Literal["process", "user"],
    cutoff: Fraction,
    network: Fraction,
    managed: Fraction,
) -> MemoryModel:
    usable = _floor(process_bytes * (1 - cutoff))
    if usable <= MIN_NETWORK_BYTES:
        least = _ceil((MIN_NETWORK_BYTES + 1) / (1 - cutoff))
        raise ConfigError(
            f"process: {process_bytes:,} bytes with a cutoff of {_text(cutoff)} leave no room beside the network "
            f"buffers (at least {MIN_NETWORK_BYTES >> 20} MiB); expected at least {least:,} bytes, better "
            "256MiB or more"
        )
    network_bytes, case = _network_share(usable, network)
    rest = usable - network_bytes
    managed_bytes = _floor(rest * managed)
    return MemoryModel(
        known=known,
        cutoff=cutoff,
        network=network,
        managed=managed,
        process_bytes=process_bytes,
        cutoff_bytes=process_bytes - usable,
        network_bytes=network_bytes,
        managed_bytes=managed_bytes,
        user_bytes=rest - managed_bytes,
        network_case=case,
    )


def _network_share(usable: int, network: Fraction) -> tuple[int, NetworkCase]:
    share = _floor(usable * network)
    if share < MIN_NETWORK_BYTES:
        return MIN_NETWORK_BYTES, "minimum"
    return (MAX_NETWORK_BYTES, "maximum") if share > MAX_NETWORK_BYTES else (share, "fraction")


def _usable_with(rest: int, network: Fraction) -> int:
    """Return the smallest `usable` of which the network share leaves `rest`."""
    at_minimum = rest + MIN_NETWORK_BYTES
    if _floor(at_minimum * network) <= MIN_NETWORK_BYTES:
        return at_minimum
    between = _smallest_leaving(rest, network)
    if _floor(between * network) <= MAX_NETWORK_BYTES:
        return between
    return rest + MAX_NETWORK_BYTES


def _smallest_leaving(left: int, fraction: Fraction) -> int:
    """Return the smallest x with x − ⌊x × fraction⌋ = `left` ≥ 1: that is ⌈x × (1 − fraction)⌉ = left."""
    return _floor((left - 1) / (1 - fraction)) + 1


def _fractions(
    cutoff: float | str | Fraction, network: float | str | Fraction, managed: float | str | Fraction
) -> tuple[Fraction, Fraction, Fraction]:
    return _fraction("cutoff", cutoff), _fraction("network", network), _fraction("managed", managed)


def _fraction(name: str, value: float | str | Fraction) -> Fraction:
    try:
        # By way of text: 0.1 means a tenth, not the binary number next to it.
        fraction = value if isinstance(value, Fraction) else Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{name}: expected a fraction from 0 to below 1; got {value!r}") from None
    if isinstance(value, bool) or not 0 <= fraction < 1:
        raise ConfigError(f"{name}: expected a fraction from 0 to below 1; got {value!r}")
    return fraction


def _size(name: str, value: str | int) -> int:
    try:
        return parse_size(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _floor(value: Fraction) -> int:
    return value.numerator // value.denominator


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)


def _text(fraction: Fraction) -> str:
    return f"{float(fraction):g}"
