"""The stores that every test may have, and what each must leave behind: nothing."""

import asyncio
import gc
import os
from collections.abc import Iterator

import pytest

from proxy.storage.local import LocalStore
from proxy.storage.s3 import S3
from proxy.storage.supabase import Key, Supabase
from tests.conftest import run_if_coroutine
from tests.kits.stores import MADE, PAGE, Kit, run
from tests.stores.running import BUCKET, KEY, MotoProcess, SupabaseProcess

REAL_URL = os.environ.get("SUPABASE_STORAGE_URL")
REMOTE = ["supabase", "s3", *(["real"] if REAL_URL else [])]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Not for ever: a store that hangs fails its test."""
    return run_if_coroutine(pyfuncitem, run)


@pytest.fixture(scope="module")
def supabase(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupabaseProcess]:
    server = SupabaseProcess(tmp_path_factory.mktemp("supabase"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoProcess]:
    server = MotoProcess()
    server.wait()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "only-for-tests")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="module")
def frozen_heap() -> Iterator[None]:
    """Exclude objects from before the tests from each test's collection, which would take most of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_is_left_open(frozen_heap: None, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An unclosed socket warns here, inside the test that left it; a task whose exception nobody saw is in the log."""
    yield
    gc.collect()
    assert not [record for record in caplog.records if record.getMessage().startswith("Task")]


def kit_of(name: str, request: pytest.FixtureRequest) -> Kit:
    match name:
        case "local":
            folder = request.getfixturevalue("tmp_path")
            return Kit(lambda client: LocalStore(folder))
        case "supabase":
            server = request.getfixturevalue("supabase")
            server.behave()
            return Kit(
                lambda client: Supabase(client, server.url, BUCKET, Key(KEY), page=PAGE),
                server.public_url,
                lambda: server.process,
            )
        case "s3":
            moto = request.getfixturevalue("moto")
            return Kit(
                lambda client: S3(client, BUCKET, region="us-east-1", endpoint=moto.url, page=PAGE),
                moto.public_url,
                lambda: moto.process,
            )
    assert REAL_URL is not None
    url, _, bucket = REAL_URL.partition("?bucket=")
    bucket, auth = bucket or BUCKET, Key(os.environ["SUPABASE_STORAGE_KEY"])
    return Kit(lambda client: Supabase(client, url, bucket, auth, page=PAGE), f"{url}/object/public/{bucket}")


@pytest.fixture(params=["local", *REMOTE])
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    yield from cleaned(kit_of(request.param, request))


@pytest.fixture(params=REMOTE)
def remote(request: pytest.FixtureRequest) -> Iterator[Kit]:
    yield from cleaned(kit_of(request.param, request))


def cleaned(kit: Kit) -> Iterator[Kit]:
    """A real bucket is as empty after the tests as it was before."""

    async def remove() -> None:
        async with kit.opened() as store:
            await asyncio.gather(*(store.delete(path) for path in MADE))

    MADE.clear()
    yield kit
    run(remove())
