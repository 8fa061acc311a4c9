# SPDX-License-Identifier: Apache-2.0
"""The four steps as tasks of your own flow, on Dask workers (pip install prefect-dask).

Every worker needs the same COMETAPI_LEDGER_URL and COMETAPI_STORAGE. Fetch and persist may run on
different workers, so the storage is a folder that all of them mount.
"""

from prefect import flow
from prefect_dask import DaskTaskRunner

from prefect_cometapi.flows import (
    fetch_output,
    persist_output,
    poll_generation,
    submit_generation,
)
from prefect_cometapi.runway import StoredVideo


@flow(task_runner=DaskTaskRunner(cluster_kwargs={"n_workers": 2, "threads_per_worker": 4}))
def on_dask(photos: dict[str, str]) -> dict[str, str]:
    """Run a chain of four tasks for each photo; Dask chooses the worker of each task."""
    stored = {}
    for name, photo in photos.items():
        submission = submit_generation.submit({"promptImage": photo}, idempotency_key=name)
        finished = poll_generation.submit(submission)
        videos = fetch_output.submit(submission, finished)
        stored[name] = persist_output.submit(submission, finished, videos)
    kept: dict[str, list[StoredVideo]] = {name: one.result() for name, one in stored.items()}
    return {name: videos[0].uri for name, videos in kept.items()}


if __name__ == "__main__":
    on_dask({"cat": "https://example.com/cat.jpg"})
