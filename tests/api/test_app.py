"""The application apart from its routes: what its life begins with."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI
from sampa.service.store import Store

from .fakes import IdleReconciler


def test_its_store_was_brought_up_to_date_by_whoever_serves_it_and_is_not_again(
    app: FastAPI, store: Store, reconciler: IdleReconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again() -> None:
        raise AssertionError("serve does that, where what goes wrong is one sentence")

    async def live() -> None:
        async with app.router.lifespan_context(app):
            assert await asyncio.to_thread(reconciler.ran.wait, 10)

    monkeypatch.setattr(store, "migrate", again)
    asyncio.run(live())
