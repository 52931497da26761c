"""A whole cluster under a seeded schedule of faults, and the verdict on what its askers got.

faults, schedule, orders, judge   values and decisions: no clock, no process
broker, clock, disk, place        the parts that can be broken, and how they come back
injecting, asking, witness        the loops: break, ask, listen
bench                             one run from beginning to end
"""
