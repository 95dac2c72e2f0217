"""One file a workload; the file's name, with '-' for '_', is the label.

A workload has `CATEGORY`, `PROGRAMS` and `MODULES` (what it needs beside the standard library), and

- `plan(rng, length)`: whatever both sides have to know, drawn once; `length` is 1, or about 10 for a long session;
- `async serve(place)`: start the servers, return when they listen;
- `async run(place)`: what the client does; the session ends when it returns.

Every distribution stands in the file with the reason for it. docs/lab.md shows one whole.
"""
