"""The statements that read the log. Each touches little more than it returns: see database.READING."""

from .events import AUDIENCES, OF_ITSELF, Topics

READ_EVENTS = 500
READ_BYTES = 1_000_000
"""Bounds of one read, so that what a subscriber holds while it catches up is bounded."""

_COLUMNS = ", ".join(AUDIENCES.values())

# One snapshot for floor and rows. `size` is the running sum of the payloads' text: the row that passes the
# bound is the last. What is stored may be compressed a hundredfold, so that is bounded first, to decompress
# only what may be needed. A NULL position: nothing there.
_READ = f"""
    SELECT p.floor, e.size, e.position, e.type, e.created_at, e.payload, {_COLUMNS}
      FROM rowcast.pruned p LEFT JOIN LATERAL (
        SELECT *, sum(octet_length(payload)) OVER (ORDER BY position) AS size
          FROM (SELECT position, type, {_COLUMNS}, date_part('epoch', created_at) AS created_at, payload::text
                  FROM (SELECT *, sum(pg_column_size(payload)) OVER (ORDER BY position) - pg_column_size(payload) AS before
                          FROM ({{found}}) found) stored
                 WHERE before < {READ_BYTES}) text
      ) e ON e.size - octet_length(e.payload) < {READ_BYTES}
     ORDER BY position
"""
_NEXT = "position > $1 AND position <= $2"


def _of_each(select: str, first: int) -> str:
    """For each topic what its index gives; the ids of each kind are a parameter, from `first` on."""
    lookup = "SELECT one.* FROM unnest(${n}::text[]) AS topic (id), LATERAL ({select}) one"
    return " UNION ".join(lookup.format(n=n, select=select.format(column=column)) for n, column in enumerate(AUDIENCES.values(), first))


READ_ALL = _READ.format(found=f"SELECT * FROM rowcast.event WHERE {_NEXT} ORDER BY position LIMIT {READ_EVENTS}")
READ_TOPIC = {
    kind: _READ.format(found=f"SELECT * FROM rowcast.event WHERE {_NEXT} AND {column} = $3 ORDER BY position LIMIT {READ_EVENTS}")
    for kind, column in AUDIENCES.items()
}
_POSITIONS = f"SELECT position FROM rowcast.event WHERE {_NEXT} AND {{column}} = topic.id ORDER BY position LIMIT {READ_EVENTS}"
READ_SEVERAL = _READ.format(
    found=f"""
        SELECT e.* FROM ({_of_each(_POSITIONS, 3)} ORDER BY position LIMIT {READ_EVENTS}) these,
               LATERAL (SELECT * FROM rowcast.event WHERE position = these.position LIMIT 1) e -- a fence: by key, one by one
         ORDER BY position LIMIT {READ_EVENTS}
    """
)

_LATEST = "SELECT position, created_at FROM rowcast.event WHERE {column} = topic.id AND position <= $1 ORDER BY position DESC LIMIT $2"
RECENT = f"""
    SELECT min(position) - 1 FROM (SELECT * FROM ({_of_each(_LATEST, 4)}) each ORDER BY position DESC LIMIT $2) latest
     WHERE created_at > now() - $3::interval
"""

OUTCOME = {
    kind: f"""
        SELECT position FROM rowcast.event
         WHERE {AUDIENCES[kind]} = $1 AND position <= $2 AND type = ANY ($3) ORDER BY position DESC LIMIT 1
    """
    for kind in OF_ITSELF
}


def ids(topics: Topics) -> list[list[str]]:
    """One parameter for each kind."""
    return [[topic.id for topic in topics if topic.kind == kind] for kind in AUDIENCES]
