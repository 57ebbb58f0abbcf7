"""The check of the whole: two ranks that must come to the same weights."""

from cluster.doctor.finding import Finding, ok, problem
from cluster.doctor.processes import run
from cluster.doctor.software import BUILD_HOROVOD
from cluster.doctor.subject import Subject

LOOPBACK = "127.0.0.1"
RANKS = 2
MEETING_SECONDS = 60


def averaging(subject: Subject) -> Finding:
    """Have two ranks take a step on different images, and compare their weights."""
    if "transports" not in subject.libraries.told:
        return problem("not tried: Horovod cannot be imported", BUILD_HOROVOD)
    from cluster.rendezvous import Rendezvous, assign_ranks

    slots = assign_ranks({LOOPBACK: RANKS})
    with Rendezvous(LOOPBACK, slots) as rendezvous:
        variables = [rendezvous.environment(slot, "lo", MEETING_SECONDS) for slot in slots]
        hidden = [{**each, "CUDA_VISIBLE_DEVICES": ""} for each in variables]
        ended = run(["average"] * RANKS, hidden)
    for rank, each in enumerate(ended):
        if each.trouble:
            return problem(f"rank {rank} of {RANKS}: {each.trouble}", BUILD_HOROVOD)
    told = [each.told for each in ended]
    if len({each["sha256"] for each in told}) > 1:
        return problem("weights differ after a step: gradients were not averaged", BUILD_HOROVOD)
    if any(each["ranks"] != [*range(1, RANKS + 1)] for each in told):
        return problem(f"sums are wrong: {told[0]['ranks']} of ranks 1 and 2", BUILD_HOROVOD)
    return ok(f"a step of {RANKS} ranks: {told[0]['parameters']:,} equal parameters")
