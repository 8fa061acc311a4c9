# SPDX-License-Identifier: Apache-2.0
"""Short film from a picture in a bucket: a still, a clip of it, and the clip at night.

COMETAPI_PRICES=catalogue python short_film.py s3://my-bucket/cat.png s3://my-bucket/films
"""

import sys

from prefect import flow

from prefect_cometapi import GenerationResult, image_to_video, text_to_image, video_to_video


@flow
def short_film(picture: str, storage: str) -> list[GenerationResult]:
    """Make three generations, each from the result of the one before."""
    size = {"ratio": "1280:720"}
    cat = {"promptText": "@cat on a roof", "referenceImages": [{"uri": picture, "tag": "cat"}]}
    still = text_to_image(cat | size, storage=storage)
    zoom = {"model": "gen4.5", "promptText": "slow zoom", "duration": 5} | size
    clip = image_to_video(zoom | {"promptImage": still.videos[0].uri}, storage=storage)
    dark = {"model": "aleph2", "promptText": "at night", "videoUri": clip.videos[0].uri}
    night = video_to_video(dark, storage=storage)
    return [still, clip, night]


if __name__ == "__main__":
    for made in short_film(*sys.argv[1:3]):
        print(made.videos[0].uri, made.cost, made.currency, made.cost_source)
