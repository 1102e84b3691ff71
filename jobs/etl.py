"""Extract, transform, load: hourly weather, CSV or JSON lines, to metric Parquet in a folder per airport, or to a table
of a database."""

from typing import Literal

import pyarrow as pa

import rayflow as rf
from rayflow import col

WEATHER = pa.schema(
    {
        "origin": pa.string(),
        "time_hour": pa.timestamp("s", "UTC"),
        "temp": pa.float64(),
        "humid": pa.float64(),
        "wind_speed": pa.float64(),
        "precip": pa.float64(),
        "visib": pa.float64(),
    }
)


def build(
    env: rf.StreamEnvironment,
    *,
    input: str = "jobs/data/weather.csv",
    format: Literal["csv", "json"] = "csv",
    min_visibility_km: float = 0.0,
    output: str = "out/weather",
    url: str = "",
    table: str = "weather",
) -> None:
    """Weather in metric units; rows without a temperature, or too foggy, are left out.

    With a `url` (postgresql://user:password@host/db, mysql://…) it goes into `table`, where a row replaces that of the
    same airport and hour; what the database refuses goes to `output`.
    """
    read = env.read_csv if format == "csv" else env.read_json
    weather = (
        read(input, schema=WEATHER)
        .filter(col("temp").is_valid())
        .select(
            "origin",
            time=col("time_hour").cast(pa.timestamp("ms")),
            celsius=((col("temp") - 32) / 1.8).round(ndigits=1),
            humidity=col("humid") / 100,
            wind_m_per_s=(col("wind_speed") * 0.44704).round(ndigits=1),
            rain_mm=col("precip") * 25.4,
            visibility_km=col("visib") * 1.609344,
        )
        .filter(col("visibility_km") >= min_visibility_km)
    )
    if url:
        loaded = weather.sink_to(rf.SqlSink(url, table, keys=["origin", "time"]))
        weather = loaded.on_error(rf.SideOutput("refused")).side_output("refused")
    weather.write_parquet(output, partition_by="origin", if_exists="overwrite")


if __name__ == "__main__":
    rf.run(build)
