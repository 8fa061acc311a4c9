# SPDX-License-Identifier: Apache-2.0
"""Logo and documentation link of the blocks, for Prefect's UI."""

from pydantic import HttpUrl

LOGO = HttpUrl("https://github.com/cometapi-dev.png?size=200")
DOCUMENTATION = HttpUrl("https://apidoc.cometapi.com/api/video/runway")
