from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import rayflow as rf
from rayflow.model.config import JobConfig
from rayflow.model.errors import ConfigError
from rayflow.model.memory import MAX_NETWORK_BYTES, MIN_NETWORK_BYTES, MemoryModel

MIB = 1 << 20
FRACTIONS = st.one_of(
    st.sampled_from([0, 0.1, 0.25, 0.8, 0.999]),
    st.decimals(0, "0.99", places=3).map(float),
    st.fractions(0, Fraction(96, 97), max_denominator=97),
)
# Bytes of `usable` beyond the least: below, at and beyond both bounds of the network share.
BEYOND_LEAST = st.one_of(
    st.integers(0, 1 << 42),
    st.integers(0, 1000 * MIB),
    st.integers(10 << 30, 15 << 30),
)


@st.composite
def processes(draw: st.DrawFn) -> tuple[int, dict[str, float | Fraction]]:
    """A size of a process that there is room in, and fractions."""
    fractions = {name: draw(FRACTIONS) for name in ("cutoff", "network", "managed")}
    usable = MIN_NETWORK_BYTES + 1 + draw(BEYOND_LEAST)
    return int(usable / (1 - Fraction(str(fractions["cutoff"])))) + 1, fractions


def parts(model: MemoryModel) -> list[int]:
    return [model.cutoff_bytes, model.network_bytes, model.managed_bytes, model.user_bytes]


def mib(nbytes: int) -> float:
    return round(nbytes / MIB, 2)


def test_the_worked_example_of_8_gib():
    model = rf.MemoryModel.from_process("8g", cutoff=0.25, network=0.1, managed=0.8)
    assert mib(model.usable_bytes) == 6144
    assert (mib(model.network_bytes), mib(model.managed_bytes), mib(model.user_bytes)) == (
        614.4,
        4423.68,
        1105.92,
    )


def test_the_worked_example_the_other_way():
    down = MemoryModel.from_process("8g")
    up = MemoryModel.from_user(down.user_bytes)
    assert [mib(size) for size in (*parts(up), up.process_bytes)] == [2048, 614.4, 4423.68, 1105.92, 8192]


@given(processes())
def test_the_parts_add_up_to_the_byte(case):
    process, fractions = case
    model = MemoryModel.from_process(process, **fractions)
    assert sum(parts(model)) == model.process_bytes == process
    assert min(parts(model)) >= 0
    assert MIN_NETWORK_BYTES <= model.network_bytes <= MAX_NETWORK_BYTES


@given(processes())
@example((int(640 * MIB / 0.75), {}))  # where the network share leaves its minimum
@example((int(10240 * MIB / 0.75), {}))  # and where it reaches its maximum
def test_the_inverse_gives_the_smallest_process_with_that_user_share(case):
    process, fractions = case
    down = MemoryModel.from_process(process, **fractions)
    up = MemoryModel.from_user(down.user_bytes, **fractions)
    assert up.user_bytes == down.user_bytes
    assert up.process_bytes <= process
    again = MemoryModel.from_process(up.process_bytes, **fractions)
    assert (parts(again), again.network_case) == (parts(up), up.network_case)
    try:
        smaller = MemoryModel.from_process(up.process_bytes - 1, **fractions)
    except ConfigError:
        return  # nothing smaller is a process at all
    assert smaller.user_bytes == down.user_bytes - 1


@given(st.integers(1, 1 << 41), FRACTIONS, FRACTIONS, FRACTIONS)
def test_every_user_share_has_a_process(user, cutoff, network, managed):
    model = MemoryModel.from_user(user, cutoff=cutoff, network=network, managed=managed)
    assert model.user_bytes == user
    assert sum(parts(model)) == model.process_bytes


@given(processes(), st.integers(1, 4096))
def test_every_part_grows_with_the_process(case, more):
    process, fractions = case
    small = MemoryModel.from_process(process, **fractions)
    large = MemoryModel.from_process(process + more, **fractions)
    assert all(0 <= b - a <= more for a, b in zip(parts(small), parts(large), strict=True))


@pytest.mark.parametrize(
    ("process", "case", "network"),
    [
        ("512MiB", "minimum", MIN_NETWORK_BYTES),
        ("8g", "fraction", 644245094),
        ("64g", "maximum", MAX_NETWORK_BYTES),
    ],
)
def test_the_network_share_has_bounds(process, case, network):
    model = MemoryModel.from_process(process)
    assert (model.network_case, model.network_bytes) == (case, network)
    assert MemoryModel.from_user(model.user_bytes).network_case == case


@pytest.mark.parametrize("known", ["process", "user"])
@pytest.mark.parametrize("size", ["100MiB", "1g", "100g"])
def test_every_step_is_there_and_each_is_the_one_it_names(known, size):
    model = MemoryModel.from_process(size) if known == "process" else MemoryModel.from_user(size)
    steps = {step.name: step for step in model.steps()}
    assert steps.keys() == {"process", "cutoff", "usable", "network", "rest", "managed", "user"}
    for name, step in steps.items():
        assert step.nbytes == getattr(model, f"{name}_bytes")
        assert step.how in model.explain()
    first = model.steps()[0]
    assert (first.name, first.how[:5]) == (known, "given")
    assert ("held at the" in steps["network"].how) == (model.network_case != "fraction")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"process": "8g", "cutoff": 1}, "cutoff: expected a fraction from 0 to below 1; got 1"),
        ({"process": "8g", "network": -0.1}, "network: expected a fraction from 0 to below 1; got -0.1"),
        ({"process": "8g", "managed": "nan"}, "managed: expected a fraction from 0 to below 1; got 'nan'"),
        ({"process": "8g", "managed": True}, "managed: expected a fraction"),
        ({"process": "8 apples"}, "process: expected a size"),
        ({"process": -1}, "process: expected a size"),
        ({"process": "80MiB"}, "process: 83,886,080 bytes .* no room .* at least 89,478,487 bytes"),
    ],
)
def test_a_bad_size_or_fraction_says_what_and_the_bounds(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MemoryModel.from_process(arguments.pop("process"), **arguments)


def test_the_least_process_that_an_error_names_is_one():
    with pytest.raises(ConfigError) as caught:
        MemoryModel.from_process(1, cutoff=0.3)
    least = int(re.findall(r"at least ([\d,]+) bytes", str(caught.value))[0].replace(",", ""))
    assert MemoryModel.from_process(least, cutoff=0.3).user_bytes == 1
    with pytest.raises(ConfigError):
        MemoryModel.from_process(least - 1, cutoff=0.3)


def test_a_user_share_of_nothing_is_an_error():
    with pytest.raises(ConfigError, match="user: expected a size of at least 1 byte"):
        MemoryModel.from_user(0)


def test_notes_speak_of_what_is_not_as_advised():
    assert MemoryModel.from_process("8g", managed=0.2).notes() == ()
    (high,) = MemoryModel.from_process("4g", managed=0.2, network=0.2).notes()
    assert "0.2 is more than 0.1" in high
    (held,) = MemoryModel.from_process("512MiB", managed=0.2).notes()
    assert "64 MiB, instead of 38.4 MiB" in held


@given(processes())
def test_a_job_is_split_by_the_same_model(case):
    process, fractions = case
    numbers = {name: float(fraction) for name, fraction in fractions.items()}
    flat = {f"memory.{name}": str(number) for name, number in numbers.items()}
    config = JobConfig.from_flat({"memory.process": 2 * process, **flat})
    model = MemoryModel.from_process(2 * process, **numbers)
    assert (config.network_bytes, config.managed_bytes) == (model.network_bytes, model.managed_bytes)
