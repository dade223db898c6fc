"""The command line, as a person meets it."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import jwt
import pytest
from rowcast import __version__
from rowcast.settings import Settings, load

from .rig import SECRET, Hub, Stream, Writer


async def rowcast(*arguments: str, cwd: Path | None = None, **environment: str) -> tuple[int, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ROWCAST_") and k != "DATABASE_URL"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rowcast.cli", *arguments, cwd=cwd, env={**clean, **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, "DATABASE_URL is not set"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL: must begin with postgresql://"),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_PORT": "eighty"}, "ROWCAST_PORT: "),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_KEEPALIVE": "0"}, "ROWCAST_KEEPALIVE: "),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_RETENTION": "inf"}, "ROWCAST_RETENTION: "),
        ({"DATABASE_URL": "postgresql://h:abc/db"}, "DATABASE_URL: "),
        ({"DATABASE_URL": "postgresql://[bad/db"}, "DATABASE_URL: "),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_LISTEN_URL": "redis://secret"}, "ROWCAST_LISTEN_URL: must begin"),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_HOST": "0.0.0.0", "ROWCAST_NO_AUTH": "1"}, "--no-auth works on loopback only"),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_HOST": "192.0.2.1", "ROWCAST_KEY": SECRET}, "cannot bind 192.0.2.1:8000"),
        ({"DATABASE_URL": "postgresql://"}, "there is no key to check tokens with"),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_WORKERS": "2"}, "there is no key to check tokens with"),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_KEY": "too secret"}, "ROWCAST_KEY: a secret has 32 bytes or more, not 10"),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_KEY": SECRET, "ROWCAST_NO_AUTH": "1"}, "take away one of them"),
        (
            {"DATABASE_URL": "postgresql://", "ROWCAST_KEY_FILES": "secret.txt".replace("secret", "no")},
            "ROWCAST_KEY_FILES: no.txt: No such file",
        ),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_JWKS_URL": "http://example.com/keys"}, "ROWCAST_JWKS_URL: must begin with https://"),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_JWKS_URL": "file:///etc/passwd"}, "ROWCAST_JWKS_URL: must begin with https://"),
        ({"DATABASE_URL": "postgresql://", "ROWCAST_KEY": SECRET, "ROWCAST_ORIGINS": "*"}, "ROWCAST_ORIGINS: are named one by one"),
        (
            {"DATABASE_URL": "postgresql://", "ROWCAST_KEY": SECRET, "ROWCAST_ORIGINS": "https://a.b/c"},
            "ROWCAST_ORIGINS: are like https://app.example.com",
        ),
        (
            {"DATABASE_URL": "postgresql://", "ROWCAST_KEY": SECRET, "ROWCAST_AUTHORIZE": "nothing:at_all"},
            "ROWCAST_AUTHORIZE: nothing:at_all: ",
        ),
        (
            {"DATABASE_URL": "postgresql://", "ROWCAST_KEY": SECRET, "ROWCAST_AUTHORIZE": "json:__name__"},
            "ROWCAST_AUTHORIZE: json:__name__ is no function",
        ),
    ],
)
async def test_a_wrong_setting_is_one_line_that_names_it(environment: dict[str, str], names: str, tmp_path: Path) -> None:
    status, output = await rowcast("serve", cwd=tmp_path, **environment)
    assert status == 2
    assert names in output
    assert len(output.splitlines()) == 1, output
    assert SECRET not in output
    assert "too secret" not in output
    assert "//secret" not in output


async def test_migrate(empty_database: str, tmp_path: Path, project_root: Path) -> None:
    async def migrate(*arguments: str) -> tuple[int, str]:
        return await rowcast("migrate", *arguments, cwd=tmp_path, DATABASE_URL=empty_database)

    head = len(list((project_root / "alembic/versions").glob("0*.py")))
    assert await migrate("status") == (1, f"database: nothing, this program: {head}\n")
    assert await migrate("up") == (0, f"schema version {head}\n")
    assert await migrate("status") == (0, f"database: {head}, this program: {head}\n")
    assert await migrate("down") == (0, f"schema version {head - 1}\n")
    assert await migrate("up", "+1") == (0, f"schema version {head}\n")
    assert await migrate("down", "base") == (0, "schema version nothing\n")
    status, output = await migrate("up", "17")
    assert status == 2
    assert len(output.splitlines()) == 1


async def test_a_database_that_is_away_is_one_line(tmp_path: Path) -> None:
    for command in (["migrate", "up"], ["migrate", "status"], ["doctor"]):
        status, output = await rowcast(*command, cwd=tmp_path, DATABASE_URL="postgresql://postgres:secret@127.0.0.1:1/x")
        assert status == 2, output
        assert len(output.splitlines()) == 1, output
        assert "secret" not in output


async def test_doctor(database: str, writer: Writer, tmp_path: Path) -> None:
    status, output = await rowcast("doctor", cwd=tmp_path, DATABASE_URL=database)
    assert status == 0, output
    assert "triggers: 20 in place" in output
    await writer.db.execute(
        """ALTER TABLE message DISABLE TRIGGER rowcast_update; DROP TRIGGER rowcast_insert ON job;
           ALTER TABLE session DISABLE TRIGGER rowcast_access_update; DROP TRIGGER rowcast_access_delete ON project_member"""
    )
    status, output = await rowcast("doctor", cwd=tmp_path, DATABASE_URL=database)
    assert status == 1
    assert "message.rowcast_update is disabled" in output
    assert "job.rowcast_insert is missing; changes are not seen" in output
    assert "session.rowcast_access_update is disabled; whoever loses access goes on reading" in output
    assert "project_member.rowcast_access_delete is missing" in output


async def test_dev_starts_everything_and_survives_the_death_of_its_hub(tmp_path: Path) -> None:
    """What `make demo` runs: a database, migrations, a hub and a pipeline that writes."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ROWCAST_") and k != "DATABASE_URL"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rowcast.cli", "dev", "--port", "0", cwd=tmp_path,
        env=clean, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout
    url, token, pids = "", "", []
    while len(pids) < 1:
        line = (await process.stdout.readline()).decode()
        assert line, "it ended"
        url = found[0] if (found := re.search(r"http://[\d.:]+", line)) else url
        token = found[1] if (found := re.search(r"ROWCAST_TOKEN=(\S+)", line)) else token
        pids += re.findall(r"hub is process (\d+)", line)
    session = "00000000-0000-4000-8000-000000000001"
    shown = {"Authorization": f"Bearer {token}"}
    stream = await Stream.open(f"{url}/api/sse/{session}", **shown)
    text = {}
    cursor = None
    for event in [*await stream.until("message.delta"), *await stream.until("message.delta")]:
        cursor = event.id
    os.kill(int(pids[0]), signal.SIGKILL)
    stream.abort()
    again = await Stream.open(f"{url}/api/sse/{session}", cursor, **shown)  # waits in the backlog
    events = await again.until("message.completed")
    assert events[0].data["resumed"] is True
    for event in events:
        if event.type == "message.delta":
            text[event.data["message_id"]] = event.data["offset"] + len(event.data["delta"])
    done = events[-1].data["message"]
    assert done["metadata"]["characters"] == text[done["id"]]
    again.abort()
    process.send_signal(signal.SIGINT)
    await process.stdout.read()
    assert await process.wait() == 0


async def test_a_key_a_token_and_its_end(database: str, tmp_path: Path) -> None:
    status, made = await rowcast("key", cwd=tmp_path)
    secret = made.strip()
    assert (status, len(secret) >= 32) == (0, True)
    given = {"ROWCAST_KEY": secret, "DATABASE_URL": database}
    arguments = ["--session", "a", "--session", "team-*", "--project", "*", "--right", "cancel", "--type", "message.*", "--minutes", "5"]
    status, made = await rowcast("token", "alice", *arguments, cwd=tmp_path, **given)
    assert status == 0
    claims = jwt.decode(made.strip(), secret, algorithms=["HS256"])
    assert claims["rowcast"] == {"sessions": ["a", "team-*"], "projects": ["*"], "rights": ["cancel"], "types": ["message.*"]}
    assert (claims["sub"], claims["exp"] - claims["iat"]) == ("alice", pytest.approx(300))
    status, made = await rowcast("token", "alice", cwd=tmp_path, ROWCAST_ISSUER="i", ROWCAST_AUDIENCE="a", **given)
    async with Hub(database, key=secret, issuer="i", audience="a") as hub:
        assert (await hub.call("GET", "/api/poll?topic=user:alice", made.strip()))[0] == 200
        assert await rowcast("revoke", "alice", cwd=tmp_path, **given) == (0, "revoked\n")
        assert (await hub.call("GET", "/api/poll?topic=user:alice", made.strip()))[0] == 401
    for wrong, says in (
        (["token", "alice"], "ROWCAST_KEY is not set"),
        (["token", ""], "the token's claims cannot be read: sub: must be 1 to 128"),
        (["token", "alice", "--right", "all"], "Invalid enum value 'all'"),
        (["revoke"], "say what to revoke"),
    ):
        environment = {"DATABASE_URL": database} if wrong == ["token", "alice"] else given
        status, said = await rowcast(*wrong, cwd=tmp_path, **environment)
        assert (status, len(said.splitlines())) == (2, 1), said
        assert says in said


def test_versions_agree(project_root: Path) -> None:
    assert f'version = "{__version__}"' in (project_root / "pyproject.toml").read_text()


def test_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    (tmp_path / ".env").write_text("DATABASE_URL=postgresql+asyncpg://me@db/x\nROWCAST_PORT=9\nOTHER=1\n")
    assert load() == Settings(database_url="postgresql://me@db/x", port=9)
    assert load(port=10).port == 10
