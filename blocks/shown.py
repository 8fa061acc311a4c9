# SPDX-License-Identifier: Apache-2.0
"""What Prefect's UI shows beside each of the blocks."""

from pydantic import HttpUrl

LOGO = HttpUrl("https://github.com/cometapi-dev.png?size=200")
DOCUMENTATION = HttpUrl("https://apidoc.cometapi.com/api/video/runway")
