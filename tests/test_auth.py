"""Tokens: which keys check them, how these are fetched and exchanged, and what no token can do."""

import asyncio
import base64
import json
import random
import re
import string
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from rowcast.auth import COOLDOWN, Verifier
from rowcast.errors import ConfigurationError, Unauthorized
from rowcast.keys import read_keys
from rowcast.settings import Settings

from .rig import SECRET, Hub, call, token, until
from .test_access import ws_status

RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
PRIVATE = {"RS256": RSA, "ES256": P256, "EdDSA": ED25519}


def pem(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def jwk(key: Any, **more: str) -> dict[str, Any]:
    for algorithm in (jwt.algorithms.RSAAlgorithm, jwt.algorithms.ECAlgorithm, jwt.algorithms.OKPAlgorithm):
        try:
            return {**algorithm.to_jwk(key.public_key(), as_dict=True), **more}  # type: ignore[attr-defined]
        except (jwt.InvalidKeyError, AttributeError, TypeError):
            continue
    raise AssertionError(key)


def secret_jwk(secret: bytes, **more: str) -> dict[str, Any]:
    return {"kty": "oct", "k": base64.urlsafe_b64encode(secret).rstrip(b"=").decode(), **more}


def settings(**given: Any) -> Settings:
    return Settings(_env_file=None, database_url="postgresql://", **given)  # type: ignore[call-arg]


async def takes(verifier: Verifier, text: str) -> bool:
    try:
        grant = await verifier.verify(text)
    except Unauthorized:
        return False
    assert grant.subject == "alice"
    return True


def signed(algorithm: str, key: Any = None, **claims: Any) -> str:
    return token("alice", key=key or PRIVATE.get(algorithm, SECRET), algorithm=algorithm, **claims)


@pytest.mark.parametrize("algorithm", ["HS256", *PRIVATE])
@pytest.mark.parametrize("how", ["setting", "file", "jwk", "jwk set"])
async def test_each_algorithm_from_each_place(algorithm: str, how: str, tmp_path: Path) -> None:
    key = PRIVATE.get(algorithm)
    whole = pem(key) if key else SECRET
    as_jwk = jwk(key, kid="k") if key else secret_jwk(SECRET.encode(), kid="k")
    if how == "file":
        (tmp_path / "key").write_text(whole + "\n")
        verifier = Verifier(settings(key_files=f" {tmp_path / 'key'} ,"))
    else:
        text = {"setting": whole, "jwk": json.dumps(as_jwk), "jwk set": json.dumps({"keys": [as_jwk]})}[how]
        verifier = Verifier(settings(key=text))
    assert await takes(verifier, signed(algorithm))
    for other in {"HS256", *PRIVATE} - {algorithm}:
        assert not await takes(verifier, signed(other))


async def test_white_space_around_a_key_is_none_of_it() -> None:
    for text in (f"\ufeff {json.dumps(jwk(RSA))}\n", f"  {pem(RSA)}"):
        verifier = Verifier(settings(key=text))
        assert await takes(verifier, signed("RS256"))
        for secret in (text, text.strip(), text.lstrip("\ufeff").strip()):
            assert not await takes(verifier, forged({"alg": "HS256"}, secret.encode()))


async def test_several_keys_so_that_they_can_be_exchanged(tmp_path: Path) -> None:
    (tmp_path / "both").write_text(pem(RSA) + pem(P256))
    verifier = Verifier(settings(key=SECRET, key_files=f"{tmp_path}/both"))
    for algorithm in ("HS256", "RS256", "ES256"):
        assert await takes(verifier, signed(algorithm))
    old, new = "the old secret, of at least 32 bytes", "the new secret, of at least 32 bytes"
    (tmp_path / "old").write_text(old)
    verifier = Verifier(settings(key=new, key_files=f"{tmp_path}/old"))
    assert await takes(verifier, signed("HS256", old))
    assert await takes(verifier, signed("HS256", new))
    assert not await takes(verifier, signed("HS256", "another secret, of at least 32 bytes"))


def forged(header: dict[str, Any], secret: bytes, **claims: Any) -> str:
    """As an attacker makes one, without a library that would refuse to."""
    import hashlib
    import hmac

    def part(value: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    text = part(header) + b"." + part({"sub": "alice", "exp": time.time() + 600, **claims})
    signature = hmac.new(secret, text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.mark.parametrize("key", PRIVATE.values(), ids=PRIVATE)
async def test_a_public_key_is_no_secret(key: Any) -> None:
    """Key confusion (RFC 8725, 2.1): signed with what everybody knows, under the name of the other algorithm."""
    verifier = Verifier(settings(key=json.dumps(jwk(key, kid="k"))))
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem(key).encode(), pem(key).strip().encode(), der, json.dumps(jwk(key)).encode(), b""):
        for header in (
            {"alg": "HS256"},
            {"alg": "HS256", "kid": "k"},
            {"alg": "hs256"},
            {"alg": "none"},
            {"alg": ["HS256"]},
            {"alg": None},
            {},
        ):
            assert not await takes(verifier, forged({"typ": "JWT", **header}, secret)), header
    for header in ({"alg": "none"}, {"alg": "None"}, {"alg": "NONE"}, {"alg": ""}):
        unsigned = forged({"typ": "JWT", **header}, b"").rpartition(".")[0] + "."
        assert not await takes(verifier, unsigned)


async def test_a_key_in_the_header_of_a_token_is_not_looked_at() -> None:
    mine = rsa.generate_private_key(65537, 2048)
    verifier = Verifier(settings(key=pem(RSA)))
    for header in ({"jwk": jwk(mine)}, {"jku": "http://127.0.0.1:1/keys"}, {"x5u": "http://127.0.0.1:1/keys"}, {"kid": "../../etc/passwd"}):
        assert not await takes(verifier, signed("RS256", mine, header=header))
    assert await takes(verifier, signed("RS256", header={"kid": "anything"})), "our key has no id, so any will do"


async def test_the_issuer_and_the_audience(tmp_path: Path) -> None:
    verifier = Verifier(settings(key=SECRET, issuer="https://id.example", audience="rowcast"))
    good = {"iss": "https://id.example", "aud": "rowcast"}
    assert await takes(verifier, signed("HS256", **good))
    assert await takes(verifier, signed("HS256", **{**good, "aud": ["other", "rowcast"]}))
    for wrong in ({"iss": "https://evil.example"}, {"iss": None}, {"aud": "other"}, {"aud": None}, {"aud": ["other"]}, {"aud": "rowcast2"}):
        assert not await takes(verifier, signed("HS256", **{**good, **wrong})), wrong
    assert await takes(Verifier(settings(key=SECRET)), signed("HS256", **good)), "nothing is asked for where nothing is set"


async def test_the_clock_of_the_issuer_may_be_wrong_by_the_leeway() -> None:
    now = time.time()
    verifier = Verifier(settings(key=SECRET, leeway=5))
    for claims, holds in (
        ({"exp": now - 3}, True),
        ({"exp": now - 7}, False),
        ({"nbf": now + 3}, True),
        ({"nbf": now + 7}, False),
        ({"iat": now + 3}, True),
        ({"iat": now + 7}, False),
    ):
        assert await takes(verifier, signed("HS256", **claims)) == holds, claims


async def test_the_claim_can_have_another_name() -> None:
    verifier = Verifier(settings(key=SECRET, claim="https://app.example/rowcast"))
    grant = await verifier.verify(token("alice", **{"https://app.example/rowcast": {"sessions": ["a"]}}))
    assert grant.names is not None
    assert "a" in grant.names["session"]
    assert (await verifier.verify(token("alice", {"sessions": ["a"]}))).names is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(), "holds a private key"),
        ("-----BEGIN PUBLIC KEY-----\nbm8=\n-----END PUBLIC KEY-----", "is no public key in PEM"),
        ("-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----", "is no public key in PEM"),
        ("short", "has 32 bytes or more, not 5"),
        ("{", "is no JSON Web Key"),
        ("{}", "has no key for HS256, RS256, ES256, EdDSA"),
        ('{"keys": [1, {"kty": "RSA"}, {"kty": "EC", "crv": "P-999"}]}', "has no key for"),
        (json.dumps(secret_jwk(b"short")), "has 32 bytes or more, not 5"),
        (json.dumps({**jwk(RSA), "use": "enc"}), "has no key for"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "of a kind that is not known"),
        (pem(rsa.generate_private_key(65537, 1024)), "has 2048 bits or more, not 1024"),
        ("".join(pem(RSA).splitlines()[1:-1]), "is a key in a form that is not known here"),
        ("\n".join(pem(P256).splitlines()[1:-1]), "is a key in a form that is not known here"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl", "is a key in a form"),
        (json.dumps([jwk(RSA)]), "is a key in a form that is not known here"),
        ("https://id.example/realms/mine/protocol/openid-connect/certs", "is an address: ROWCAST_JWKS_URL takes one"),
        ("/run/secrets/a-key-that-is-in-a-file.pem", "is a path: ROWCAST_KEY_FILES takes some"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_key_that_is_none_is_one_line(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        read_keys(text, "ROWCAST_KEY")
    line = str(error.value)
    assert line.startswith("ROWCAST_KEY: ")
    assert says in line
    assert "\n" not in line
    assert len(text) < 6 or text[-40:] not in line


# Keys from a URL


class Issuer:
    """Publishes its keys over HTTP."""

    def __init__(self) -> None:
        self.keys: Any = {"keys": []}
        self.status = 200
        self.asked = 0
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        body = json.dumps(self.keys).encode() if not isinstance(self.keys, bytes) else self.keys
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (self.status, len(body)) + body)
        writer.close()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["Issuer"]:
        server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
        async with server:
            yield self


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rowcast.auth.COOLDOWN", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_keys_from_a_url_are_exchanged_while_it_runs(database: str) -> None:
    issuer = Issuer()
    issuer.keys = {"keys": [jwk(RSA, kid="one", alg="RS256"), secret_jwk(SECRET.encode(), kid="s")]}
    async with issuer.serve(), Hub(database, jwks_url=issuer.url) as hub:
        path = "/api/poll?topic=user:alice"
        assert (await hub.call("GET", path, signed("RS256", header={"kid": "one"})))[0] == 200
        assert (await hub.call("GET", path, signed("HS256", header={"kid": "s"})))[0] == 401, "a secret that is published is none"
        assert (await hub.call("GET", path, signed("ES256", header={"kid": "two"})))[0] == 401
        issuer.keys = {"keys": [jwk(RSA, kid="one"), jwk(P256, kid="two"), {"kty": "new"}]}
        await asyncio.sleep(0.06)  # the cooldown
        assert (await hub.call("GET", path, signed("ES256", header={"kid": "two"})))[0] == 200, "an unknown key is asked for"
        assert (await hub.call("GET", path, signed("RS256", header={"kid": "one"})))[0] == 200
        issuer.keys = {"keys": [jwk(P256, kid="two")]}
        await asyncio.sleep(0.06)
        assert (await hub.call("GET", path, signed("RS256", header={"kid": "three"})))[0] == 401
        assert (await hub.call("GET", path, signed("RS256", header={"kid": "one"})))[0] == 401, "one that is withdrawn is no longer taken"
        odd = ({"keys": [{"kty": "RSA", "key_ops": None}, {"kty": "RSA", "key_ops": 5}, None, 7]}, b'{"keys":' + b"[" * 100_000)
        for status, keys in ((500, {}), *((200, keys) for keys in (b"no JSON", {"keys": []}, [], {"keys": 3}, *odd))):
            issuer.status, issuer.keys = status, keys
            await asyncio.sleep(0.06)
            assert (await hub.call("GET", path, signed("RS256", header={"kid": "four"})))[0] == 401
            assert (await hub.call("GET", path, signed("ES256", header={"kid": "two"})))[0] == 200, "those of before are used on"
            assert (await hub.call("GET", "/readyz"))[0] == 200, "an issuer that is away takes no hub with it"


async def test_tokens_that_name_keys_of_their_own_do_not_make_us_ask_on(database: str) -> None:
    issuer = Issuer()
    issuer.keys = {"keys": [jwk(RSA, kid="one")]}
    async with issuer.serve(), Hub(database, jwks_url=issuer.url) as hub:
        began = time.monotonic()
        for n in range(60):
            assert (await hub.call("GET", "/api/poll?topic=user:alice", signed("ES256", header={"kid": str(n)})))[0] == 401
        assert issuer.asked <= 2 + (time.monotonic() - began) / COOLDOWN


@pytest.mark.usefixtures("impatient")
async def test_keys_that_cannot_be_fetched_are_no_refusal_for_good(database: str) -> None:
    issuer = Issuer()
    issuer.status = 503
    async with issuer.serve():
        hub = await Hub(database, jwks_url=issuer.url).start(ready=False)
        try:
            text = signed("RS256")
            status, answer = await hub.call("GET", "/api/poll?topic=user:alice", text)
            assert (status, answer["code"]) == (503, "unavailable")
            assert "127.0.0.1" not in answer["error"]
            assert (await hub.call("GET", "/readyz"))[0] == 503
            async with await hub.open("/api/stream?topic=user:alice", text) as stream:
                assert stream.status == 200, "an EventSource would never come back from any other"
                assert [(event.type, event.data["code"]) for event in await stream.rest()] == [("error", "unavailable")]
                assert stream.retry is not None
                assert stream.retry >= 5000
            assert (await hub.call("GET", "/api/stream?topic=user:alice", text, Accept="*/*"))[0] == 503
            issuer.status, issuer.keys = 200, {"keys": [jwk(RSA)]}
            await until(lambda: hub.rowcast.trouble is None)
            assert (await hub.call("GET", "/api/poll?topic=user:alice", text))[0] == 200
        finally:
            await hub.stop()


# Fuzz

ALPHABET = string.ascii_letters + string.digits + "-_.=+/ ;,\"'\\{}[]:\t%*é\x7f\xff"


def mutations(seed: int) -> Iterator[str]:
    """Tokens that are almost right, and things that are nothing like one."""
    chance = random.Random(seed)
    good = token("alice")
    while True:
        match chance.randrange(8):
            case 0:
                yield "".join(chance.choice(ALPHABET) for _ in range(chance.randrange(300)))
            case 1:
                at = chance.randrange(len(good))
                yield good[:at] + chance.choice(ALPHABET) + good[at + 1 :]
            case 2:
                at, to = sorted(chance.randrange(len(good)) for _ in range(2))
                yield good[:at] + good[to:]
            case 3:
                yield ".".join(chance.sample(good.split("."), chance.randrange(1, 4)))
            case 4:
                yield odd(
                    chance,
                    {"alg": chance.choice(["HS256", "none", "RS256", 1, None, [], {}]), "typ": chance.choice(["JWT", 1])},
                    claims(chance),
                )
            case 5:
                yield odd(
                    chance, {"alg": "HS256", chance.choice(["kid", "crit", "b64", "cty", "zip", "jku"]): value(chance)}, claims(chance)
                )
            case 6:
                yield forged({"alg": "HS256", "typ": "JWT"}, SECRET.encode(), **claims(chance))
            case _:
                nested = "[" * chance.randrange(1, 5000)
                part = base64.urlsafe_b64encode(nested.encode()).rstrip(b"=").decode()
                yield f"{chance.choice([part, good.split('.')[0]])}.{part}.{good.rpartition('.')[2]}"


def value(chance: random.Random) -> Any:
    return chance.choice(
        [None, True, -1, 1e308, float("inf"), float("nan"), 10**30, "", "x", "\x00", "\ud800", [], ["*"], {}, {"a": {}}, "a" * 3000]
    )


def claims(chance: random.Random) -> dict[str, Any]:
    names = ["sub", "exp", "iat", "nbf", "iss", "aud", "jti", "sid", "rowcast"]
    inner = ["sessions", "projects", "rights", "types", "users", "other"]
    found = {name: value(chance) for name in chance.sample(names, chance.randrange(4))}
    if chance.random() < 0.5:
        found["rowcast"] = {name: value(chance) for name in chance.sample(inner, chance.randrange(4))}
    return found


def odd(chance: random.Random, header: dict[str, Any], payload: dict[str, Any]) -> str:
    return forged(header, chance.choice([SECRET.encode(), b"x"]), **payload)


def headers(chance: random.Random, text: str) -> list[tuple[str, str]]:
    """As some client may send them; those that HTTP itself forbids get 400 from the parser."""
    clean = re.sub(r"[\r\n\x00]", "", text)
    kinds = [
        ("Authorization", f"{chance.choice(['Bearer', 'bearer', 'BEARER', 'Bearer  ', '', 'Digest'])} {clean}"),
        ("Cookie", f"{chance.choice(['rowcast_token', 'x', '', 'rowcast_token=rowcast_token'])}={clean}; {clean}"),
        ("Origin", chance.choice([clean, "null", "http://", "http://[", "http://127.0.0.1:99999999"])),
        ("Last-Event-ID", clean),
        ("If-None-Match", clean),
        ("X-Forwarded-For", clean),
        ("X-Forwarded-Proto", clean),
        ("Accept", clean),
        ("Host", chance.choice([clean, "127.0.0.1", "[", "[::1", "a:b:c"])),
        ("Content-Type", clean),
    ]
    return chance.sample(kinds, chance.randrange(1, len(kinds)))


@pytest.mark.parametrize("seed", range(3))
async def test_no_token_and_no_header_gives_a_500(database: str, caplog: pytest.LogCaptureFixture, seed: int) -> None:
    chance = random.Random(seed)
    tokens = mutations(seed)
    paths = [
        "/api/sse/s",
        "/api/poll/s",
        "/api/stream?topic=session:s",
        "/api/sessions/s",
        "/api/v1/tasks/t",
        "/api/v1/tasks/t/stream",
        "/readyz",
    ]
    async with Hub(database, key=SECRET, query_token=seed % 2 == 1) as hub:
        found: dict[int, int] = {}
        for _ in range(300):
            text = next(tokens)
            status = await fuzzed(hub, chance, chance.choice(paths), text)
            found[status] = found.get(status, 0) + 1
        assert not {status for status in found if status >= 500}, found
        assert found.get(401, 0) > 50, found
        assert not {status for status in found if status < 300} or found.get(200, 0) < 200
    assert not [record for record in caplog.records if record.exc_info], "a traceback"


async def fuzzed(hub: Hub, chance: random.Random, path: str, text: str) -> int:
    """The status, of a GET, of a POST, or of the handshake of a WebSocket."""
    port = int(hub.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    method = chance.choice(["GET", "GET", "GET", "POST", "DELETE", "OPTIONS", "HEAD"])
    body = b""
    if method == "POST":
        path, body = chance.choice(["/api/tickets", "/api/cookie", "/api/v1/tasks/t/cancel"]), text.encode("utf-8", "replace")[:2000]
    if chance.random() < 0.4:
        quoted = "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "replace")[:1500])
        path += ("&" if "?" in path else "?") + f"{chance.choice(['ticket', 'token', 'after', 'types', 'topic'])}={quoted}"
    lines = [("Host", "127.0.0.1"), *headers(chance, text)]
    if method == "GET" and path.startswith("/api/stream") and chance.random() < 0.5:
        lines += [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "A" * 22 + "=="),
        ]
    else:
        lines += [("Connection", "close"), ("Content-Length", str(len(body)))]
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines) + "\r\n"
    writer.write(head.encode("latin-1", "replace") + body)
    try:
        async with asyncio.timeout(10):
            status = int((await reader.readline()).split()[1])
    except TimeoutError:
        raise AssertionError(f"no answer to {head!r}") from None
    finally:
        writer.close()
    return status


async def test_the_same_by_value_of_claims() -> None:
    """Signed rightly, so that what is in it is looked at: a grant, or one clear line."""
    verifier, chance = Verifier(settings(key=SECRET)), random.Random(1)
    grants, refusals = 0, set()
    for _ in range(3000):
        text = forged({"alg": "HS256", "typ": "JWT"}, SECRET.encode(), **claims(chance))
        try:
            grant = await verifier.verify(text)
        except Unauthorized as error:
            refusals.add(json.dumps(error.described))
        else:
            grants += 1
            assert grant.subject
            assert grant.expires
            assert repr(grant)
    assert grants > 100
    assert len(refusals) > 10
    assert all(len(line) < 700 and r"\n" not in line for line in refusals)


# What is secret


async def test_nothing_secret_reaches_the_log(database: str, caplog: pytest.LogCaptureFixture) -> None:
    """At the most talkative level, by every way in which a token can come, right and wrong."""
    caplog.set_level("DEBUG")
    caplog.set_level("INFO", "websockets.client")  # the test's own
    marked = "5ecret5ecret5ecret5ecret5ecret5ecret"
    good, bad = token("alice", key=marked), token("alice") + marked
    async with Hub(database, key=marked, query_token=True) as hub:
        _, answer = await hub.call("POST", "/api/tickets", good, b'{"topics": ["user:alice"]}')
        ticket = answer["ticket"]
        for path in ("/api/stream", "/api/poll"):
            for query in (f"token={good}", f"token={bad}", f"ticket={ticket}", f"access_token={good}", f"x={marked}", f"%74oken={good}"):
                stream = await hub.open(f"{path}?topic=user:alice&{query}")
                assert stream.status in (200, 401)
                stream.abort()
            for text in (good, bad):
                (await hub.open(f"{path}?topic=user:alice", text)).abort()
                (await hub.open(f"{path}?topic=user:alice", Cookie=f"rowcast_token={text}")).abort()
        await hub.call("GET", "/api/poll?topic=user:alice%0aFORGED", good)
        await hub.call("GET", f"/api/poll/x;token={good}?topic=a;token={good}&{good}=1", good)
        for query, origin in ((f"token={bad}", hub.url), ("", hub.url), ("", "https://evil.example")):
            await ws_status(f"{hub.url.replace('http', 'ws')}/api/stream?{query}", {"Origin": origin})
        await hub.call("GET", "/api/poll/%0aFORGED%1b[31m", good)
        assert marked not in repr(hub.settings)
        assert marked not in repr(hub.rowcast.verifier)
    log = caplog.text
    assert '"GET /api/poll?topic=user:alice&token=…" 200' in log, log
    assert 'alice "GET /api/stream?topic=user:alice&ticket=…" 200' in log
    assert '- "WS /api/stream?token=…" 3000' in log
    assert '- "WS /api/stream" 3000' in log
    assert '- "WS /api/stream" 403' in log
    assert marked not in log
    for text in (good, bad, ticket):
        for part in text.split("."):
            assert part not in log
    assert not any(line.startswith("FORGED") for line in log.splitlines())
    assert "\x1b" not in log


async def test_the_log_of_a_uvicorn_that_is_not_ours_is_redacted(caplog: pytest.LogCaptureFixture, database: str) -> None:
    import logging

    async with Hub(database, key=SECRET):
        caplog.set_level("INFO")
        uvicorns = logging.getLogger("uvicorn.access")
        uvicorns.propagate, was = True, uvicorns.propagate
        uvicorns.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", "/live/api/sse/s?from=now&token=abc&ticket=def", "1.1", 200)
        uvicorns.propagate = was
    assert '"GET /live/api/sse/s?from=now&token=…&ticket=… HTTP/1.1" 200' in caplog.text


# The cookie


async def test_a_cookie_is_made_of_a_token_and_taken_away(database: str) -> None:
    async with Hub(database, key=SECRET) as hub:
        text = token("alice", lives=600)
        given = {"Authorization": f"Bearer {text}"}
        for host, secure in (("127.0.0.1", False), ("localhost:8000", False), ("app.example", True)):
            status, got, _ = await call("POST", f"{hub.url}/api/cookie", Host=host, **given)
            assert status == 204
            name, *attributes = [part.strip() for part in got["set-cookie"].split(";")]
            assert name == f"rowcast_token={text}"
            assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(attributes)
            assert ("Secure" in attributes) == secure
            age = next(int(part.partition("=")[2]) for part in attributes if part.startswith("Max-Age"))
            assert 590 < age <= 600
        status, got, _ = await call("POST", f"{hub.url}/api/cookie", Host="127.0.0.1", X_Forwarded_Proto="https", **given)
        assert "Secure" in got["set-cookie"], "a proxy that ends TLS"
        status, got, _ = await call("DELETE", f"{hub.url}/api/cookie")
        assert (status, "Max-Age=0" in got["set-cookie"]) == (204, True)
        assert (await hub.call("POST", "/api/cookie", token("alice", note="x" * 4000)))[0] == 400
        assert (await hub.call("POST", "/api/cookie", Cookie=f"rowcast_token={text}"))[0] == 401
        assert (await hub.call("POST", "/api/cookie", text, Origin="https://evil.example"))[0] == 403
