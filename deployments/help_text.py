# SPDX-License-Identifier: Apache-2.0
"""Defaults of the options in a command's help, and the examples at its end."""

from typing import Any

from cyclopts import App

EXAMPLES: dict[str, tuple[str, ...]] = {
    "image-to-video": (
        'prefect-cometapi image-to-video cat.jpg "slow zoom"',
        "prefect-cometapi image-to-video s3://pictures/cat.jpg --idempotency-key sku-17",
        "prefect-cometapi image-to-video cat.jpg --model gen4_turbo --ratio 1280:720",
    ),
    "video-to-video": ('prefect-cometapi video-to-video cat.mp4 "make it watercolour"',),
    "character-performance": ("prefect-cometapi character-performance face.jpg actor.mp4",),
    "text-to-image": ('prefect-cometapi text-to-image "a cat on the moon" --ratio 1024:1024',),
    "batch": (
        "prefect-cometapi batch products.csv --dry-run",
        "prefect-cometapi batch products.csv --max-spend 25 --storage s3://videos/new",
    ),
    "finish": ("prefect-cometapi finish 3d957031-9a2a-4a0b-8a6c-0c1de5b0a2b1",),
    "collect": ("prefect-cometapi collect", "prefect-cometapi collect --storage s3://videos/late"),
    "demo": ("prefect-cometapi demo",),
    "models": ("prefect-cometapi models", "prefect-cometapi models --json"),
    "sandbox": (
        "prefect-cometapi sandbox --render-seconds 1",
        "prefect-cometapi sandbox --fault create:429:times=2,value=3 --fault task:500",
    ),
    "setup": (
        "prefect-cometapi setup --dry-run",
        "prefect-cometapi setup --pool videos --limit 20 --notify slack-webhook/ops",
    ),
    "deploy": ("prefect-cometapi deploy --pool videos",),
    "serve": ("prefect-cometapi serve --limit 4",),
    "doctor": ("prefect-cometapi doctor --storage s3://videos/products",),
    "ledger list": (
        "prefect-cometapi ledger list --state uncertain --since 3d",
        "prefect-cometapi ledger list --wide --limit 20",
    ),
    "ledger show": ("prefect-cometapi ledger show sku-17",),
    "ledger adopt": ("prefect-cometapi ledger adopt sku-17 3d957031-9a2a-4a0b-8a6c-0c1de5b0a2b1",),
    "ledger write-off": ("prefect-cometapi ledger write-off sku-17",),
    "ledger resubmit": ("prefect-cometapi ledger resubmit sku-17",),
    "ledger abandon": ("prefect-cometapi ledger abandon sku-17",),
    "ledger reconcile": (
        "prefect-cometapi ledger reconcile",
        "prefect-cometapi ledger reconcile sku-17 --apply",
    ),
    "ledger export": (
        "prefect-cometapi ledger export --since 2026-11-01 --output november.csv",
        "prefect-cometapi ledger export --format parquet --output costs.parquet",
    ),
    "ledger report": (
        "prefect-cometapi ledger report --since 4w",
        "prefect-cometapi ledger report --by deployment --since 2026-11-01",
    ),
    "provenance": ("prefect-cometapi provenance cat.mp4 --verify",),
    "sign": ("prefect-cometapi sign cat.mp4 signed.mp4 --certificate chain.pem --key key.pem",),
    "ledger backup": ("prefect-cometapi ledger backup /backups/ledger.db",),
    "ledger rebuild": ("prefect-cometapi ledger rebuild --storage s3://videos/products",),
}
"""Examples of each command, by its words."""


def add_examples(app: App) -> None:
    """Add the examples to the help of the commands of an app."""
    for words, examples in EXAMPLES.items():
        command = app
        for word in words.split():
            command = command[word]
        command.help_epilogue = "\n".join(["Examples:", "```", *examples, "```"])


def shown_default(value: Any) -> str | None:
    """Return the default of an option as the help shows it, or None if it says nothing; pure.

    A switch that is off and a list that is empty need no words.
    """
    if value is None or value is False or value is True or value == ():
        return None
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
