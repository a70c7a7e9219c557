"""The deployment guide says what servers tell an application of its clients, as they do here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .cluster import cluster
from .servers import SERVERS, ends_of_clients

pytestmark = [pytest.mark.redis, pytest.mark.faults]

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"
NAMES = {
    "uvicorn": "uvicorn",
    "daphne": "daphne",
    "granian": "granian",
    "hypercorn": "hypercorn `--workers 0`",
    "hypercorn-worker": "hypercorn (one worker)",
    "gunicorn": "gunicorn `-k asgi`",
    "gunicorn-uvicorn": "gunicorn uvicorn-worker",
}


def documented() -> dict[str, list[str]]:
    """The codes for each server of the guide's table, without versions."""
    lines = GUIDE.read_text().split("| server | close 1000 |")[1].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {" ".join(re.sub(r"[\d.]+\.\d+|,", "", row[0]).split()): row[1:5] for row in rows}


def test_the_guide_has_every_server() -> None:
    assert sorted(documented()) == sorted(NAMES.values())
    assert set(NAMES) == set(SERVERS)


@pytest.mark.parametrize("name", NAMES)
async def test_an_application_is_told_of_its_clients_ends_as_the_guide_says(name: str, redis_url: str) -> None:
    async with cluster(redis_url) as here:
        codes = await ends_of_clients(here, name)
    assert list(codes.values()) == documented()[NAMES[name]]
