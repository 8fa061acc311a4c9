# SPDX-License-Identifier: Apache-2.0
"""Routes of the sandbox, as CometAPI's docs describe them."""

from dataclasses import replace

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from ..clips.serving import Signer, clip_response
from ..config import SandboxConfig
from ..faults.middleware import FAULT, FaultMiddleware
from ..faults.plan import Fault, FaultPlan
from ..faults.responses import expired, gone
from ..jobs import JobStore
from ..messages.errors import task_not_exist
from ..messages.replies import ReplyShape, Snapshot, Stage, feed_reply, task_reply
from ..messages.requests import BODIES, JobBody
from ..request_log import RequestLog
from . import openapi
from .account import account_routes, fault_of
from .auth import RunwayVersion, refuse_as_cometapi, require_key


class SandboxApp(FaultMiddleware):
    """Sandbox as an ASGI application, with its jobs and its requests.

    Args:
        config: Configuration of the sandbox.

    Attributes:
        jobs: Accepted jobs.
        log: Received requests.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self.jobs = JobStore(config)
        self.log = RequestLog()
        routes = _routes(config, self.jobs, self.log)
        super().__init__(routes, self.log, FaultPlan(config.faults, config.seed))

    def add_fault(self, fault: Fault) -> None:
        """Add a fault; it counts from the next request of its route."""
        self.plan = self.plan.adding(fault, self.log.per_route.get(fault.route, 0))

    def clear(self) -> None:
        """Forget jobs, faults and requests."""
        self.jobs.clear()
        self.log.clear()
        self.plan = FaultPlan((), self.plan.seed)


def create_app(config: SandboxConfig | None = None) -> SandboxApp:
    """Create a sandbox as an ASGI application, to run in your own server."""
    return SandboxApp(config or SandboxConfig())


def _routes(config: SandboxConfig, jobs: JobStore, log: RequestLog) -> FastAPI:
    signer = Signer(config.asset_ttl)
    app = FastAPI(**openapi.ABOUT, docs_url=None, redoc_url=None)
    refuse_as_cometapi(app)
    app.include_router(_creates(jobs))
    app.include_router(_polls(jobs, signer))
    app.include_router(_outputs(jobs, signer))
    app.include_router(account_routes(config, jobs))
    app.include_router(_sandbox_routes(jobs, log))
    openapi.remove_unsent_responses(app)
    return app


_FAULTS_OF_JOBS = {"failed", "cancelled"}


def _creates(jobs: JobStore) -> APIRouter:
    router = APIRouter(dependencies=[Depends(require_key)])

    def declare(route: str) -> None:
        async def create(
            request: Request,
            body: JobBody,
            version: RunwayVersion,  # noqa: ARG001 - the header is required but has no effect
        ) -> openapi.Created:
            fault = request.scope.get(FAULT) if _fault_of(request) in _FAULTS_OF_JOBS else None
            job = jobs.accept(body.recipe(), body.model_dump(exclude_unset=True), fault)
            return openapi.Created(id=job.task_id)

        create.__annotations__["body"] = openapi.body_of(route)
        summary = f"Create a job of {route}."
        router.post(f"/runwayml/v1/{route}", name=route, summary=summary, **openapi.CREATE)(create)

    for route in BODIES:
        declare(route)
    return router


def _polls(jobs: JobStore, signer: Signer) -> APIRouter:
    router = APIRouter(dependencies=[Depends(require_key)])

    def look_up(request: Request, task_id: str) -> tuple[ReplyShape, Snapshot]:
        """Return the reply shape and the current snapshot of a job."""
        job = jobs.poll(task_id)
        if job is None:
            raise task_not_exist()
        name = f"{task_id}/0"
        url = f"{request.base_url}assets/{name}{jobs.suffix(job)}"
        snapshot = jobs.report(job, lambda: (f"{url}?_jwt={signer.sign(name)}",))
        if _fault_of(request) == "unknown-status":
            snapshot = replace(snapshot, stage=Stage.UNKNOWN, urls=())
        return job.shape, snapshot

    @router.get("/runwayml/v1/tasks/{task_id}", **openapi.TASK)
    async def task(request: Request, task_id: str) -> Response:
        """Get a Runway task."""
        return JSONResponse(task_reply(*look_up(request, task_id)))

    @router.post("/runway/feed", **openapi.FEED)
    async def feed(request: Request, body: openapi.FeedBody) -> Response:
        """Get a task through the compatibility route."""
        return JSONResponse(feed_reply(*look_up(request, body.task_id)))

    return router


def _outputs(jobs: JobStore, signer: Signer) -> APIRouter:
    router = APIRouter()

    def serve(request: Request, task_id: str, index: str, token: str) -> Response:
        if not signer.accepts(f"{task_id}/{index}", token):
            return expired()
        clip = jobs.finished_clip(task_id)
        if clip is None:
            return gone()
        fault = _fault_of(request)
        if fault == "truncated-silent":
            clip = clip[: len(clip) // 2]
        return clip_response(clip, request.headers, ranges=fault != "ignore-range")

    @router.get("/assets/{task_id}/{index}.png", include_in_schema=False)
    @router.get("/assets/{task_id}/{index}.mp4", **openapi.ASSET)
    async def output(request: Request, task_id: str, index: str, _jwt: str = "") -> Response:
        """Download an output."""
        return serve(request, task_id, index, _jwt)

    @router.head("/assets/{task_id}/{index}.png", include_in_schema=False)
    @router.head("/assets/{task_id}/{index}.mp4", **openapi.ASSET)
    async def output_headers(
        request: Request, task_id: str, index: str, _jwt: str = ""
    ) -> Response:
        """Get the size and the ETag of an output."""
        return serve(request, task_id, index, _jwt)

    return router


def _sandbox_routes(jobs: JobStore, log: RequestLog) -> APIRouter:
    router = APIRouter()

    @router.get("/_sandbox", tags=["Sandbox"])
    async def census() -> openapi.Census:
        """Count the accepted jobs and the received requests."""
        return openapi.Census(
            accepted=len(jobs.accepted), requests=log.per_route, jobs=jobs.stages()
        )

    return router


def _fault_of(request: Request) -> str | None:
    """Return the kind of fault that the route has to apply to this request, if any."""
    fault = fault_of(request)
    return fault.kind if fault else None
