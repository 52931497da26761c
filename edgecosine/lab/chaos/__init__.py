"""A whole cluster under a seeded schedule of faults, and checks of the answers.

faults, schedule, workload, checker   values and decisions: no clock, no process
broker, wall_clock, disk, cluster     the parts that faults are injected into
fault_injector, clients, observer     the loops: inject, send, receive
run_chaos                             one run from beginning to end
"""
