"""Tables of databases as a sink needs them: made where they are missing, else checked against the rows that come.

Columns are matched by name; a table may have more of them, where these have defaults or take NULL. What a column's type
there makes of a value's text (`sql_text`) is the database's business, but for what it would cut short silently.

| Arrow type | PostgreSQL | MariaDB, MySQL |
|---|---|---|
| int8, int16, uint8 / int32, uint16 / int64, uint32 | smallint / integer / bigint | the same |
| uint64 | numeric(20) | bigint unsigned |
| float16, float32 / float64 | real / double precision | float / double |
| bool | boolean | boolean |
| decimal(p, s) | numeric(p, s) | decimal(p, s), up to 65 digits |
| string | text | longtext; varchar(255) as a key |
| binary | bytea | longblob; varbinary(255) as a key |
| date / time | date / time | date / time(6) |
| timestamp / with zone | timestamp / timestamptz | datetime(6) / datetime(6), in UTC |
| list, struct, map | jsonb | json |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from rayflow.connectors.sql_text import is_binary
from rayflow.model.errors import PlanError

_INTEGERS = {"int8": 2, "int16": 2, "uint8": 2, "int32": 4, "uint16": 4, "int64": 8, "uint32": 8}
_KEY_CHARACTERS = 255
_MOST_DIGITS = {"postgresql": 1_000, "mariadb": 65, "mysql": 65}
# Compared byte by byte, trailing blanks included: keys that differ in case, accents or blanks are different rows.
_COLLATIONS = {"mariadb": "utf8mb4_nopad_bin", "mysql": "utf8mb4_0900_bin"}


class Table:
    """A table by the name that the user gave (`schema.name` or `name`), of one dialect (`postgresql`, `mariadb` or
    `mysql`), for rows of `schema`, unique by `keys` where there are any."""

    def __init__(self, name: str, schema: pa.Schema, keys: Sequence[str], dialect: str) -> None:
        self.name = name
        self.schema = schema
        self.keys = list(keys)
        self.dialect = dialect
        namespace, _, self.own_name = name.rpartition(".")
        self.namespace = namespace or None

    def check_types(self) -> None:
        """Raise PlanError naming the first column whose type no database column can take."""
        for field in self.schema:
            self._type(field)

    def make(self, connection: Any, *, create: bool) -> None:
        """Make the table unless it exists, and check that it can take the rows. Raises PlanError with what mends it.

        `connection` is a SQLAlchemy connection; nothing is committed here.
        """
        import sqlalchemy as sa

        if getattr(connection.dialect, "is_mariadb", False):
            # Reached by a URL of MySQL.
            self.dialect = "mariadb"
        if not sa.inspect(connection).has_table(self.own_name, schema=self.namespace):
            if not create:
                raise PlanError(f"there is no table {self.name!r}; make it:\n  {self.ddl(connection)}")
            # IF NOT EXISTS: other jobs start as well.
            connection.execute(sa.schema.CreateTable(self._model(), if_not_exists=True))
        self._check(sa.inspect(connection), connection.dialect.identifier_preparer.quote)

    def ddl(self, connection: Any) -> str:
        """Return the statement that makes the table."""
        import sqlalchemy as sa

        text = str(sa.schema.CreateTable(self._model()).compile(dialect=connection.dialect))
        return " ".join(text.split())

    def _check(self, inspector: Any, quote: Callable[[str], str]) -> None:
        found = {c["name"]: c for c in inspector.get_columns(self.own_name, schema=self.namespace)}
        table = ".".join(quote(part) for part in (self.namespace, self.own_name) if part)
        for field in self.schema:
            if field.name not in found:
                kind = self._type(field).compile(dialect=inspector.dialect)
                raise PlanError(
                    f"table {self.name!r} has no column {field.name!r}, which the rows have; leave it out of the "
                    f"rows, or:\n  ALTER TABLE {table} ADD COLUMN {quote(field.name)} {kind}"
                )
        for name, column in found.items():
            needed = not column["nullable"] and column.get("default") is None
            made = column.get("autoincrement") is True or column.get("identity") or column.get("computed")
            if needed and not made and name not in self.schema.names:
                raise PlanError(
                    f"column {name!r} of table {self.name!r} takes neither NULL nor has it a default, and the rows do "
                    "not have it; add it to the rows, or give it a default"
                )
        if not self.keys:
            return
        unique = self._unique(inspector)
        if not any(sorted(columns) == sorted(self.keys) for columns in unique):
            columns = ", ".join(map(quote, self.keys))
            raise PlanError(
                f"table {self.name!r} is not unique by {', '.join(self.keys)}, which rows are to replace each "
                f"other by:\n  ALTER TABLE {table} ADD UNIQUE ({columns})"
            )

        other = next((columns for columns in unique if not set(self.keys) <= set(columns)), None)
        if other and self.dialect != "postgresql":
            # ON DUPLICATE KEY goes by any unique index, and would change a row of another key.
            raise PlanError(
                f"table {self.name!r} is unique by {', '.join(other)} as well, so a row could replace one that has "
                f"other values of {', '.join(self.keys)}; drop that index, or write by {', '.join(other)}"
            )

    def _unique(self, inspector: Any) -> list[list[str]]:
        """Return the sets of columns by which the table is unique."""
        own = {"schema": self.namespace}
        unique = [inspector.get_pk_constraint(self.own_name, **own)["constrained_columns"]]
        unique += [c["column_names"] for c in inspector.get_unique_constraints(self.own_name, **own)]
        unique += [
            index["column_names"]
            for index in inspector.get_indexes(self.own_name, **own)
            if index["unique"] and not index.get("dialect_options", {}).get("postgresql_where")
        ]
        return [columns for columns in unique if columns and None not in columns]

    def _model(self) -> Any:
        import sqlalchemy as sa

        columns = [
            sa.Column(
                field.name,
                self._type(field),
                primary_key=field.name in self.keys,
                nullable=field.name not in self.keys,
                autoincrement=False,
            )
            for field in self.schema
        ]
        return sa.Table(self.own_name, sa.MetaData(), *columns, schema=self.namespace, **self._options())

    def _options(self) -> dict[str, Any]:
        charset = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}
        return {} if self.dialect == "postgresql" else charset

    def _type(self, field: pa.Field) -> Any:
        if self.dialect == "postgresql":
            found = _postgres_type(field)
        else:
            found = _mysql_type(field, field.name in self.keys, self.dialect)
        found = _common_type(field.type) if found is None else found
        if found is None:
            raise PlanError(
                f"column {field.name!r} is {field.type}, which a {self.dialect} table has no type for; cast it before, "
                "for instance to string"
            )
        if pa.types.is_decimal(field.type) and field.type.precision > _MOST_DIGITS[self.dialect]:
            raise PlanError(
                f"column {field.name!r} is {field.type}: {self.dialect} has decimals of up to "
                f"{_MOST_DIGITS[self.dialect]} digits; cast it before"
            )
        return found


def _common_type(kind: pa.DataType) -> Any:
    import sqlalchemy as sa

    if pa.types.is_dictionary(kind):
        return _common_type(kind.value_type)
    if str(kind) in _INTEGERS:
        return {2: sa.SmallInteger, 4: sa.Integer, 8: sa.BigInteger}[_INTEGERS[str(kind)]]()
    if pa.types.is_boolean(kind):
        return sa.Boolean()
    if pa.types.is_decimal(kind):
        return sa.Numeric(kind.precision, max(0, kind.scale))
    if pa.types.is_date(kind):
        return sa.Date()
    return None


def _postgres_type(field: pa.Field) -> Any:
    from sqlalchemy.dialects import postgresql as pg

    kind = field.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return pg.TEXT() if not pa.types.is_dictionary(kind) or pa.types.is_string(kind.value_type) else None
    if is_binary(kind):
        return pg.BYTEA()
    if kind == pa.uint64():
        return pg.NUMERIC(20)
    if kind in (pa.float16(), pa.float32()):
        return pg.REAL()
    if pa.types.is_floating(kind):
        return pg.DOUBLE_PRECISION()
    if pa.types.is_time(kind):
        return pg.TIME()
    if pa.types.is_timestamp(kind):
        return pg.TIMESTAMP(timezone=kind.tz is not None)
    return pg.JSONB() if pa.types.is_nested(kind) else None


def _mysql_type(field: pa.Field, is_key: bool, dialect: str) -> Any:
    from sqlalchemy.dialects import mysql

    kind = field.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        if pa.types.is_dictionary(kind) and not pa.types.is_string(kind.value_type):
            return None
        collation = {"charset": "utf8mb4", "collation": _COLLATIONS[dialect]}
        return mysql.VARCHAR(_KEY_CHARACTERS, **collation) if is_key else mysql.LONGTEXT(**collation)
    if is_binary(kind):
        return mysql.VARBINARY(_KEY_CHARACTERS) if is_key else mysql.LONGBLOB()
    if kind == pa.uint64():
        return mysql.BIGINT(unsigned=True)
    if kind in (pa.float16(), pa.float32()):
        return mysql.FLOAT()
    if pa.types.is_floating(kind):
        return mysql.DOUBLE()
    if pa.types.is_time(kind):
        return mysql.TIME(fsp=6)
    if pa.types.is_timestamp(kind):
        return mysql.DATETIME(fsp=6)
    return mysql.JSON() if pa.types.is_nested(kind) else None
