# SPDX-License-Identifier: Apache-2.0
"""The four steps as tasks of your own flow, on Dask workers (pip install prefect-dask).

Every worker needs the same COMETAPI_LEDGER_URL and COMETAPI_STORAGE. Fetch and persist may run on
different workers, so the storage is a folder that all of them mount.
"""

from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture
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
    chains = {}
    for name, photo in photos.items():
        submission = submit_generation.submit({"promptImage": photo}, idempotency_key=name)
        finished = poll_generation.submit(submission)
        videos = fetch_output.submit(submission, finished)
        stored = persist_output.submit(submission, finished, videos)
        chains[name] = [submission, finished, videos, stored]
    return {name: result_of(chain)[0].uri for name, chain in chains.items()}


def result_of(chain: list[PrefectFuture[Any]]) -> list[StoredVideo]:
    """Return the stored videos, or raise the error of the first task that failed.

    Prefect does not run the tasks after a failed one. They only say that a run is pending.
    """
    return [task.result() for task in chain][-1]


if __name__ == "__main__":
    on_dask({"cat": "https://example.com/cat.jpg"})
