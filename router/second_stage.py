"""Where an admitted request goes that a configured stage may want: a cascade, a vote, an experiment, a label, or straight on."""

from __future__ import annotations

from router.admitted import AdmittedRequest
from router.cascading import Cascade, may_cascade
from router.complexity.stages import Stages
from router.feedback import note_repeat
from router.identity.books import Reservation
from router.labelling import watch
from router.serving import Serving
from router.shadowing import Shadowed, shadow_of
from router.state import RouterState
from router.voting import Vote
from router.wire.direct import DirectRequest


def serve(state: RouterState, stages: Stages, admitted: AdmittedRequest, client: DirectRequest, reserved: Reservation) -> None:
    """Serve a request where at least one stage is configured."""
    if stages.learning is not None:
        note_repeat(state, admitted)
    if stages.vote is not None and admitted.voting:
        Vote(state, admitted, client, reserved, stages.vote).start()
        return
    if stages.labels is not None:
        watch(state, stages.labels, admitted)
    settings = stages.trials.get(admitted.facts.complexity.trial, stages.cascade)
    if settings is not None and may_cascade(admitted, state.policy):
        Cascade(state, admitted, client, reserved, settings).start()
    elif stages.shadows and (found := shadow_of(state, admitted)) is not None:
        Shadowed(state, admitted, client, reserved, found).start()
    else:
        Serving(state, admitted, client, reserved).start()
