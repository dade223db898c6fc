"""Breaks each invariant on purpose, and sees a test fail: `make mutants`, or with names, `tests/mutants.py floor lagged`.

Each mutant is one replacement in a copy of the tree. One that survives is an error, as is one whose text
is not there any more. What was caught by which test is recorded in README.md beside this file.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SQL = "alembic/sql/"
WRITER = "clients/python/rowcast_writer/"


@dataclass(frozen=True)
class Mutant:
    name: str
    invariant: int
    """Which of the design's it breaks."""
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant("moved", 1, SQL + "message_event_v02.sql", "c.session AND o.session_id IS NOT NULL OR c.job AND o.job_id IS NOT NULL", "n.id IS NULL", "test_capture"),
    Mutant("heartbeat", 1, SQL + "job_event_v02.sql", "o.cancel_requested_at) THEN 'updated'", "o.cancel_requested_at) OR true THEN 'updated'", "test_capture"),
    Mutant("full join", 1, SQL + "capture_v03.sql", "FULL JOIN", "JOIN", "test_capture"),
    Mutant(">= for >", 1, SQL + "sequence_v03.sql", "o.xid >= pg_snapshot_xmax(head.low)", "o.xid > pg_snapshot_xmax(head.low)", "test_sequence"),
    Mutant("running", 1, SQL + "sequence_v03.sql", "xid = running OFFSET", "false OFFSET", "test_sequence"),
    Mutant("visible", 1, SQL + "sequence_v03.sql", "o.xid < pg_snapshot_xmax(bound.high)\n       AND pg_visible_in_snapshot(o.xid, bound.high) AND o.id > head.last_id", "o.id > head.last_id", "test_sequence"),
    Mutant("forget high", 1, SQL + "sequence_v03.sql", "coalesce(head.high, pg_current_snapshot())", "pg_current_snapshot()", "test_sequence"),
    Mutant("forget last_id", 1, SQL + "sequence_v03.sql", "head.low, bound, last)", "head.low, bound, 0)", "test_sequence"),
    Mutant("more", 1, SQL + "sequence_v03.sql", "n = max_rows OR head.high IS NOT NULL;", "n = max_rows;", "test_sequence test_sequencer"),
    Mutant("order", 2, SQL + "sequence_v03.sql", "row_number() OVER (ORDER BY id)", "row_number() OVER (ORDER BY xid DESC, id)", "test_sequence"),
    Mutant("no lock", 2, SQL + "sequence_v03.sql", "  PERFORM pg_advisory_xact_lock(7499639, 3);\n", "", "test_sequence test_sequencer"),
    Mutant("asynchronous", 3, SQL + "sequence_v03.sql", "PERFORM set_config('synchronous_commit', 'on', true);", "", "test_sequence"),
    Mutant("index", 5, SQL + "sequence_v03.sql", "SET enable_seqscan = off\nSET enable_bitmapscan = off\n", "", "test_sequence"),
    Mutant("joins", 5, SQL + "sequence_v03.sql", "WHERE xid = running OFFSET 0", "WHERE xid = running", "test_sequence"),
    Mutant("any plan", 4, SQL + "capture_v03.sql", "SET enable_seqscan = off -- or a plan made when session was small stays\n", "", "test_capture"),
    Mutant("characters", 1, SQL + "envelope_v02.sql", "octet_length(whole) < 8000", "length(whole) < 8000", "test_sequence"),
    Mutant("copies", 3, SQL + "is_ours_v01.sql", "SELECT xmin = stamp::xid AND", "SELECT", "test_sequence"),
    Mutant("adopt twice", 1, SQL + "adopt_v02.sql", "WHERE NOT EXISTS (SELECT FROM rowcast.event e WHERE e.outbox_id = t.id)", "", "test_sequence"),
    Mutant("prune too much", 1, SQL + "prune_v02.sql", "pg_visible_in_snapshot(o.xid, head.low);\n    FOR", "true;\n    FOR", "test_sequence"),
    Mutant("prune the running", 1, SQL + "prune_v02.sql", "WHERE o.xid = running AND pg_visible_in_snapshot(o.xid, head.low)", "WHERE o.xid = running", "test_sequence"),
    Mutant("prune the young", 3, SQL + "prune_v02.sql", "(WHERE e.created_at >= now() - keep) - 1", "(WHERE e.created_at >= now() - keep)", "test_sequence"),
    Mutant("invoker", 4, SQL + "capture_v03.sql", "plpgsql SECURITY DEFINER", "plpgsql", "test_capture"),
    Mutant("size", 4, SQL + "fit_v01.sql", "CASE WHEN octet_length(t) <= 16777216 THEN t END", "t", "test_capture"),
    Mutant("loud bell", 4, SQL + "ring_v01.sql", "IF (CASE WHEN pg_try_advisory_lock_shared(7499639, 2) THEN pg_advisory_unlock_shared(7499639, 2) ELSE false END)", "IF true", "test_sequencer"),
    Mutant("no witnesses", 1, "app/sequencer.py", "self.polling = False\n                self.witnesses = await self._holders(connection)", "self.polling = False", "test_sequencer"),
    Mutant("no inherited witnesses", 1, "app/sequencer.py", "self._inherits = False\n                self.witnesses = await self._holders(connection)", "self._inherits = False", "test_sequencer"),
    Mutant("no second look", 1, "app/sequencer.py", "again = rung and not worked", "again = False", "test_sequencer"),
    Mutant("no last ring", 1, "app/sequencer.py", "if self.polling or self.witnesses:\n                #", "if False:\n                #", "test_sequencer"),
    Mutant("flag cleared late", 1, "app/sequencer.py", "        self._rung.clear()\n        done = await self._call(connection, _SEQUENCE_IF_FREE, self._limit)\n", "        done = await self._call(connection, _SEQUENCE_IF_FREE, self._limit)\n        self._rung.clear()\n", "test_sequencer"),
    Mutant("any position", 2, "app/listener.py", "notice.event() if notice.position == here + 1 else None", "notice.event()", "test_listener"),
    Mutant("deaf connection", 2, "app/listener.py", "                async with asyncio.timeout(self._heartbeat):\n                    await self._doubt.wait()", "                await self._doubt.wait()", "test_listener"),
    Mutant("publish twice", 3, "app/follower.py", "event.position > self.position", "event.position >= self.position", "test_hub"),
    Mutant("lagged skips", 3, "app/follower.py", "if held else self._hub.position))", "if held else self._hub.position + 1))", "test_hub test_sse"),
    Mutant("live too early", 3, "app/feed.py", "if follower.position < hub.position:", "if follower.position < hub.position - 1:", "test_sse test_hub"),
    Mutant("live too late", 3, "app/feed.py", "        follower.live()\n        hub.join(follower)\n", "        follower.live()\n        asyncio.get_running_loop().call_soon(hub.join, follower)\n", "test_hub test_sse"),
    Mutant("id of the head", 3, "app/follower.py", "        self._start, self._greeted = None, True\n        cursor = self._hub.cursor(self.position)", "        self._start, self._greeted = None, True\n        cursor = self._hub.cursor(self._hub.position)", "test_sse"),
    Mutant("stale batch", 3, "app/log.py", "or (batch.complete and batch.position < upto)", "", "test_hub test_sse"),
    Mutant("taken too early", 3, "app/takeover.py", "if self.sent is not first or", "if", "test_takeover"),
    Mutant("gap in a burst", 2, "app/listener.py", "here = self._hub.position + len(self._arrived)", "here = self._hub.position", "test_listener test_sse"),
    Mutant("cut", 3, "app/sinks.py", "if sent < len(wire):", "if False:", "test_sse"),
    Mutant("overtaken", 3, "app/sinks.py", "        if self._queued:\n            self._queue(block.wire)", "        if False:\n            self._queue(block.wire)", "test_sinks"),
    Mutant("another's socket", 7, "app/sinks.py", "self._fd = -1  # closed", "pass  # closed", "test_takeover"),
    Mutant("grew elsewhere", 1, SQL + "message_delta_v02.sql", "     AND n.job_id IS NOT DISTINCT FROM o.job_id\n", "", "test_capture"),
    Mutant("any column", 4, SQL + "capture_v03.sql", "rowcast.{table}_event(o.*, n.*, change.at)", "rowcast.{table}_event(o, n, change.at)", "test_capture"),
    Mutant("kept from above the head", 3, "app/log.py", "batch = await self._read(cursor.epoch", "batch = await self.read(cursor.epoch", "test_sse"),
    Mutant("recent of another", 3, "app/log.py", '("recent", topics), lambda', '("recent",), lambda', "test_log"),
    Mutant("deaf to the client", 5, "app/takeover.py", "protocol.flow.resume_reading()", "pass", "test_takeover"),
    Mutant("cut instead of ended", 3, "app/sinks.py", 'self._queue(b"0\\r\\n\\r\\n")', "pass", "test_sinks"),
    Mutant("reads on when full", 5, "app/feed.py", "        await follower.sink.drained()\n        hub, topics", "        hub, topics", "test_sse"),
    Mutant("TLS", 7, "app/takeover.py", ' or transport.get_extra_info("sslcontext")', "", "test_takeover"),
    Mutant("read again", 3, "app/queries.py", '"position > $1 AND', '"position >= $1 AND', "test_sse"),
    Mutant("floor", 3, "app/log.py", 'if rows[0]["floor"] > after:', "if False:", "test_sse"),
    Mutant("epochs", 3, "app/events.py", "if following is None or cursor.position <= following.position", "if True", "test_hub"),
    Mutant("ahead", 3, "app/feed.py", "if position > hub.position and position >", "if False and position >", "test_sse"),
    Mutant("no bound", 5, "app/follower.py", "if self.sink.full or (self", "if False or (self", "test_sse"),
    Mutant("connections", 6, "app/database.py", "max_size=size", "max_size=100", "test_sse"),
    Mutant("twice in two topics", 1, "app/burst.py", "if len(bursts) == 1:\n            return bursts[0]\n        events = {event.position: event for burst in bursts for event in burst.events}\n        return cls([events[position] for position in sorted(events)])", "return cls(sorted((event for burst in bursts for event in burst.events), key=lambda event: event.position))", "test_topics"),
    Mutant("topic by topic", 2, "app/hub.py", "gathered.setdefault(subscriber, []).append(burst)", "subscriber.deliver(burst)", "test_topics"),
    Mutant("of another project", 7, "app/feed.py", "        await admission.ask()\n        events", "        events", "test_topics"),
    Mutant("of another kind", 7, "app/transports/targets.py", '(row["project_id"], row["kind"]) != (self._project, self._kind)', 'row["project_id"] != self._project', "test_topics"),
    Mutant("anybody", 7, "app/grant.py", "(row is not None and (row.owned or row.member))\n        return", "row is not None\n        return", "test_access"),
    Mutant("what is not there", 7, "app/grant.py", "(row is not None and (row.owned or row.member))\n        return", "(row is None or row.owned or row.member)\n        return", "test_access"),
    Mutant("any prefix", 7, "app/grant.py", 'if pattern.endswith("*"))\n\n', 'if pattern.endswith("*")) + ("",)\n\n', "test_access"),
    Mutant("any right", 7, "app/grant.py", "return self.is_admin or right in self.rights", "return True", "test_access"),
    Mutant("any topic of a ticket", 7, "app/access.py", "if grant.topics is not None and topic not in grant.topics:\n                return topic", "", "test_access"),
    Mutant("a ticket again", 7, "app/tickets.py", "DELETE FROM rowcast.ticket WHERE hash = $1 RETURNING claims, expires_at > now() AS young", "SELECT claims, expires_at > now() AS young FROM rowcast.ticket WHERE hash = $1", "test_access"),
    Mutant("an old ticket", 7, "app/tickets.py", 'if row is None or not row["young"]:', "if row is None:", "test_access"),
    Mutant("types not granted", 7, "app/burst.py", " and event.type in self._granted", "", "test_access"),
    Mutant("state beside types", 7, "app/transports/query.py", 'if granted(grant) != "*":', "if False:", "test_access"),
    Mutant("revoked and let in", 7, "app/access.py", "if await self._revoked(grant, grant.revocable_as | sessions):", "if False:", "test_access"),
    Mutant("never in doubt", 7, "app/hub.py", "            if ground is not None:\n", "            if False:\n", "test_access_life"),
    Mutant("in doubt too late", 7, "app/hub.py", "                    self._publish(events[done:n])\n                    done = n\n                self.grounds.shake(ground)\n", "                    self._publish(events[done:])\n                    done = len(events)\n                self.grounds.shake(ground)\n                break\n", "test_access_life"),
    Mutant("in doubt while it reads", 7, "app/feed.py", "follower.closed or follower.doubtful or follower.topics", "follower.closed or follower.topics", "test_hub"),
    Mutant("doubt before anybody listens", 7, "app/access.py", "if self._doubted != self._authority.grounds.shakes:", "if False:", "test_hub"),
    Mutant("doubt while it asks", 7, "app/access.py", " or ALL in heard or not heard.isdisjoint(grounds)", "", "test_hub"),
    Mutant("doubt after a reset", 7, "app/hub.py", "        self.grounds.shake_all()  # whoever lost access", "        # whoever lost access", "test_access_life"),
    Mutant("doubt before the log is known", 7, "app/hub.py", "            self.grounds.shake_all()  # what was told up to here", "            # what was told up to here", "test_hub"),
    Mutant("state of after a loss", 7, "app/transports/sessions.py", '    await entry.check(request, grant, "stream", topic)  # still', "    # still", "test_access_life"),
    Mutant("snapshot of after a loss", 7, "app/feed.py", "            await follower.access.ask()  # the state", "            pass  # the state", "test_access_life"),
    Mutant("unheard by a poll", 7, "app/access.py", "return self.doubtful or unheard or", "return self.doubtful or", "test_access_life"),
    Mutant("a public key as a secret", 7, "app/keys.py", "or _is_der(text)", "", "test_auth"),
    Mutant("after its end", 7, "app/follower.py", 'self.refuse(Unauthorized("the token has expired"))', "pass", "test_access_life"),
    Mutant("a poll in no doubt", 7, "app/transports/poll.py", "            access.begin(waiter.wake)\n", "", "test_access_life"),
    Mutant("any origin", 7, "app/gate.py", "origin not in self._origins and not _is_of(origin, host)", "False", "test_access"),
    Mutant("any host name", 7, "app/gate.py", "(not host or is_loopback(_name(host)))", "True", "test_access"),
    Mutant("any algorithm", 7, "app/auth.py", "if key.algorithm == algorithm]", "if True]", "test_auth"),
    Mutant("published secrets", 7, "app/auth.py", 'if key.algorithm != "HS256" and not weakness(key.material)', "if True", "test_auth"),
    Mutant("secrets in the log", 7, "app/gate.py", "if name in SHOWN else '…'", "if True else '…'", "test_auth"),
    Mutant("more than there is room for", 5, "app/limits.py", "if self._counts[key] >= limit:", "if self._counts[key] > limit:", "test_limits"),
    Mutant("room only before", 5, "app/feed.py", "            self.limits.room(follower.subject, () if follower.doubtful else topics)  # many may have been let in at once\n", "            pass\n", "test_limits"),
    Mutant("room is not given back", 5, "app/feed.py", "        self.limits.leave(client)\n", "", "test_limits"),
    Mutant("a head without end", 5, "app/takeover.py", "if self._head > HEAD_MOST and", "if False and", "test_limits"),
    Mutant("the end again", 3, "app/feed.py", "return outcome is not None and outcome.ends is not None and outcome.position <= position", "return False", "test_topics"),
    Mutant("an end that is none", 3, "app/feed.py", "over = outcome is not None and outcome.ends is not None and", "over = outcome is not None and", "test_topics"),
    Mutant("merged across an end", 2, "app/merging.py", "latest.clear()", "pass", "test_merging"),
    Mutant("text left out", 1, "app/merging.py", " and not _has_text(was)", "", "test_merging"),
    Mutant("held and lost", 3, "app/follower.py", "Position(held[0].first - 1) if held else ", "", "test_topics"),
    Mutant("alike and not the same", 3, "app/wish.py", "@dataclass(frozen=True, slots=True, eq=False)", "@dataclass(frozen=True, slots=True)", "test_websocket"),
    Mutant("never asked again", 7, "app/transports/targets.py", "any(map(self._is_odd, events))", "False", "test_topics"),
    Mutant("an end of before", 3, "app/follower.py", " and event.position >= self.ends_from", "", "test_topics"),
    Mutant("nobody without topics", 3, "app/hub.py", "self._of_none.add(subscriber)", "pass", "test_websocket"),
    Mutant("pongs without bound", 5, "app/takeover.py", "if not self.writable.is_set():", "if False:", "test_websocket"),
    Mutant("over and still open", 3, "app/follower.py", "wish.until_end and (self.follows", "False and (self.follows", "test_topics"),
    Mutant("window without bound", 5, "app/follower.py", " or self._held_bytes > HELD_BYTES", "", "test_topics"),
    Mutant("any row is the same", 1, "app/merging.py", " and key.keys() != row.keys()", "", "test_merging"),
    Mutant("pings without end", 5, "app/takeover.py", "if self._pings <= PINGS:", "if True:", "test_websocket"),
    Mutant("written late", 2, "app/follower.py", "and self._held is None and cursor is not None", "and cursor is not None", "test_topics test_hub"),
    Mutant("acknowledged too early", 3, "app/feed.py", "while position < upto and hub.lineage.epoch == epoch and not start.lost:", "while False:", "test_websocket"),
    Mutant("under its own cursor", 3, "app/follower.py", "wire.event(replace(event, cursor=cursor))", "wire.event(event)", "test_websocket"),
    Mutant("changed while live", 1, "app/follower.py", "            if self._catching_up is None and not self.closed:\n                self.lag()", "            pass", "test_websocket"),
    Mutant("heard while full", 5, "app/transports/websocket.py", "await follower.sink.drained()", "pass", "test_websocket"),
    Mutant("snapshot first", 3, "app/follower.py", "None if start.snapshot else cursor", "cursor", "test_tasks"),
    Mutant("state later", 3, "app/feed.py", 'return Start(position, "new", snapshot=state.body)', 'return Start(self.hub.position, "new", snapshot=state.body)', "test_tasks"),
    Mutant("told already", 3, "app/transports/tasks.py", "return outcome is None or outcome.position <= position", "return True", "test_tasks"),
    Mutant("where it was", 1, SQL + "row_event_v01.sql", "CASE told.turn WHEN 1 THEN c.os ELSE c.ns END", "c.ns", "test_watch"),
    Mutant("one that moves", 1, SQL + "capture_any_v01.sql", "(TG_OP <> 'UPDATE' OR rowcast.stays(o, n, key_columns || audience))", "true", "test_watch"),
    Mutant("a row at a time", 1, SQL + "capture_any_v01.sql", "ORDER BY e.turn, coalesce(o.i, n.i);", "ORDER BY coalesce(o.i, n.i), e.turn;", "test_watch"),
    Mutant("not watched", 1, SQL + "tell_one_v01.sql", "IF before = row THEN", "IF false THEN", "test_watch"),
    Mutant("nobody", 1, SQL + "tell_one_v01.sql", "CASE WHEN coalesce(who[1], who[2], who[3], who[4]) IS NULL THEN name END", "NULL", "test_watch"),
    Mutant("swallowed", 1, SQL + "capture_any_v01.sql", "THEN 0 ELSE 1000000000000 END", "THEN 0 ELSE 0 END", "test_watch"),
    Mutant("truncated twice", 1, SQL + "capture_any_v01.sql", "IS DISTINCT FROM change.name || '.truncated'", "IS DISTINCT FROM ''", "test_watch"),
    Mutant("one partition", 1, SQL + "watch_v01.sql", "SELECT f.member FROM rowcast.family(target) f LOOP", "SELECT target LOOP", "test_watch"),
    Mutant("new partitions", 1, SQL + "problems_v01.sql", "f.member <> target AND NOT EXISTS", "false AND NOT EXISTS", "test_watch"),
    Mutant("renamed trigger", 1, SQL + "watch_v01.sql", "EXECUTE format('DROP TRIGGER %I ON %s', other, each);", "NULL;", "test_watch"),
    Mutant("what a writer sets", 1, SQL + "capture_any_v01.sql", "SET extra_float_digits = 1\n", "", "test_watch"),
    Mutant("watched by invoker", 4, SQL + "capture_any_v01.sql", "plpgsql SECURITY DEFINER", "plpgsql", "test_watch"),
    Mutant("odd text", 4, SQL + "picture_v01.sql", "RETURN rowcast.mended(r, target);", "RAISE;", "test_watch"),
    Mutant("large key", 4, SQL + "row_event_v01.sql", "rowcast.trimmed(e.key)", "e.key", "test_watch"),
    Mutant("casts", 7, SQL + "trusts_v01.sql", "NOT pg_has_role(t.typowner, 'rowcast_owner', 'MEMBER')", "false", "test_watch"),
    Mutant("any name", 7, SQL + "capture_any_v01.sql", "IF (name ~ '^[A-Za-z0-9_.-]{1,100}$') IS NOT TRUE THEN", "IF false THEN", "test_watch"),
    Mutant("emit to any id", 1, SQL + "emit_v01.sql", "IF rowcast.follower(jsonb_build_object('id', id), 'id') IS NULL THEN", "IF false THEN", "test_watch"),
    Mutant("emit a frame", 3, SQL + "emit_v01.sql", "ELSIF rowcast.is_frame(type) THEN", "ELSIF false THEN", "test_watch"),
    Mutant("channel of any length", 3, SQL + "is_channel_v01.sql", "octet_length(name) BETWEEN 1 AND 63 AND ", "", "test_sequence"),
    Mutant("stub", 3, SQL + "notify_v01.sql", "pg_catalog.octet_length(payload) >= 8000", "pg_catalog.length(payload) >= 8000", "test_sequence"),
    Mutant("state of later", 3, SQL + "session_state_v01.sql", "(SELECT max(h.position) FROM rowcast.head h)", "(SELECT max(h.position) + 1 FROM rowcast.head h)", "test_state"),
    Mutant("oldest rows", 3, SQL + "session_state_v01.sql", "ORDER BY m.created_at DESC, m.id DESC LIMIT", "ORDER BY m.created_at, m.id LIMIT", "test_state"),
    Mutant("cut in silence", 3, SQL + "session_state_v01.sql", " UNION ALL SELECT FROM messages f WHERE NOT f.shown", "", "test_state"),
    Mutant("pending again", 3, SQL + "pending_v01.sql", "e.position > coalesce(here, floor)", "e.position >= coalesce(here, floor)", "test_consumers"),
    Mutant("pruned in silence", 3, SQL + "pending_v01.sql", "IF here < floor THEN", "IF false THEN", "test_consumers"),
    Mutant("backwards", 3, SQL + "ack_v01.sql", "\n  WHERE s.position < excluded.position;", ";", "test_consumers"),
    Mutant("ahead of the log", 3, SQL + "ack_v01.sql", "IF ack.position BETWEEN 0 AND head IS NOT TRUE THEN", "IF false THEN", "test_consumers"),
    Mutant("pending by any plan", 5, SQL + "pending_v01.sql", "SET enable_seqscan = off\nSET enable_bitmapscan = off\n", "", "test_consumers"),
    Mutant("everybody acknowledges", 7, "alembic/versions/0004_audiences.py", 'f"REVOKE EXECUTE ON FUNCTION rowcast.{function} FROM PUBLIC",', "", "test_consumers test_state"),
    Mutant("told to everybody", 7, SQL + "sequence_v03.sql", "PERFORM pg_notify(secret, rowcast.envelope", "PERFORM pg_notify('rowcast', rowcast.envelope", "test_sequence"),
    Mutant("whoever can NOTIFY", 7, "app/listener.py", "if channel == PUBLIC_CHANNEL:", "if False:", "test_listener"),
    Mutant("hints without rest", 5, "app/listener.py", "if asked and not grown:", "if False:", "test_listener"),
    Mutant("the secret of before", 7, "app/listener.py", "if await _find_channel(connection, self._heartbeat) != self._channel:", "if False:", "test_listener"),
    Mutant("secret by default", 7, "alembic/versions/0006_access.py", 'create("only_owner_v01", table=table)', "pass", "test_schema"),
    Mutant("everybody revokes", 7, "alembic/versions/0006_access.py", 'f"REVOKE EXECUTE ON FUNCTION rowcast.{function} FROM PUBLIC",', "", "test_access_sql"),
    Mutant("revoked in silence", 7, SQL + "revoke_v01.sql", "    INSERT INTO rowcast.outbox (type, payload) VALUES ('access.changed', jsonb_build_object('of', each));\n", "", "test_access_sql"),
    Mutant("revoked before", 7, SQL + "revoke_v01.sql", "greatest(r.at, excluded.at)", "excluded.at", "test_access_sql"),
    Mutant("another's now", 7, "alembic/versions/0006_access.py", ' OR OLD.project_id IS DISTINCT FROM NEW.project_id\n          OR OLD.owner_id COLLATE "C" IS DISTINCT FROM NEW.owner_id COLLATE "C"', "", "test_access_sql"),
    Mutant("told by the writer", 4, SQL + "access_changed_v01.sql", "plpgsql SECURITY DEFINER", "plpgsql", "test_access_sql"),
    Mutant("member of another", 7, SQL + "belongings_v01.sql", "m.user_id = subject AND m.project_id", "m.project_id", "test_access_sql"),
    Mutant("own project only", 7, SQL + "belongings_v01.sql", "IN (found.project_id, session.project_id)", "IN (found.project_id)", "test_access_sql"),
    Mutant("belongings by any plan", 5, SQL + "belongings_v01.sql", "SET enable_seqscan = off\n", "", "test_access_sql"),
    Mutant("emit a revocation", 7, SQL + "is_frame_v02.sql", ", 'access.changed'", "", "test_access_sql"),
    Mutant("fence not checked", 8, SQL + "message_write_v01.sql", "WHEN a.fence <> r.fence THEN 'taken'", "WHEN false THEN 'taken'", "test_leases"),
    Mutant("fence of a job not checked", 8, SQL + "job_write_v01.sql", "WHEN a.fence <> r.fence THEN 'taken'", "WHEN false THEN 'taken'", "test_leases"),
    Mutant("fence of a request not checked", 8, SQL + "request_write_v01.sql", "WHEN a.fence <> r.fence THEN 'taken'", "WHEN false THEN 'taken'", "test_leases"),
    Mutant("a fence that was taken away", 8, SQL + "message_write_v01.sql", "WHEN a.fence IS NOT NULL AND r.fence IS NULL THEN 'expired'", "WHEN false THEN 'expired'", "test_leases"),
    Mutant("an old writer's step", 8, SQL + "job_step_write_v01.sql", "WHEN a.fence <> j.fence THEN 'taken'", "WHEN false THEN 'taken'", "test_leases"),
    Mutant("expired taken as running", 8, SQL + "message_start_v01.sql", "(m.lease_expires_at < clock_timestamp()) IS NOT FALSE", "m.lease_expires_at IS NULL", "test_leases"),
    Mutant("running taken", 8, SQL + "message_start_v01.sql", "(m.lease_expires_at < clock_timestamp()) IS NOT FALSE", "true", "test_leases"),
    Mutant("running job taken", 8, SQL + "job_start_v01.sql", "(j.lease_expires_at < clock_timestamp()) IS NOT FALSE", "true", "test_leases"),
    Mutant("ended taken", 8, SQL + "request_start_v01.sql", "q.status IN ('pending', 'in_progress') AND (q", "(q", "test_leases"),
    Mutant("revisions of before", 8, SQL + "message_start_v01.sql", "revision = NULL, ", "", "test_leases"),
    Mutant("taken without waiting", 8, SQL + "message_start_v01.sql", "  SELECT FROM public.message m WHERE m.id = message_start.id AND m.fence IS DISTINCT FROM message_start.fence FOR NO KEY UPDATE;\n", "", "test_leases"),
    Mutant("revision ignored", 8, SQL + "message_write_v01.sql", "             WHEN a.revision < coalesce(r.revision, 0) THEN 'overtaken'\n", "", "test_leases"),
    Mutant("revision not kept", 8, SQL + "message_write_v01.sql", "AND (t.revision IS NOT DISTINCT FROM r.revision OR a.revision < coalesce(r.revision, 0))", "", "test_leases"),
    Mutant("terminal written again", 8, SQL + "message_write_v01.sql", "             WHEN r.ended THEN 'ended'\n", "", "test_leases"),
    Mutant("terminal job written again", 8, SQL + "job_write_v01.sql", "             WHEN r.ended THEN 'ended'\n", "", "test_leases"),
    Mutant("a retry is an end", 8, SQL + "message_write_v01.sql", "AND (r.ended OR t.lease", "AND (t.lease", "test_leases"),
    Mutant("beyond its end", 8, SQL + "message_write_v01.sql", "             WHEN t.text IS NULL THEN 'cut'\n", "", "test_leases"),
    Mutant("waits for the locked", 8, SQL + "message_write_v01.sql", "FOR NO KEY UPDATE SKIP LOCKED", "FOR NO KEY UPDATE", "test_leases"),
    Mutant("jobs wait for the locked", 8, SQL + "job_write_v01.sql", "FOR NO KEY UPDATE SKIP LOCKED", "FOR NO KEY UPDATE", "test_leases"),
    Mutant("not locked", 8, SQL + "message_write_v01.sql", " FOR NO KEY UPDATE SKIP LOCKED", "", "test_leases"),
    Mutant("step of an ended job", 8, SQL + "job_step_write_v01.sql", "WHEN j.status IN ('completed', 'failed', 'cancelled') OR s.status", "WHEN s.status", "test_leases"),
    Mutant("ended step", 8, SQL + "job_step_write_v01.sql", "THEN 'written'\n             WHEN j.status IN ('completed', 'failed', 'cancelled') OR s.status IN ('completed', 'failed', 'cancelled') THEN", "THEN 'written'\n             WHEN j.status IN ('completed', 'failed', 'cancelled') THEN", "test_leases"),
    Mutant("step while its job ends", 8, SQL + "job_step_write_v01.sql", "FOR SHARE SKIP LOCKED", "FOR KEY SHARE SKIP LOCKED", "test_leases"),
    Mutant("steps go on", 8, SQL + "job_write_v01.sql", "CASE WHEN count(*) > 0 THEN rowcast.end_steps(array_agg(d.id)) END", "count(*)", "test_leases"),
    Mutant("steps not held", 8, SQL + "job_write_v01.sql", "WHEN a.ends AND NOT rowcast.hold_steps(a.id) THEN 'locked'", "WHEN false THEN 'locked'", "test_leases"),
    Mutant("lease each time", 5, SQL + "renewed_v01.sql", "lease * 2 / 3", "lease", "test_leases"),
    Mutant("lease never", 8, SQL + "renewed_v01.sql", "WHEN expires_at < at + lease * 2 / 3 THEN at + lease ELSE", "WHEN false THEN at + lease ELSE", "test_leases"),
    Mutant("two of one row", 1, SQL + "check_writes_v01.sql", "HAVING count(*) > 1", "HAVING count(*) > 2", "test_leases"),
    Mutant("not durable after all", 5, SQL + "message_write_v01.sql", "WHERE durable = (current_setting('synchronous_commit') = 'off')", "WHERE false", "test_leases"),
    Mutant("no error", 8, SQL + "settled_v01.sql", "WHEN 'written' THEN true", "WHEN 'written' THEN true WHEN 'taken' THEN true", "test_leases"),
    Mutant("one row by any plan", 5, SQL + "message_start_v01.sql", "m.session_id IS NOT DISTINCT FROM message_start.session_id", "m.session_id = message_start.session_id", "test_leases"),
    Mutant("reap a running lease", 8, SQL + "reap_messages_v01.sql", "m.lease_expires_at < (SELECT clock_timestamp())", "m.lease_expires_at < (SELECT clock_timestamp() + interval '1 day')", "test_leases"),
    Mutant("reap the locked", 8, SQL + "reap_messages_v01.sql", "FOR UPDATE SKIP LOCKED", "FOR UPDATE", "test_leases"),
    Mutant("reap the renewed", 8, SQL + "reap_messages_v01.sql", "       FOR UPDATE SKIP LOCKED -- looks again at what it locks: a lease that was just renewed is not due\n", "", "test_leases"),
    Mutant("reap the ended", 8, SQL + "reap_messages_v01.sql", "CASE WHEN d.ended THEN m.status ELSE 'failed' END", "'failed'", "test_leases"),
    Mutant("reaped and still held", 8, SQL + "reap_messages_v01.sql", "fence = CASE WHEN d.ended THEN m.fence END", "fence = m.fence", "test_leases"),
    Mutant("reaped job, running steps", 8, SQL + "reap_jobs_v01.sql", "CASE WHEN count(*) > 0 THEN rowcast.end_steps(array_agg(d.id)) END", "count(*)", "test_leases"),
    Mutant("reap without bound", 5, SQL + "reap_requests_v01.sql", " LIMIT most", "", "test_leases"),
    Mutant("reap in any order", 8, SQL + "reap_jobs_v01.sql", "ORDER BY j.lease_expires_at LIMIT", "ORDER BY j.lease_expires_at DESC LIMIT", "test_leases"),
    Mutant("reap for nothing", 5, SQL + "reap_v01.sql", "CASE WHEN EXISTS (SELECT FROM public.job j WHERE j.lease_expires_at < (SELECT clock_timestamp())) THEN rowcast.reap_table('job', most) ELSE 0 END", "rowcast.reap_table('job', most)", "test_leases"),
    Mutant("reaper in the queue", 8, SQL + "reap_v01.sql", "SET lock_timeout = '1s'", "SET lock_timeout = '0'", "test_leases"),
    Mutant("one refuses for all", 8, SQL + "reap_table_v01.sql", "WHEN OTHERS THEN NULL;", "WHEN OTHERS THEN RAISE;", "test_leases"),
    Mutant("everybody writes", 7, "alembic/versions/0007_leases.py", '*(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC" for function in signatures(FOR_WRITERS)),', "", "test_leases"),
    Mutant("everybody reaps", 7, "alembic/versions/0007_leases.py", '*(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC" for function in signatures(REAPING)),', "", "test_leases"),
    Mutant("hidden from the reaper", 8, "alembic/versions/0007_leases.py", 'POLICIES = ("message", "job_step", "request")', 'POLICIES = ("job_step", "request")', "test_leases"),
    Mutant("no grace", 8, "app/reaper.py", "due = time.monotonic() - since >= GRACE", "due = True", "test_reaper"),
    Mutant("logged at each try", 5, "app/reaper.py", "if failed or due:", "if True:", "test_reaper"),
    Mutant("no grace after an error", 8, "app/reaper.py", "since = None if failed else since", "pass", "test_reaper"),
    Mutant("no grace after trouble", 8, "app/reaper.py", "            since = None\n        else:", "            pass\n        else:", "test_reaper"),
    Mutant("late and done", 8, "app/reaper.py", "CASE WHEN clock_timestamp() < $2 THEN rowcast.reap($1) END", "CASE WHEN $2::timestamptz IS NOT NULL THEN rowcast.reap($1) END", "test_reaper"),
    Mutant("late and believed", 8, "app/reaper.py", "if not look or time.monotonic() - asked > LATE.total_seconds():", "if not look:", "test_reaper"),
    Mutant("the first thousand", 5, "app/reaper.py", "if done < REAP_MOST:", "if True:", "test_reaper"),
    Mutant("reaps what is not there", 5, "app/reaper.py", 'if not (due and look["known"]):', "if not due:", "test_reaper"),
    Mutant("no revision", 8, WRITER + 'held.py', 'if self.changes:\n            values["revision"]', 'if False:\n            values["revision"]', 'test_writer'),
    Mutant("stored too early", 8, WRITER + 'held.py', 'if durable:\n            self.stored(write)', 'if True:\n            self.stored(write)', 'test_writer_crash'),
    Mutant("another version is stored", 8, WRITER + 'draft.py', 'if part.version != self._version or part.offset != self._offset:', 'if part.offset != self._offset:', 'test_writer'),
    Mutant("end before the text", 8, WRITER + 'messages.py', 'values.update(offset=part.offset, delta=part.text)', 'values.update({} if write.ends else dict(offset=part.offset, delta=part.text))', 'test_writer'),
    Mutant("acknowledged and gone", 8, WRITER + "flusher.py", "            self._dirty.update(row for row in rows if row.is_dirty and not row.is_finished)\n", "", "test_writer"),
    Mutant("taken later", 8, WRITER + "flusher.py", "outcomes = await write_rows(self.database, table, [write.values for write in writes.values()], self.lease, durable)", "writes = {row: row.take() for row in writes}\n            self._dirty.difference_update(writes)\n            outcomes = await write_rows(self.database, table, [write.values for write in writes.values()], self.lease, durable)", "test_writer"),
    Mutant("one spoils all", 8, WRITER + 'flusher.py', 'if len(rows) == 1:\n', 'if True:\n', 'test_writer'),
    Mutant("no room to wait for", 5, WRITER + "messages.py", "if self._flusher.is_full_for(self):", "if False:", "test_writer"),
    Mutant("first chunk waits", 8, WRITER + 'messages.py', 'self._grown(urgent=is_first)', 'self._grown(urgent=False)', 'test_writer'),
    Mutant("progress after text", 8, WRITER + 'draft.py', 'if self.begun:\n            return False', 'if False:\n            return False', 'test_writer'),
    Mutant("left streaming", 8, WRITER + 'flusher.py', 'if any(row.final is not None for row in self._rows.values()):', 'if False:', 'test_writer'),
    Mutant("left by an exception", 8, WRITER + "held.py", "                await self.fail_by(error)\n", "                pass\n", "test_writer"),
    Mutant("abandoned", 8, WRITER + "held.py", "        if self._abandoned:\n            self.final = self.failure()\n            self._changed(urgent=True)\n", "", "test_writer"),
    Mutant("never renewed", 8, WRITER + 'held.py', 'return self.written_at + self._flusher.renewal', "return float('inf')", 'test_writer'),
    Mutant("half a character", 8, WRITER + 'draft.py', 'chunk, self._held = chunk[:-1], chunk[-1]', 'pass', 'test_writer'),
    Mutant("looks write", 5, WRITER + 'held.py', 'if self.changes:\n            values["revision"]', 'if True:\n            values["revision"]', 'test_writer_jobs'),
    Mutant("steps after the job", 8, WRITER + "jobs.py", "return self.final is not None and any(step.is_dirty and not step.is_finished for step in self._steps)", "return False", "test_writer_jobs"),
    Mutant("a chunk of a write that failed", 8, WRITER + "messages.py", "        if self._flusher.is_full_for(self):\n            await self._flusher.room(self)\n            self._check()\n        is_first = not self._draft.begun\n        if not self._draft.write(chunk):\n            return\n", "        is_first = not self._draft.begun\n        if not self._draft.write(chunk):\n            return\n        if self._flusher.is_full_for(self):\n            await self._flusher.room(self)\n            self._check()\n", "test_writer"),
    Mutant("one fills it for all", 5, WRITER + "flusher.py", " and row.kept > self._buffer / len(self._rows)", "", "test_writer"),
    Mutant("one is slow for all", 8, WRITER + "flusher.py", "error.code != TOOK_TOO_LONG", "True", "test_writer"),
    Mutant("tried without rest", 5, WRITER + "flusher.py", "return max(due, self._flushed_at + self._interval) - now", "return due - now", "test_writer"),
    Mutant("any loop", 8, WRITER + "flusher.py", "and not self._home[1].is_closed() and (self._rows or self._starts)", "and False", "test_writer"),
    Mutant("silent and waited for", 8, WRITER + "connections.py", "await asyncio.wait([task], timeout=CALL_TIMEOUT)", "await asyncio.wait([task])", "test_writer_connections"),
    Mutant("lock given up too early", 8, WRITER + "connections.py", "await within_time(alone(), self._cut)", "await alone()", "test_writer_connections"),
]  # fmt: skip


def failure(files: str, copy: Path, name: str) -> str | None:
    """The first test that fails, or None if all pass."""
    environment = {**os.environ, "PYTHONPATH": f"{copy}:{copy}/clients/python", "PYTHONDONTWRITEBYTECODE": "1", "ROWCAST_MUTANT": name}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    command += [f"tests/{file}.py" for file in files.split()]
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return "(it hung)"
    found = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", done.stdout, re.M)
    return None if done.returncode == 0 else found[1] if found else f"(exit {done.returncode})"


def survives(mutant: Mutant, copy: Path) -> str | None:
    path = copy / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        sys.exit(f"{mutant.name}: {mutant.file} holds its text {text.count(mutant.old)} times")
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        return failure(mutant.tests, copy, mutant.name)
    finally:
        path.write_text(text)


def main() -> None:
    chosen = [m for m in MUTANTS if not sys.argv[1:] or m.name in sys.argv[1:]]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".rowcast", "__pycache__", ".hypothesis"))
        (copy / "rowcast").symlink_to("app")
        Path(folder).chmod(0o755)
        # Tests that fail by themselves would prove nothing.
        if broken := failure(" ".join(sorted({file for mutant in chosen for file in mutant.tests.split()})), copy, ""):
            sys.exit(f"unbroken, the tests fail already: {broken}")
        for mutant in chosen:
            caught = survives(mutant, copy)
            survivors += caught is None
            print(f"| {mutant.invariant} | {mutant.name} | {'**survives**' if caught is None else f'`{caught}`'} |", flush=True)
    print(f"{len(chosen) - survivors} caught, {survivors} survive")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
