"""The configuration of a job, parsed once, at the edge.

A configuration travels as a *flat* mapping from dotted keys (`"checkpoint.interval"`) to values, strings as
the command line gives them or Python values; `JobConfig.from_flat` is the only place that reads it. A TOML
file (`--config`) has the same keys, nested as tables or dotted. `SETTINGS` lists every key with its
attribute and parser; an unknown key fails and names the nearest one.
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayflow.model.durations import parse_duration_ms, parse_size
from rayflow.model.errors import ConfigError
from rayflow.model.memory import DEFAULT_CUTOFF, DEFAULT_MANAGED, DEFAULT_NETWORK, MemoryModel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_OFF = ("off", "none", "never", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """Every setting of a job, typed, with its default (API.md section 6). None means off or not given.

    `checkpoint_mode` "aligned" with `checkpoint_alignment_timeout_ms` 0 means: barriers never overtake rows. With
    more, a checkpoint begins aligned and switches to unaligned wherever its barrier is held up for longer; "unaligned"
    is so from the start, whatever the timeout. Savepoints and final checkpoints are always aligned.

    `skew_…` bound what a combiner (`rf.Skew`) holds: keys, bytes, and for how long.

    Memory sizes are per subtask. `metrics_keys`: whether the hottest keys of an exchange are shown by their values, by
    their hashes only, or not looked for. `state_backend` "disk": what keyed state there is beyond `managed_bytes` lies
    in files below `state_dir` (None: the system's folder for temporary files).
    `storage_options` keeps its full keys (`"s3.endpoint"`), as `state.storage.open_store` takes them.
    """

    checkpoint_interval_ms: int | None = 60_000
    checkpoint_timeout_ms: int = 60_000
    checkpoint_min_pause_ms: int = 0
    checkpoint_max_concurrent: int = 1
    checkpoint_retained: int = 3
    checkpoint_failures_tolerated: int = 3
    checkpoint_storage: str | None = None
    checkpoint_mode: str = "aligned"
    checkpoint_alignment_timeout_ms: int = 0
    restart_strategy: str = "exponential"
    restart_max_attempts: int = 10
    restart_window_ms: int = 600_000
    restart_delay_ms: int = 100
    restart_storage_timeout_ms: int = 3_600_000
    restart_reset_timeout_ms: int = 5_000
    restart_spares: int = 1
    jobmanager_standby: bool = False
    batch_rows: int = 65_536
    batch_linger_ms: int = 20
    skew_rows: int = 65_536
    skew_bytes: int = 32 << 20
    skew_linger_ms: int = 100
    source_rate_limit: float | None = None
    source_rebalance: str = "off"
    errors_policy: str = "fail"
    memory_process_bytes: int = 1 << 30
    memory_cutoff: float = DEFAULT_CUTOFF
    memory_network: float = DEFAULT_NETWORK
    memory_managed: float = DEFAULT_MANAGED
    state_backend: str = "memory"
    state_dir: str | None = None
    heartbeat_interval_ms: int = 1_000
    heartbeat_timeout_ms: int = 5_000
    metrics_keys: str = "shown"
    storage_options: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def from_flat(mapping: Mapping[str, Any], *, local: bool = False) -> JobConfig:
        """Return the configuration that `mapping` describes. With `local`, checkpoints are off unless
        `checkpoint.interval` is given. Raises ConfigError naming the key, what was expected and got."""
        values: dict[str, Any] = {"checkpoint_interval_ms": None} if local else {}
        config = JobConfig(**{**values, **_parsed(mapping)}, storage_options=_storage_options(mapping))
        config._check()
        return config

    @property
    def memory_model(self) -> MemoryModel:
        """How the memory of a subtask's process is split."""
        return _memory_model(
            self.memory_process_bytes, self.memory_cutoff, self.memory_network, self.memory_managed
        )

    @property
    def network_bytes(self) -> int:
        """Budget of a subtask's network buffers."""
        return self.memory_model.network_bytes

    @property
    def managed_bytes(self) -> int:
        """Budget of a subtask's state."""
        return self.memory_model.managed_bytes

    def _check(self) -> None:
        unaligned = self.checkpoint_mode == "unaligned" or self.checkpoint_alignment_timeout_ms > 0
        if unaligned and self.checkpoint_max_concurrent > 1:
            raise ConfigError(
                "checkpoint.max_concurrent: unaligned checkpoints are taken one at a time, since each records what is "
                f"in flight; expected 1, or checkpoint.mode=aligned with checkpoint.alignment_timeout=0s; "
                f"got {self.checkpoint_max_concurrent}"
            )
        if self.heartbeat_timeout_ms <= self.heartbeat_interval_ms:
            raise ConfigError(
                "heartbeat.timeout must be longer than heartbeat.interval; "
                f"got {self.heartbeat_timeout_ms} ms and {self.heartbeat_interval_ms} ms"
            )
        try:
            _ = self.memory_model
        except ConfigError as error:
            raise ConfigError(f"memory.{error}") from None


@functools.lru_cache(maxsize=64)
def _memory_model(process_bytes: int, cutoff: float, network: float, managed: float) -> MemoryModel:
    # Asked for several times by each subtask of each attempt, and always the same: exact fractions take their time.
    return MemoryModel.from_process(process_bytes, cutoff=cutoff, network=network, managed=managed)


def load_config_file(path: str | Path) -> dict[str, Any]:
    """Return a TOML file's settings as a flat mapping: nested tables become dotted keys.

    Raises ConfigError, naming the file, where it is missing, not TOML, or has an unknown key or bad value.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not TOML: {error}") from None
    flat = flatten(document)
    try:
        _parsed(flat)
    except ConfigError as error:
        raise ConfigError(f"config file {path}: {error}") from None
    return flat


def parse_assignments(assignments: list[str] | tuple[str, ...]) -> dict[str, str]:
    """Return the flat mapping of `KEY=VALUE` texts (`--set`); a later one wins. Raises ConfigError."""
    flat: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"expected KEY=VALUE such as checkpoint.interval=30s; got {text!r}")
        flat[key.strip()] = value.strip()
    _parsed(flat)
    return flat


def _parsed(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return each setting's value by its attribute. What belongs together is checked where all settings are together:
    in `JobConfig.from_flat`."""
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key in STORAGE_OPTION_KEYS:
            continue
        setting = SETTINGS.get(key) or _unknown(key)
        try:
            values[setting.attribute] = setting.parse(value)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
    return values


def _storage_options(mapping: Mapping[str, Any]) -> dict[str, str]:
    return {key: _option_text(value) for key, value in mapping.items() if key in STORAGE_OPTION_KEYS}


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def with_environment(mapping: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return `mapping` with the storage options it lacks taken from the usual AWS_* variables.

    Called once, in the submitting process: subtasks never read their own environment for credentials.
    """
    captured = dict(mapping)
    if not {"s3.access_key", "s3.secret_key", "s3.session_token"} & mapping.keys():
        # The three belong together: half of them from elsewhere would never authenticate.
        _capture(captured, environ, "s3.access_key", ("AWS_ACCESS_KEY_ID",))
        _capture(captured, environ, "s3.secret_key", ("AWS_SECRET_ACCESS_KEY",))
        _capture(captured, environ, "s3.session_token", ("AWS_SESSION_TOKEN",))
    _capture(captured, environ, "s3.region", ("AWS_REGION", "AWS_DEFAULT_REGION"))
    _capture(captured, environ, "s3.endpoint", ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    _capture(captured, environ, "s3.allow_http", ("AWS_ALLOW_HTTP",))
    return captured


def redact(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return `mapping` with values of secret-looking keys, and credentials within URLs, replaced by `***`."""
    return {key: _redacted_value(key, value) for key, value in mapping.items()}


# ------------------------------------------------------------------------------------------- parsers


def _duration(value: Any) -> int:
    return parse_duration_ms(value)


def _positive_duration(value: Any) -> int:
    duration_ms = parse_duration_ms(value)
    if duration_ms == 0:
        raise ConfigError(f"expected a duration longer than zero; got {value!r}")
    return duration_ms


def _optional_duration(value: Any) -> int | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in _OFF):
        return None
    return _positive_duration(value)


def _flag(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise ConfigError(f"expected true or false; got {value!r}")
    return text == "true"


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ConfigError(f"expected a number; got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"expected a number; got {value!r}") from None


def _integer(at_least: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        number = _number(value)
        if number != number or number in (float("inf"), float("-inf")) or number != int(number):
            raise ConfigError(f"expected a whole number; got {value!r}")
        if number < at_least:
            raise ConfigError(f"expected a whole number of at least {at_least}; got {value!r}")
        return int(number)

    return parse


def _fraction(value: Any) -> float:
    number = _number(value)
    if not 0 <= number < 1:
        raise ConfigError(f"expected a fraction from 0 to below 1; got {value!r}")
    return number


def _optional_rate(value: Any) -> float | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in _OFF):
        return None
    rate = _number(value)
    if not 0 < rate < float("inf"):
        raise ConfigError(f"expected rows per second, more than zero; got {value!r}")
    return rate


def _optional_text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str | Path):
        raise ConfigError(f"expected a text; got {value!r}")
    return str(value)


def _storage(value: Any) -> str | None:
    url = _optional_text(value)
    scheme = url.partition("://")[0] if url is not None and "://" in url else None
    # memory:// is for tests: this process only.
    if scheme in (None, "file", "s3", "rayobj", "memory"):
        return url
    raise ConfigError(
        f"unknown scheme {scheme!r}; expected a path, file:///path, s3://bucket/path or rayobj://NAME; got {url!r}"
    )


def _choice(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ConfigError(f"expected {' or '.join(map(repr, choices))}; got {value!r}")
        return str(value)

    return parse


@dataclass(frozen=True, slots=True)
class Setting:
    """A configuration key's attribute of `JobConfig`, and the parser of its values."""

    attribute: str
    parse: Callable[[Any], Any]


SETTINGS: dict[str, Setting] = {
    "checkpoint.interval": Setting("checkpoint_interval_ms", _optional_duration),
    "checkpoint.timeout": Setting("checkpoint_timeout_ms", _positive_duration),
    "checkpoint.min_pause": Setting("checkpoint_min_pause_ms", _duration),
    "checkpoint.max_concurrent": Setting("checkpoint_max_concurrent", _integer(1)),
    "checkpoint.retained": Setting("checkpoint_retained", _integer(1)),
    "checkpoint.failures_tolerated": Setting("checkpoint_failures_tolerated", _integer(0)),
    "checkpoint.storage": Setting("checkpoint_storage", _storage),
    "checkpoint.mode": Setting("checkpoint_mode", _choice("aligned", "unaligned")),
    "checkpoint.alignment_timeout": Setting("checkpoint_alignment_timeout_ms", _duration),
    "restart.strategy": Setting("restart_strategy", _choice("exponential", "fixed", "none")),
    "restart.max_attempts": Setting("restart_max_attempts", _integer(0)),
    "restart.window": Setting("restart_window_ms", _positive_duration),
    "restart.delay": Setting("restart_delay_ms", _duration),
    "restart.storage_timeout": Setting("restart_storage_timeout_ms", _positive_duration),
    "restart.reset_timeout": Setting("restart_reset_timeout_ms", _positive_duration),
    "jobmanager.standby": Setting("jobmanager_standby", _flag),
    "restart.spares": Setting("restart_spares", _integer(0)),
    "batch.rows": Setting("batch_rows", _integer(1)),
    "batch.linger": Setting("batch_linger_ms", _duration),
    "skew.rows": Setting("skew_rows", _integer(1)),
    "skew.bytes": Setting("skew_bytes", parse_size),
    "skew.linger": Setting("skew_linger_ms", _duration),
    "source.rate_limit": Setting("source_rate_limit", _optional_rate),
    "source.rebalance": Setting("source_rebalance", _choice("off", "auto")),
    "errors.policy": Setting("errors_policy", _choice("fail", "skip")),
    "memory.process": Setting("memory_process_bytes", parse_size),
    "memory.cutoff": Setting("memory_cutoff", _fraction),
    "memory.network": Setting("memory_network", _fraction),
    "memory.managed": Setting("memory_managed", _fraction),
    "state.backend": Setting("state_backend", _choice("memory", "disk")),
    "state.dir": Setting("state_dir", _optional_text),
    "heartbeat.interval": Setting("heartbeat_interval_ms", _positive_duration),
    "heartbeat.timeout": Setting("heartbeat_timeout_ms", _positive_duration),
    "metrics.keys": Setting("metrics_keys", _choice("shown", "hidden", "off")),
}
"""Every key of the configuration besides the storage options."""

STORAGE_OPTION_KEYS = (
    "s3.endpoint",
    "s3.access_key",
    "s3.secret_key",
    "s3.session_token",
    "s3.region",
    "s3.allow_http",
)

_SECRET_KEY = re.compile(r"secret|token|password|passwd|credential|access_key|private", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_URL_SECRET_PARAMETER = re.compile(
    r"((?:[\w.-]*(?:secret|token|password|access_key)[\w.-]*)=)[^&\s]+", re.IGNORECASE
)


def _unknown(key: str) -> Setting:
    known = (*SETTINGS, *STORAGE_OPTION_KEYS)
    nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
    raise ConfigError(f"unknown config key {key!r}; did you mean {nearest[0]!r}?")


def _option_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _capture(captured: dict[str, Any], environ: Mapping[str, str], key: str, names: tuple[str, ...]) -> None:
    found = next((environ[name] for name in names if environ.get(name)), None)
    if found is not None:
        captured.setdefault(key, found)


def _redacted_value(key: str, value: Any) -> Any:
    if value is not None and _SECRET_KEY.search(key):
        return "***"
    if isinstance(value, str):
        return _URL_SECRET_PARAMETER.sub(r"\1***", _URL_CREDENTIALS.sub("***@", value))
    return value
