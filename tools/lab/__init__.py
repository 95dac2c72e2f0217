"""A traffic lab on one machine: real clients and servers, an emulated access link between them, a capture a session.

::

    recorder   which sessions, how many at once, the manifest               python -m tools.lab record OUT
      session  one session, init of a PID namespace: with it everything ends
        client namespace  eth0 ── tcpdump        workload.run
                          │ TAP
                        link     rate, queue, delay, jitter, loss          (a process of its own)
                          │ TAP
        server namespace  eth0                   workload.serve, names (DNS)

Nothing outside is reached: the namespaces have no other device. docs/lab.md is for who uses it or adds a workload.
"""
