# SPDX-License-Identifier: Apache-2.0
"""Metadata that Prefect's UI shows beside each block."""

from pydantic import HttpUrl

LOGO = HttpUrl("https://github.com/cometapi-dev.png?size=200")
DOCUMENTATION = HttpUrl("https://apidoc.cometapi.com/api/video/runway")
