"""Where an admitted request goes that a configured stage may want: a cascade, a vote, an experiment, or straight on."""

from __future__ import annotations

from router.admitted import AdmittedRequest
from router.cascading import Cascade, may_cascade
from router.complexity.stages import Stages
from router.feedback import note_repeat
from router.identity.limits import Reservation
from router.serving import Serving
from router.state import RouterState
from router.wire.direct import DirectRequest


def serve(state: RouterState, stages: Stages, admitted: AdmittedRequest, client: DirectRequest, reserved: Reservation) -> None:
    """Serve a request where at least one stage is configured."""
    if stages.learning is not None:
        note_repeat(state, admitted)
    if stages.cascade is not None and may_cascade(admitted, state.policy):
        Cascade(state, admitted, client, reserved, stages.cascade).start()
    else:
        Serving(state, admitted, client, reserved).start()
