# SPDX-License-Identifier: Apache-2.0
"""The sandbox as a web application: routes, authorization and its OpenAPI."""
