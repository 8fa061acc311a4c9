# SPDX-License-Identifier: Apache-2.0
"""Prompts are sent as they are, and are stored and shown without their secrets."""

import base64
import logging
import re
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from prefect.settings import (
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_LOGGING_LEVEL,
    get_current_settings,
    temporary_settings,
)

from prefect_cometapi.flows import generate_batch, image_to_video
from prefect_cometapi.runway.batch.models import ItemResult, Outcome

from ..batch.catalogue import manifest

pytestmark = pytest.mark.server

SIGNATURE, PICTURE, API_KEY = "c4n4rysignature", "Q0FOQVJZUElDVFVSRQAA", "sk-canary0f7b1d3c5e9a"
LIKE = f"https://cdn.example.com/a.png?X-Amz-Signature={SIGNATURE}"
PROMPT = f"slow zoom, like {LIKE} or data:image/png;base64,{PICTURE} or {API_KEY}, soft light"
ESCAPED = f"slow zoom, like {quote(LIKE, safe='')} or X-Amz-Signature={SIGNATURE}, soft light"
IMAGE = "https://example.com/cat.jpg"


def texts(folder: Path) -> Iterator[str]:
    """Return the text of the files, with unpacked results and without pictures and videos."""
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in {".mp4", ".jpg"}:
            content = path.read_bytes()
            yield content.decode("latin-1")
            for run in re.findall(rb"[A-Za-z0-9+/]{40,}={0,2}", content.replace(b"\\n", b"")):
                unpacking = zlib.decompressobj()
                try:
                    yield unpacking.decompress(base64.b64decode(run)).decode("latin-1")
                except (zlib.error, ValueError):
                    continue


def rows_of(database: str) -> str:
    """Return every cell of the server's database except the parameters of flow runs."""
    found: list[str] = []
    with closing(sqlite3.connect(database)) as connection:
        for (name,) in connection.execute("select name from sqlite_master where type = 'table'"):
            cursor = connection.execute(f'select * from "{name}"')
            columns = [column[0] for column in cursor.description]
            for row in cursor:
                cells = zip(columns, row, strict=True)
                found += [str(cell) for column, cell in cells if column != "parameters"]
    return "\n".join(found)


def test_no_secret_of_a_prompt_is_stored_or_shown(
    prefect_server, sandbox, history, tmp_path, caplog, capfd
):
    """No file, row, artifact, result, event or log of a flow or a batch has a prompt's secret."""
    caplog.set_level(logging.DEBUG)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    row = {"id": "a", "promptImage": IMAGE, "promptText": PROMPT}
    with temporary_settings({PREFECT_LOGGING_LEVEL: "DEBUG"}):
        state = image_to_video({"promptImage": IMAGE, "promptText": PROMPT}, return_state=True)
        results = [
            generate_batch([{"promptImage": IMAGE, "promptText": text}])
            for text in (PROMPT, ESCAPED)
        ]
        results.append(generate_batch(manifest(inputs, [row])))
    history.events(state.state_details.flow_run_id, until="cometapi.generation.stored")
    assert [job.body["promptText"] for job in sandbox.accepted] == [PROMPT, PROMPT, ESCAPED, PROMPT]
    assert all("slow zoom, like " in (each.results[0].prompt or "") for each in results)
    database = str(get_current_settings().server.database.connection_url).partition("///")[2]
    next(inputs.iterdir()).unlink()  # This is the user's own file.
    printed = capfd.readouterr()
    places = [tmp_path, Path(str(PREFECT_LOCAL_STORAGE_PATH.value()))]
    stored = [text for place in places for text in texts(place)]
    assert any("slow zoom, like " in text and ".mp4" in text for text in stored)
    everything = "\n".join(
        [*stored, rows_of(database), printed.out, printed.err, caplog.text, repr(results)]
    )
    for secret in (SIGNATURE, PICTURE, API_KEY):
        assert secret not in everything
    recorded = "\n".join(texts(Path(database).parent))
    assert PICTURE not in recorded
    assert API_KEY not in recorded


def test_a_result_never_holds_a_secret_prompt():
    """A result never has a secret prompt, even if its row comes from an older manifest."""
    row = ItemResult.model_validate({"id": "a", "outcome": Outcome.STORED, "prompt": PROMPT})
    assert row.prompt
    assert row.prompt.startswith("slow zoom, like https://cdn.example.com/a.png?<sha256:")
    assert row.prompt.endswith("soft light")
    for secret in (SIGNATURE, PICTURE, API_KEY):
        assert secret not in repr(row)
    assert ItemResult.model_validate(row.model_dump()) == row
