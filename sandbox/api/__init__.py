# SPDX-License-Identifier: Apache-2.0
"""Web application of the sandbox: routes, authorization and OpenAPI document."""
