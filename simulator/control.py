"""/_sim: the next behaviour, and what has been generated."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from simulator.answers import json_answer
from simulator.behaviour import BehaviourError
from simulator.world import World


def routes(world: World) -> list[Route]:
    async def show_behaviour(request: Request) -> Response:
        return json_answer(world.behaviour.listing())

    async def set_behaviour(request: Request) -> Response:
        try:
            world.behaviour.set(await request.body())
        except BehaviourError as error:
            return json_answer({"error": str(error)}, 400)
        return json_answer(world.behaviour.listing())

    async def clear_behaviour(request: Request) -> Response:
        world.behaviour.clear()
        return Response(status_code=204)

    async def show_jobs(request: Request) -> Response:
        return json_answer(world.jobs.listing(request.query_params.get("model")))

    async def forget_jobs(request: Request) -> Response:
        world.jobs.forget()
        return Response(status_code=204)

    return [
        Route("/_sim/behaviour", show_behaviour, methods=["GET"]),
        Route("/_sim/behaviour", set_behaviour, methods=["PUT"]),
        Route("/_sim/behaviour", clear_behaviour, methods=["DELETE"]),
        Route("/_sim/jobs", show_jobs, methods=["GET"]),
        Route("/_sim/jobs", forget_jobs, methods=["DELETE"]),
    ]
