"""Two real PostgreSQL with streaming replication behind one address: a switch-over, and one back."""

from __future__ import annotations

import http.client
from contextlib import suppress

from chaos.proxy import Proxy
from chaos.stage import Postgres, Replica, on_stage, until


def status(replica: Replica, method: str, path: str, body: object = None) -> int:
    with suppress(OSError, http.client.HTTPException):
        return replica.call(method, path, body).status
    return 0


def test_a_standby_is_left_as_soon_as_the_address_leads_to_the_primary() -> None:
    # The proxy leads to the server that was the primary before, now a standby, and only then to the new one. All
    # connections of the replica stay what they are meanwhile.
    phones = iter(range(79161234567, 79161299999))
    with on_stage() as stage, Proxy(stage.database.dsn) as proxy:
        first, second = stage.database, Postgres(stage.folder / "second")
        replica = stage.replica(dsn=proxy.dsn, database_migration_url=proxy.dsn)
        until(lambda: status(replica, "GET", "/readyz") == 200)
        try:
            second.follow(first)
            for primary, standby in ((first, second), (second, first)):
                primary.stop()
                standby.promote()
                primary.follow(standby)
                # The address still leads to who was the primary.
                until(lambda: status(replica, "GET", "/api/v1/clients") == 200)
                assert status(replica, "POST", "/api/v1/clients", {"phone": str(next(phones))}) == 503
                assert status(replica, "GET", "/readyz") == 503
                proxy.lead_to(standby.dsn)
                assert [
                    status(replica, "POST", "/api/v1/clients", {"phone": str(next(phones))}) for _ in range(50)
                ] == ([201] * 50)
                until(lambda: status(replica, "GET", "/readyz") == 200)
                stage.database = standby
                stage.done(stage.mailing(replica))
        finally:
            second.stop("immediate")
        assert replica.alive
