# SPDX-License-Identifier: Apache-2.0
"""Async DAG: two cuts of one motif at once, and a task that uses both."""

import asyncio

from prefect import flow, task

from prefect_cometapi.flows import aimage_to_video
from prefect_cometapi.runway import GenerationResult


@task
async def announce(wide: GenerationResult, tall: GenerationResult) -> dict[str, str]:
    """Continue your pipeline with both videos."""
    return {"website": wide.videos[0].uri, "phone": tall.videos[0].uri}


@flow
async def campaign(photo: str, name: str) -> dict[str, str]:
    """Make one video for screens and one for phones."""
    wide, tall = await asyncio.gather(
        *(
            aimage_to_video(
                {"promptImage": photo, "promptText": name, "ratio": ratio},
                idempotency_key=f"{name}/{ratio}",
            )
            for ratio in ("1280:720", "720:1280")
        )
    )
    return await announce(wide, tall)


if __name__ == "__main__":
    print(asyncio.run(campaign("https://example.com/cat.jpg", "cat")))
