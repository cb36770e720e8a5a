"""Faults at random under load, for as long as one likes: what was acknowledged must be in Kafka in the end, and unaltered.

python -m tests.chaos --minutes 10 --seed 1

`plan` draws the faults from the seed, `load` writes over sockets and into files, `soak` lets both loose on a real agent and a
real Kafka with a relay between them, and judges. Agent, brokers and network each have a timeline of their own, so that faults
of different kinds meet. The seed plays the same faults at the same times again, as far as the machine allows.
"""
