# SPDX-License-Identifier: Apache-2.0
"""A generated file is described in the words of IPTC and schema.org."""

import pytest

from prefect_cometapi.runway import Provenance, Submission
from prefect_cometapi.runway.models.disclosure import disclosure, provenance_facts

from ..factories import MOMENT, video

TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
BOUGHT = Submission(idempotency_key="k", task_id="t", submitted_at=MOMENT, model="gen4_turbo")


@pytest.mark.parametrize(
    ("media_type", "kind"), [("video/mp4", "VideoObject"), ("image/png", "ImageObject")]
)
def test_a_file_is_described_in_json_ld(media_type, kind):
    """Model, services, sources and the source type have the terms of both vocabularies."""
    stored = video("a").model_copy(update={"media_type": media_type})
    assert disclosure(BOUGHT, stored, ["s3://bucket/cat.jpg"]) == {
        "@context": {
            "@vocab": "https://schema.org/",
            "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
        },
        "@type": kind,
        "name": "a.mp4",
        "encodingFormat": media_type,
        "sha256": "0" * 64,
        "dateCreated": MOMENT.isoformat(),
        "digitalSourceType": TERM,
        "creator": {"@type": "SoftwareApplication", "name": "gen4_turbo"},
        "provider": [
            {"@type": "Organization", "name": "Runway"},
            {"@type": "Organization", "name": "CometAPI"},
        ],
        "isBasedOn": ["s3://bucket/cat.jpg"],
        "Iptc4xmpExt:DigitalSourceType": TERM,
        "Iptc4xmpExt:AISystemUsed": "gen4_turbo, through Runway and CometAPI",
    }


def test_an_unknown_model_is_named_as_such():
    """A generation that was adopted without its request has no model."""
    about = disclosure(BOUGHT.model_copy(update={"model": None}), video("a"))
    assert about["creator"]["name"] == "unknown model"
    assert about["isBasedOn"] == []


@pytest.mark.parametrize(
    ("provenance", "c2pa"),
    [(None, None), (Provenance(found=False), False), (Provenance(found=True, signer="R"), True)],
    ids=str,
)
def test_a_file_that_was_not_examined_is_not_called_unsigned(provenance, c2pa):
    """Files of other origin have no finding, which is not the same as no manifest."""
    facts = provenance_facts(video("a").model_copy(update={"provenance": provenance}))
    assert facts["c2pa"] is c2pa
    assert facts["c2pa_signer"] == ("R" if c2pa else None)
    assert facts["digitalSourceType"] == TERM
