# SPDX-License-Identifier: Apache-2.0
"""Description of a generated file in the words of IPTC and schema.org; pure.

It states what this package knows because it bought the file: that a trained model made it, which
model, through which services, and from which sources. It does not repeat the C2PA manifest of the
file, and no signature protects it. The terms are those of schema.org (``digitalSourceType``,
``creator``, ``provider``, ``isBasedOn``), and of IPTC's NewsCodes and Photo Metadata 2025.1
(``DigitalSourceType``, ``AISystemUsed``), which C2PA uses as well.
"""

from collections.abc import Sequence
from typing import Any

from .generation import Provenance, StoredVideo, Submission, VideoFacts

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for media that a model made, which was trained on sampled content."""

PROVIDERS = ("Runway", "CometAPI")
"""Services that a generation passes through. A model on Runway's routes may be of another maker."""

_CONTEXT = {
    "@vocab": "https://schema.org/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
}


def disclosure(
    submission: Submission, video: StoredVideo, sources: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a description of a stored file as JSON-LD.

    Args:
        submission: Generation that made the file.
        video: The stored file.
        sources: Addresses of its sources, without secrets.
    """
    model = submission.model or "unknown model"
    return {
        "@context": _CONTEXT,
        "@type": "ImageObject" if video.is_picture else "VideoObject",
        "name": video.uri.replace("\\", "/").rpartition("/")[2],
        "encodingFormat": video.media_type,
        "sha256": video.sha256,
        "dateCreated": submission.submitted_at.isoformat(),
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "creator": {"@type": "SoftwareApplication", "name": model},
        "provider": [{"@type": "Organization", "name": name} for name in PROVIDERS],
        "isBasedOn": list(sources),
        "Iptc4xmpExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
        "Iptc4xmpExt:AISystemUsed": f"{model}, through {' and '.join(PROVIDERS)}",
    }


def provenance_facts(video: VideoFacts) -> dict[str, Any]:
    """Return the facts about the provenance of a file, for its event and its asset.

    ``c2pa`` is None if the file was not examined, and ``c2pa_digital_source_type`` is what the
    file's manifest states.
    """
    found = video.provenance or Provenance(found=False)
    return {
        "c2pa": video.provenance and found.found,
        "c2pa_signer": found.signer,
        "c2pa_digital_source_type": found.digital_source_type,
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "provider": list(PROVIDERS),
    }
