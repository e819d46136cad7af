import asyncio, tempfile, time
from contextlib import aclosing
from pathlib import Path
from tests.conftest import run
from tests.postgres import PostgresServer, FAST
from tests.integration.test_ledger import *
with tempfile.TemporaryDirectory(prefix="ghub-") as f:
    s=PostgresServer(Path(f),*FAST); s.start()
    try:
        async def work():
            async with aclosing(await opened(s.url("postgres"))) as ledger:
                s.freeze(); t=time.time()
                task=asyncio.create_task(ledger.orgs()); await asyncio.sleep(.3); task.cancel()
                try: await task
                except BaseException as e: print(repr(e), time.time()-t)
                t=time.time()
            print("closed",time.time()-t)
        run(work()); print("ran")
    finally: s.kill()
