"""The registry's tables and the statements on them: portable SQL, SQLite's settings aside."""

import hashlib
from typing import Any

import sqlalchemy as sa

from ..protos.manifest import Manifest

_METADATA = sa.MetaData()

# `last_version` only grows, also when versions are deleted one day.
_MODELS = sa.Table(
    "models",
    _METADATA,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("last_version", sa.Integer, nullable=False),
)
_VERSIONS = sa.Table(
    "versions",
    _METADATA,
    sa.Column("model", sa.ForeignKey("models.name"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("device_class", sa.String(64), nullable=False, index=True),
    sa.Column("manifest", sa.LargeBinary, nullable=False),
    sa.Column("manifest_sha256", sa.String(64), nullable=False),
    sa.Column("published_unix_s", sa.Double, nullable=False, index=True),
)
_FILES = sa.Table(
    "files",
    _METADATA,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
)
_CHANNELS = sa.Table(
    "channels",
    _METADATA,
    sa.Column("device_class", sa.String(64), primary_key=True),
    sa.Column("channel", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
)
# Settled plans of fleets (`registry_plans.py`); `place` is the order in which they were settled.
PLANS = sa.Table(
    "fleet_plans",
    _METADATA,
    sa.Column("channel", sa.String(64), primary_key=True),
    sa.Column("run", sa.String(128), primary_key=True),
    sa.Column("fleet", sa.String(64), primary_key=True),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("settled_unix_s", sa.Double, nullable=False),
)
# What each plan has for a device: a version, or the reason for which there is none.
DEVICES = sa.Table(
    "fleet_devices",
    _METADATA,
    sa.Column("channel", sa.String(64), primary_key=True),
    sa.Column("device", sa.String(128), primary_key=True),
    sa.Column("run", sa.String(128), primary_key=True),
    sa.Column("fleet", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(128)),
    sa.Column("version", sa.Integer),
    sa.Column("reason", sa.Text),
    sa.ForeignKeyConstraint(
        ["channel", "run", "fleet"], ["fleet_plans.channel", "fleet_plans.run", "fleet_plans.fleet"]
    ),
    sa.ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
    sa.CheckConstraint("(model IS NULL) = (version IS NULL)"),
    sa.CheckConstraint("(model IS NULL) <> (reason IS NULL)"),
    sa.Index("fleet_devices_plan", "channel", "run", "fleet"),
)


def connect(url: str) -> sa.Engine:
    """An engine; SQLite files get a write-ahead log that is synced at each commit."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # The time-out comes first: switching to the log needs a lock that another may hold.
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def create(database: sa.Connection) -> None:
    """Create what is missing; several processes may do so at once."""
    for table in _METADATA.sorted_tables:
        database.execute(sa.schema.CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            database.execute(sa.schema.CreateIndex(index, if_not_exists=True))


def lock(database: sa.Connection) -> None:
    """Wait until no other transaction writes; held until this one ends."""
    database.execute(_MODELS.update().values(last_version=_MODELS.c.last_version))


def next_version(database: sa.Connection, model: str) -> int:
    """Take the model's next number, from 1; holds the write lock until the transaction ends."""
    mine = _MODELS.c.name == model
    bump = _MODELS.update().where(mine).values(last_version=_MODELS.c.last_version + 1)
    if database.execute(bump).rowcount == 0:
        database.execute(_MODELS.insert().values(name=model, last_version=1))
    return int(database.execute(sa.select(_MODELS.c.last_version).where(mine)).scalar_one())


def add_version(
    database: sa.Connection, manifest: Manifest, data: bytes, published_unix_s: float
) -> None:
    """Add a version's row and those of its files; `data` is the manifest's canonical JSON."""
    key = {"model": manifest.model, "version": manifest.version}
    database.execute(
        _VERSIONS.insert().values(
            **key,
            device_class=manifest.device_class,
            manifest=data,
            manifest_sha256=hashlib.sha256(data).hexdigest(),
            published_unix_s=published_unix_s,
        )
    )
    rows = [
        {**key, "kind": name, "sha256": file.sha256, "size_bytes": file.size_bytes}
        for name, file in manifest.named().items()
    ]
    database.execute(_FILES.insert(), rows)


def point(
    database: sa.Connection, device_class: str, channel: str, model: str, version: int
) -> None:
    """Let a class's channel point at a version."""
    mine = (_CHANNELS.c.device_class == device_class) & (_CHANNELS.c.channel == channel)
    database.execute(_CHANNELS.delete().where(mine))
    database.execute(
        _CHANNELS.insert().values(
            device_class=device_class, channel=channel, model=model, version=version
        )
    )


def resolve(database: sa.Connection, device_class: str, channel: str) -> tuple[bytes, str] | None:
    """Manifest and its sha256 of what a class's channel points at."""
    on = (_CHANNELS.c.model == _VERSIONS.c.model) & (_CHANNELS.c.version == _VERSIONS.c.version)
    row = database.execute(
        sa.select(_VERSIONS.c.manifest, _VERSIONS.c.manifest_sha256)
        .join(_CHANNELS, on)
        .where(_CHANNELS.c.device_class == device_class, _CHANNELS.c.channel == channel)
    ).one_or_none()
    return None if row is None else (row.manifest, row.manifest_sha256)


def find_version(database: sa.Connection, model: str, version: int) -> tuple[bytes, str] | None:
    """Manifest and device class of one version."""
    row = database.execute(
        sa.select(_VERSIONS.c.manifest, _VERSIONS.c.device_class).where(
            _VERSIONS.c.model == model, _VERSIONS.c.version == version
        )
    ).one_or_none()
    return None if row is None else (row.manifest, row.device_class)


def version_row(database: sa.Connection, model: str, version: int) -> tuple[bytes, str, str]:
    """Manifest, its sha256 and the device class of a version that there is."""
    row = database.execute(
        sa.select(
            _VERSIONS.c.manifest, _VERSIONS.c.manifest_sha256, _VERSIONS.c.device_class
        ).where(_VERSIONS.c.model == model, _VERSIONS.c.version == version)
    ).one()
    return row.manifest, row.manifest_sha256, row.device_class


def newest(
    database: sa.Connection, device_class: str | None, limit: int
) -> list[tuple[str, int, str, str]]:
    """Model, version, device class and manifest's sha256 of the newest versions."""
    query = sa.select(
        _VERSIONS.c.model,
        _VERSIONS.c.version,
        _VERSIONS.c.device_class,
        _VERSIONS.c.manifest_sha256,
    ).order_by(_VERSIONS.c.published_unix_s.desc(), _VERSIONS.c.model, _VERSIONS.c.version.desc())
    if device_class is not None:
        query = query.where(_VERSIONS.c.device_class == device_class)
    return [(a, b, c, d) for a, b, c, d in database.execute(query.limit(limit))]


def channels(database: sa.Connection) -> dict[tuple[str, int], list[str]]:
    """(Model, version) → the channels that point at it, in order."""
    heads: dict[tuple[str, int], list[str]] = {}
    for row in database.execute(sa.select(_CHANNELS).order_by(_CHANNELS.c.channel)):
        heads.setdefault((row.model, row.version), []).append(row.channel)
    return heads


def device_classes(database: sa.Connection, channel: str) -> list[str]:
    """Classes that have a model in a channel, in order."""
    query = sa.select(_CHANNELS.c.device_class).where(_CHANNELS.c.channel == channel)
    return list(database.scalars(query.order_by(_CHANNELS.c.device_class)))


def models(database: sa.Connection) -> list[str]:
    """Names of the models that have a version."""
    return list(database.scalars(sa.select(_VERSIONS.c.model).distinct().order_by("model")))


def versions(database: sa.Connection, model: str) -> list[int]:
    """A model's versions, ascending."""
    query = sa.select(_VERSIONS.c.version).where(_VERSIONS.c.model == model)
    return list(database.scalars(query.order_by(_VERSIONS.c.version)))


def file_size(database: sa.Connection, sha256: str) -> int | None:
    """Size in bytes of a published file."""
    query = sa.select(_FILES.c.size_bytes).where(_FILES.c.sha256 == sha256)
    found: int | None = database.scalars(query.limit(1)).one_or_none()
    return found


def all_digests(database: sa.Connection) -> set[str]:
    """sha256 of every published file."""
    return set(database.scalars(sa.select(_FILES.c.sha256).distinct()))
